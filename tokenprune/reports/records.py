"""What is recorded of every call and step while a generation runs."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenprune.ops.guidance import BranchKey
from tokenprune.reports.report import StepReport


class Stopwatch:
    """Seconds from its making to the last `mark`: wall time on the CPU, on CUDA events that are read when asked for."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start = self._end = self._now()

    def mark(self) -> None:
        """Take the time."""
        self._end = self._now()

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last mark; waits for the device."""
        if isinstance(self._start, float) or isinstance(self._end, float):
            return float(self._end) - float(self._start)
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class CallRecord:
    """One call of the model.

    Attributes:
        branch: the guidance branch that it belongs to.
        tokens: how many image tokens of each image it computed.
        watch: its stopwatch.
        form: what its operations go by, beside tokens.
        with_text: whether it computed the text tokens of joint sequences.
    """

    branch: BranchKey
    tokens: int
    watch: Stopwatch
    form: tuple[Hashable, ...] = ()
    with_text: bool = True


@dataclass
class StepRecord:
    """One step of a generation, as it happens.

    Attributes:
        step: index of the step.
        time: timestep as the model received it.
        tokens: image tokens to compute, of each image.
        num_tokens: N, image tokens of each image.
        selection_watch: stopwatch of the selection, None at a full step.
        calls: the calls of the model (guidance branches) so far.
        correction: how far a corrector moved the latents, as a root mean square; None where it did not.
    """

    step: int
    time: float
    tokens: int
    num_tokens: int
    selection_watch: Stopwatch | None
    calls: list[CallRecord] = field(default_factory=list)
    correction: torch.Tensor | None = None

    def report(self) -> StepReport:
        """What has become of it so far; waits for the device."""
        selecting = self.selection_watch.seconds if self.selection_watch else 0.0
        tokens = max((call.tokens for call in self.calls), default=0)
        return StepReport(
            step=self.step,
            time=self.time,
            tokens=tokens,
            num_tokens=self.num_tokens,
            full=tokens == self.num_tokens,
            seconds=sum(call.watch.seconds for call in self.calls) + selecting,
            selection_seconds=selecting,
            correction=None if self.correction is None else float(self.correction),
        )
