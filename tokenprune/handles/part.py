"""One pruned transformer of a handle: what it reports of its generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torch import nn

from tokenprune.engine.call_arguments import Form
from tokenprune.engine.generation import Generation
from tokenprune.engine.masked_module import MaskedModule
from tokenprune.errors import TraceError
from tokenprune.macs.counting import Computed, count_steps
from tokenprune.ops.guidance import BranchKey
from tokenprune.reports.records import StepRecord
from tokenprune.reports.report import Macs, Report
from tokenprune.reports.trace import Trace


class PrunedModel(Protocol):
    """What a part holds: one model with its hooks, or one whose map is found at its first call."""

    @property
    def model(self) -> nn.Module:
        """The transformer."""

    @property
    def masked(self) -> MaskedModule | None:
        """What prunes it; None while its map is not found yet."""

    @property
    def notes(self) -> tuple[str, ...]:
        """How the map was found, where that is worth telling."""

    def install(self) -> None:
        """Register the hooks."""

    def remove(self) -> None:
        """Take them off."""


class Part:
    """One transformer of a handle.

    Args:
        source: it, with its hooks.
        called: what is called for it, with the wrappers of torch.compile and the like.

    Attributes:
        source: as above.
        called: as above.
    """

    def __init__(self, source: PrunedModel, called: nn.Module) -> None:
        self.source, self.called = source, called
        self._costs: dict[tuple[Form, Computed | None], Macs] = {}

    @property
    def masked(self) -> MaskedModule | None:
        """What prunes it; None while its map is not found yet."""
        return self.source.masked

    def took_part_in(self, generation: object) -> bool:
        """Whether it was called in a generation of the handle's timeline."""
        return self.masked is not None and self.masked.generation.token is generation

    def report(self) -> Report:
        """What the latest generation computed with it, and what that cost."""
        masked, notes = self.masked, self.source.notes
        if masked is None:
            return Report((), 0, 0.0, 0.0, 0, 0, Macs(0, 0), Macs(0, 0), 0, (), None, notes)
        generation = masked.generation  # what is there now: the model may run meanwhile, in another thread
        copies = (replace(record, calls=list(record.calls)) for record in list(generation.records))
        records = tuple(record for record in copies if record.calls)  # a step that is just beginning has none
        costs = self._count_operations(masked, generation, records)
        steps = tuple(record.report() for record in records)
        macs, dense_macs = Macs(0, 0), Macs(0, 0)
        for record in records:
            for call in record.calls:
                macs += costs[call.branch, call.form, Computed(call.tokens, call.with_text)]
                dense_macs += costs[call.branch, call.form, None]
        return Report(
            steps=steps,
            generations=masked.generations,
            seconds=sum(step.seconds for step in steps),
            selection_seconds=sum(step.selection_seconds for step in steps),
            tokens=sum(step.tokens for step in steps),
            dense_tokens=sum(step.num_tokens for step in steps),
            macs=macs,
            dense_macs=dense_macs,
            cache_bytes=masked.peak_bytes,
            grid=generation.view.grid,
            token_counts=history.counts.clone() if (history := generation.history) else None,
            notes=notes,
            host_cache_bytes=masked.peak_host_bytes,
        )

    def trace(self) -> Trace:
        """What the latest generation did with it.

        Raises:
            TraceError: `apply` was not asked to trace, or it was not called yet.
        """
        generation = self.masked.generation if self.masked is not None else None
        if generation is None or generation.recorder is None:
            raise TraceError("trace: nothing was recorded; ask for it beforehand with apply(..., trace=True)")
        return generation.recorder.trace(generation.records, generation.view.grid)

    def _count_operations(
        self, masked: MaskedModule, generation: Generation, records: Sequence[StepRecord]
    ) -> dict[tuple[BranchKey, Form, Computed | None], Macs]:
        """What the recorded calls cost, by branch, form and what they computed; None stands for the plain model."""
        found: dict[tuple[BranchKey, Form, Computed | None], Macs] = {}
        for (branch, form), example in dict(generation.examples).items():
            alike = [c for record in records for c in record.calls if (c.branch, c.form) == (branch, form)]
            for with_text in (True, False):
                wanted = {Computed(c.tokens, with_text) for c in alike if c.with_text is with_text and c.tokens}
                missing = sorted(each.tokens for each in wanted if (form, each) not in self._costs)
                if missing or (form, None) not in self._costs:
                    full, pruned = count_steps(masked.model, masked.map, example, missing, with_text)
                    self._costs[form, None] = full
                    self._costs.update({(form, Computed(n, with_text)): cost for n, cost in pruned.items()})
                found.update({(branch, form, computed): self._costs[form, computed] for computed in wanted})
            found[branch, form, Computed(0)], found[branch, form, None] = Macs(0, 0), self._costs[form, None]
        return found
