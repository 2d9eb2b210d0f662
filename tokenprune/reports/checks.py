"""What a check found, property by property, as a table."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from tokenprune.reports.html import facts, folded

Outcome = Literal["passed", "failed", "not checked"]
WIDTH = 110
"""Letters in a line of a printed table, at most; a narrower terminal's lines are as long as it is wide."""


@dataclass(frozen=True)
class Finding:
    """One property: whether it holds, and what was looked at, or why nothing was."""

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class CheckResult:
    """What a check found; printed, it is a table.

    Attributes:
        subject: what was checked.
        findings: the properties, in the order they were checked.
        unseen: what no such check can tell.
    """

    subject: str
    findings: tuple[Finding, ...]
    unseen: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.outcome != "failed" for finding in self.findings)

    def __repr__(self) -> str:
        counts = Counter(finding.outcome for finding in self.findings)
        return f"CheckResult({self.subject}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())})"

    def __str__(self) -> str:
        names = max(len(finding.name) for finding in self.findings)
        outcomes = max(len(finding.outcome) for finding in self.findings)
        lines, width = [self.subject], min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        for finding in self.findings:
            head = f"  {finding.name:<{names}}  {finding.outcome:<{outcomes}}  "
            lines.append(textwrap.fill(finding.detail, width, initial_indent=head, subsequent_indent=" " * len(head)))
        lines += ["  not checkable:"] if self.unseen else []
        lines += [textwrap.fill(each, width, initial_indent="  - ", subsequent_indent="    ") for each in self.unseen]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(finding.name, f"{finding.outcome}: {finding.detail}") for finding in self.findings]
        unseen = [folded("not checkable", ("what no such check can tell",), [(each,) for each in self.unseen])]
        return facts(self.subject, rows, *(unseen if self.unseen else []))
