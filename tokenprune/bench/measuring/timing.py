"""Timing a configuration against the plain model: in pairs, taking turns, in one process."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.measuring.measure import Task, generate
from tokenprune.bench.measuring.memory import peak_memory
from tokenprune.bench.measuring.speed import median_and_spread, speed_of
from tokenprune.reports.records import Stopwatch
from tokenprune.reports.report import Report


@dataclass(frozen=True)
class Timed:
    """One generation on the clock.

    Attributes:
        seconds: of the whole call of the pipeline.
        steps: seconds within the transformer, its hooks included, of each step of the sampler.
        report: of the handle, where there is one.
    """

    seconds: float
    steps: tuple[float, ...]
    report: Report | None = None

    @property
    def transformer(self) -> float:
        """Seconds within the transformer."""
        return sum(self.steps)


@dataclass(frozen=True)
class Timing:
    """What pairs of generations, one plain and one of the configuration, took.

    Attributes:
        pairs: (plain, configuration).
        batch: pictures of a generation.
        peak_memory_bytes: see `peak_memory`; of a generation that is not timed; None where it cannot be told.
        bounded: whether no ratio above that of the operations can be right; compiled code may be faster than that.
    """

    pairs: tuple[tuple[Timed, Timed], ...]
    batch: int
    peak_memory_bytes: int | None
    bounded: bool = True

    def row(self, ideal_speedup: float) -> dict[str, Any]:
        """The figures of a result file; docs/benchmarking.md says what they mean."""
        plain, own = ([pair[i] for pair in self.pairs] for i in (0, 1))
        per_image, image_spread = median_and_spread([timed.seconds / self.batch for timed in own])
        per_step, step_spread = median_and_spread([seconds for timed in own for seconds in timed.steps])
        allowed = ideal_speedup if self.bounded else None
        whole = speed_of([(a.seconds, b.seconds) for a, b in self.pairs], allowed)
        transformer = speed_of([(a.transformer, b.transformer) for a, b in self.pairs], allowed)
        return {
            "seconds_per_image": per_image,
            "seconds_per_image_spread": image_spread,
            "seconds_per_step": per_step,
            "seconds_per_step_spread": step_spread,
            "plain_seconds_per_image": _median([timed.seconds / self.batch for timed in plain]),
            "speedup": whole.ratio,
            "speedup_spread": whole.spread,
            "speedup_noise": whole.noise,
            "transformer_speedup": transformer.ratio,
            "transformer_speedup_spread": transformer.spread,
            "transformer_speedup_noise": transformer.noise,
            "reached": transformer.ratio / ideal_speedup if transformer.noise is None else None,
            "selection_share": _median([selection_share(timed.report) for timed in own]),
            "hook_overhead": hook_overhead(self.pairs),
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def time_pairs(pipe: Any, configuration: Configuration, task: Task, repeats: int, batch: int) -> Timing:
    """Generate the task's first prompts by the plain model and by the configuration, `repeats` times, taking turns.

    The configuration is put on the pipeline and taken off in each pair, and warmed up by a generation before the timed
    one; which of the two begins changes from pair to pair.

    Args:
        pipe: a pipeline with `transformer` and `scheduler`; left as it was.
        configuration: what to time.
        task: what to draw; the plain model takes its steps.
        repeats: pairs, at least 1.
        batch: pictures of a generation, from the task's first prompt; at most all.
    """
    places = range(batch)
    steps = configuration.steps or task.steps

    def plain() -> Timed:
        return timed(pipe, lambda: generate(pipe, task.steps, task, places))

    def own() -> Timed:
        with configuration.on(pipe) as handle:
            generate(pipe, steps, task, places)
            taken = timed(pipe, lambda: generate(pipe, steps, task, places))
            return Timed(taken.seconds, taken.steps, None if handle is None else handle.report())

    generate(pipe, task.steps, task, places)
    peak_bytes = watch_memory(pipe, configuration, lambda: generate(pipe, steps, task, places))
    pairs = []
    for pair in range(repeats):
        if pair % 2 == 0:
            first = plain()
            pairs.append((first, own()))
        else:
            first = own()
            pairs.append((plain(), first))
    return Timing(tuple(pairs), batch, peak_bytes, bounded=not configuration.compiled)


def watch_memory(pipe: Any, configuration: Configuration, draw: Callable[[], Any]) -> int | None:
    """Peak memory of one generation in bytes; None for compiled code that does not run on CUDA."""
    device: torch.device = pipe._execution_device
    if configuration.compiled and device.type != "cuda":
        return None
    with peak_memory(device) as peak, configuration.on(pipe):
        peak.restart()  # what putting it on took at times, such as a calibration, does not count
        draw()
    return peak.nbytes


def timed(pipe: Any, draw: Callable[[], Any]) -> Timed:
    """Run one generation of the pipeline on the clock; the device is synchronised before and after."""
    device = pipe._execution_device
    gc.collect()
    with watching_steps(pipe, device) as steps:
        _synchronise(device)
        start = time.perf_counter()
        draw()
        _synchronise(device)
        seconds = time.perf_counter() - start
    return Timed(seconds, tuple(sum(watch.seconds for watch in calls) for calls in steps if calls))


@contextlib.contextmanager
def watching_steps(pipe: Any, device: torch.device) -> Iterator[list[list[Stopwatch]]]:
    """A stopwatch for each call of the transformer, in lists: one for each step of the scheduler, and one more.

    Hooks that are on the transformer before the context are on the clock, too.
    """
    found: list[list[Stopwatch]] = [[]]
    step = pipe.scheduler.step

    @wraps(step)
    def noting(*args: Any, **kwargs: Any) -> Any:
        found.append([])
        return step(*args, **kwargs)

    model = pipe.transformer
    before = model.register_forward_pre_hook(lambda *_: found[-1].append(Stopwatch(device)), prepend=True)
    after = model.register_forward_hook(lambda *_: found[-1][-1].mark())
    pipe.scheduler.step = noting
    try:
        yield found
    finally:
        del pipe.scheduler.step
        before.remove()
        after.remove()


def selection_share(report: Report | None) -> float:
    """Share of the seconds in the model that went into choosing tokens; 0 without a report."""
    return 0.0 if report is None or not report.seconds else report.selection_seconds / report.seconds


def hook_overhead(pairs: tuple[tuple[Timed, Timed], ...]) -> float | None:
    """What a full step takes under the hooks beyond a step of the plain model, as a share of the latter (medians).

    None without reports, where no step was full, or where reports count other steps than the scheduler.
    """
    full = [
        seconds
        for _, own in pairs
        if own.report is not None and len(own.report.steps) == len(own.steps)
        for seconds, step in zip(own.steps, own.report.steps, strict=True)
        if step.full
    ]
    return _median(full) / _median([seconds for plain, _ in pairs for seconds in plain.steps]) - 1 if full else None


def _median(values: list[float]) -> float:
    return median_and_spread(values)[0]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
