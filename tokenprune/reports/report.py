"""What a handle tells about its generations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from tokenprune.ops.grid import TokenGrid
from tokenprune.reports.html import facts, folded
from tokenprune.units import memory_in_words


@dataclass(frozen=True)
class StepReport:
    """One step: `tokens` of `num_tokens` computed per image, whether it was `full`, its `seconds`.

    `correction` is how far a `Corrector` moved the latents, as a root mean square; None where it did not.
    """

    step: int
    time: float
    tokens: int
    num_tokens: int
    full: bool
    seconds: float
    selection_seconds: float
    correction: float | None = None

    @property
    def kind(self) -> Literal["full", "pruned", "skipped"]:
        """Whether all tokens were computed, some, or none."""
        if self.full:
            return "full"
        return "pruned" if self.tokens else "skipped"


STEP_COLUMNS = ("step", "time", "tokens", "kind", "seconds")
"""Of a table of steps."""


def step_cells(step: StepReport) -> tuple[object, ...]:
    """The cells of one step."""
    return step.step, f"{step.time:g}", f"{step.tokens} of {step.num_tokens}", step.kind, f"{step.seconds:.4f}"


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulate operations: `linear` layers and convolutions, `attention` products."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: float) -> Macs:
        return Macs(self.linear * times, self.attention * times)


@dataclass(frozen=True)
class Report:
    """The latest generation of a handle.

    Attributes:
        steps: every step of it, in order.
        generations: generations since `apply`.
        seconds: seconds spent in the model.
        selection_seconds: seconds of these spent choosing tokens.
        tokens: image tokens computed, of each image, over all steps.
        dense_tokens: the same for the plain model.
        macs: operations of the model in this generation.
        dense_macs: the same for the plain model.
        cache_bytes: largest memory that the caches held on the model's own devices, in bytes, since `apply`.
        grid: extents of the token grid.
        token_counts: how many steps computed each token [B, N], None before the first step.
        notes: how discovery stands, and what it could not know, of a model that no adapter serves.
        transformers: where a handle prunes several, the report of each by its name in the pipeline, on the latest
            generation that called it; all else counts them together.
        host_cache_bytes: largest memory that keys and values held in host memory, where `cache_device` puts them there.
    """

    steps: tuple[StepReport, ...]
    generations: int
    seconds: float
    selection_seconds: float
    tokens: int
    dense_tokens: int
    macs: Macs
    dense_macs: Macs
    cache_bytes: int
    grid: TokenGrid
    token_counts: Tensor | None
    notes: tuple[str, ...] = ()
    transformers: Mapping[str, Report] = field(default_factory=dict)
    host_cache_bytes: int = 0

    @property
    def tokens_ratio(self) -> float:
        """Share of the plain model's token computations that were made, 0 to 1."""
        return self.tokens / self.dense_tokens if self.dense_tokens else 1.0

    @property
    def mac_ratio(self) -> float:
        """Share of the plain model's operations (attention included) that were made, 0 to 1."""
        return self.macs.total / self.dense_macs.total if self.dense_macs.total else 1.0

    @property
    def ideal_speedup(self) -> float:
        """Speed ratio to the plain model that the operations allow."""
        return 1 / self.mac_ratio

    @property
    def _caches(self) -> str:
        """What the caches held, in words."""
        host = f" and {memory_in_words(self.host_cache_bytes)} in host memory" if self.host_cache_bytes else ""
        return f"{memory_in_words(self.cache_bytes)}{host}"

    def __repr__(self) -> str:
        if not self.steps:
            return "Report(no steps yet)"
        return (
            f"Report({len(self.steps)} steps, {self.tokens_ratio:.1%} of the tokens, {self.mac_ratio:.1%} of the MACs, "
            f"{self.seconds:.2f} s)"
        )

    def _repr_html_(self) -> str:
        if not self.steps:
            return facts("Report", [("steps", "none yet"), *(("note", note) for note in self.notes)])
        full = sum(step.full for step in self.steps)
        rows = [
            ("steps", f"{len(self.steps)}, of which {full} full"),
            ("tokens", f"{self.tokens_ratio:.1%} of the plain model's"),
            ("MACs", f"{self.mac_ratio:.1%} of the plain model's, which allows {self.ideal_speedup:.2f}x"),
            ("seconds in the model", f"{self.seconds:.2f}, of which {self.selection_seconds:.3f} choosing tokens"),
            ("caches", self._caches),
            *(("note", note) for note in self.notes),
        ]
        return facts("Report", rows, folded("steps", STEP_COLUMNS, map(step_cells, self.steps)))

    def __str__(self) -> str:
        if not self.steps:
            return "; ".join(["no steps yet", *self.notes])
        full = sum(step.full for step in self.steps)
        return (
            f"{len(self.steps)} steps ({full} full, {len(self.steps) - full} pruned), {self.seconds:.2f} s in the "
            f"model, {self.selection_seconds:.3f} s of it choosing tokens; {self.tokens_ratio:.1%} of the tokens and "
            f"{self.mac_ratio:.1%} of the MACs of the plain model ({self.ideal_speedup:.2f}x allowed); caches "
            f"{self._caches}"
            + "".join(f"; {note}" for note in self.notes)
            + "".join(
                f"; {name}: {len(report.steps)} steps, {report.mac_ratio:.1%} of the MACs"
                for name, report in self.transformers.items()
            )
        )
