"""Reports and traces of a generation that several transformers made, put together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from tokenprune.errors import TraceError
from tokenprune.reports.report import Macs, Report, StepReport
from tokenprune.reports.trace import Trace


def joint_report(
    parts: Mapping[str, Report], called: set[str], generations: int, cache_bytes: int, host_cache_bytes: int = 0
) -> Report:
    """One report of all transformers' reports.

    Args:
        parts: each one's own, by name.
        called: those that the latest generation called.
        generations: how many generations began.
        cache_bytes: largest memory that the caches of all held together on the models' own devices.
        host_cache_bytes: the same in host memory.
    """
    counted = [report for name, report in parts.items() if name in called]
    steps: dict[int, list[StepReport]] = defaultdict(list)
    for report in counted:
        for step in report.steps:
            steps[step.step].append(step)
    merged = tuple(_joint_step(steps[index]) for index in sorted(steps))
    counts = [report.token_counts for report in counted if report.token_counts is not None]
    alike = bool(counts) and all(count.shape == counts[0].shape for count in counts)
    return Report(
        steps=merged,
        generations=generations,
        seconds=sum(step.seconds for step in merged),
        selection_seconds=sum(step.selection_seconds for step in merged),
        tokens=sum(step.tokens for step in merged),
        dense_tokens=sum(step.num_tokens for step in merged),
        macs=sum((report.macs for report in counted), Macs(0, 0)),
        dense_macs=sum((report.dense_macs for report in counted), Macs(0, 0)),
        cache_bytes=cache_bytes,
        grid=counted[-1].grid if counted else (),
        token_counts=sum((count.to(counts[0].device) for count in counts[1:]), counts[0]) if alike else None,
        notes=tuple(f"{name}: {note}" for name, report in parts.items() for note in report.notes),
        transformers=dict(parts),
        host_cache_bytes=host_cache_bytes,
    )


def _joint_step(reports: list[StepReport]) -> StepReport:
    """A step that one transformer made, or several of them together, a guidance branch each."""
    return StepReport(
        step=reports[0].step,
        time=reports[0].time,
        tokens=max(report.tokens for report in reports),
        num_tokens=max(report.num_tokens for report in reports),
        full=all(report.full for report in reports),
        seconds=sum(report.seconds for report in reports),
        selection_seconds=sum(report.selection_seconds for report in reports),
        correction=next((report.correction for report in reports if report.correction is not None), None),
    )


def joint_trace(parts: Mapping[str, Trace]) -> Trace:
    """One trace of all transformers' traces, their steps in order.

    Raises:
        TraceError: their token grids are not the same.
    """
    grids = {name: trace.grid for name, trace in parts.items()}
    if len(set(grids.values())) > 1:
        raise TraceError(f"trace: expected transformers with one token grid, got {grids}; apply to each by itself")
    steps = sorted((step for trace in parts.values() for step in trace.steps), key=lambda step: step.report.step)
    return Trace(tuple(steps), next(iter(grids.values())))
