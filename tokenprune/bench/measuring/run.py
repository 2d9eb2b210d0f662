"""A bench run: every configuration of a suite, one after the other, into a result file."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.measuring.fidelity import Pictures, in_bytes, mean_of, psnr_of_each, psnr_summary, ssim_of_each
from tokenprune.bench.measuring.measure import Samples, Task
from tokenprune.bench.measuring.processes import ProcessError, draw_together, is_main, on_main
from tokenprune.bench.measuring.result_file import COMPARED, VOLATILE, Results, resume
from tokenprune.bench.measuring.timing import time_pairs

Score = Callable[[NDArray[np.uint8]], dict[str, Any]]
"""Quality of pictures in bytes [P, height, width, 3] without a reference: figures by name."""


Metrics = Callable[[Pictures, Pictures, Sequence[str]], dict[str, float | None]]
"""Metrics of pictures, with the plain model's of the same seeds and the prompts: figures by name."""


LONGEST_ERROR = 300
"""Characters of an error that a result file keeps."""


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: version(name) for name in ("tokenprune-dit", "torch", "diffusers")}


def machine() -> str:
    """Processor and threads, or the device's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def stamp() -> dict[str, Any]:
    """Versions, machine and date of what is measured now."""
    return {"versions": versions(), "machine": machine(), "date": date.today().isoformat()}


def run(
    pipe: Any,
    configurations: Sequence[Configuration],
    task: Task,
    out: Path,
    settings: dict[str, Any],
    score: Score | None = None,
    begin: Callable[[Configuration], None] | None = None,
    expect: Callable[[int], None] | None = None,
    repeats: int = 0,
    timing_batch: int = 1,
    renew: Callable[[], Any] | None = None,
    quality: Metrics | None = None,
) -> Results:
    """Measure what `out` does not hold yet; each configuration is saved when it is done.

    A configuration that fails becomes a row that says so, and is tried again when the run is taken up again. Under
    `accelerate launch` the processes share the prompts; the main one times, scores and writes, all return the results.

    Args:
        pipe: a pipeline with `transformer` and `scheduler`.
        configurations: with unique names; the reference is the plain model at the task's steps.
        task: what to draw.
        out: the JSON file.
        settings: what the rows depend on, beside the task.
        score: quality without a reference.
        begin: told of each configuration before it is drawn, in the main process.
        expect: told before that how many it will be told of.
        repeats: pairs of generations that time each configuration; 0 times nothing.
        timing_batch: pictures of a timed generation, at most the task's prompts.
        renew: makes a fresh pipeline, to go on with after a failure and after a method of another package.
        quality: metrics that look at the plain model's pictures or at the prompts.

    Raises:
        ResultFileError: `out` is another run's, or cannot be read.
        Exception: the plain model fails, or the score or a metric does.
    """
    main = is_main()
    timing_batch = min(timing_batch, len(task.prompts))
    results = resume(out, {**settings, **describe(task, repeats, timing_batch)}, () if repeats else VOLATILE)
    wanted = [one for one in configurations if "error" in (results.row(one.name) or {"error": None})]
    if not wanted:
        return results
    reference = Configuration(f"plain, {task.steps} steps")
    begin = begin if begin is not None and main else lambda _: None
    if expect is not None:
        expect(1 + sum(not is_plain(one, task.steps) for one in wanted))
    begin(reference)
    dense = draw_together(pipe, reference, task)
    stale = False

    def measure(configuration: Configuration, drawn: Samples) -> dict[str, Any]:
        figures = figures_of(drawn, dense.pictures)
        if repeats:
            timing = time_pairs(pipe, configuration, task, repeats, timing_batch)
            figures |= timing.row(figures["ideal_speedup"])
        return figures

    for configuration in wanted:
        same = is_plain(configuration, task.steps)
        if stale and renew is not None:
            pipe = renew()
        stale = configuration.attach is not None
        if not same:
            begin(configuration)
        row = {
            "name": configuration.name,
            "source": configuration.source,
            "model": settings.get("model", type(pipe).__name__),
            "steps": configuration.steps or task.steps,
            "plan": None if configuration.plan is None else repr(configuration.plan),
            "prompts": len(task.prompts),
        }
        try:
            drawn = dense if same else draw_together(pipe, configuration, task)
            row |= on_main(partial(measure, configuration, drawn))
        except Exception as error:
            row["error"] = error_line(error)
            stale = True
        else:
            row |= {} if score is None else on_main(partial(score, in_bytes(drawn.pictures)))
            if quality is not None:
                row |= on_main(partial(quality, drawn.pictures, dense.pictures, task.prompts))
        results.put(row)
        if main:
            results.save(out)
    return results


def describe(task: Task, repeats: int, timing_batch: int) -> dict[str, Any]:
    """The settings of a result file that a task and its timing make."""
    timing = {"timing_batch": timing_batch, "threads": torch.get_num_threads()} if repeats else {}
    return {
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "prompts": len(task.prompts),
        "batch": task.batch,
        "repeats": repeats,
        "compared": COMPARED,
        **timing,
        **stamp(),
    }


def is_plain(configuration: Configuration, steps: int) -> bool:
    """Whether a configuration is the plain model at that number of steps."""
    others = configuration.plan or configuration.attach or configuration.compiled
    return not others and configuration.steps in (None, steps)


def figures_of(drawn: Samples, reference: Pictures) -> dict[str, Any]:
    """What drawing computed and kept, and how near its pictures are to the reference's."""
    psnr = psnr_of_each(drawn.pictures, reference)
    psnr_mean, psnr_ci95 = psnr_summary(psnr)
    return {
        "tokens_ratio": drawn.tokens_ratio,
        "mac_ratio": drawn.linear_mac_ratio,
        "total_mac_ratio": drawn.mac_ratio,
        "ideal_speedup": 1 / drawn.mac_ratio,
        "cache_bytes": drawn.cache_bytes,
        "psnr_mean": psnr_mean,
        "psnr_ci95": psnr_ci95,
        "psnr_of_each": [None if value is None else round(value, 3) for value in psnr],
        "ssim_mean": mean_of(ssim_of_each(drawn.pictures, reference)),
    }


def error_line(error: Exception) -> str:
    """Class and message of an error on one line of bounded length."""
    text = " ".join((str(error) if isinstance(error, ProcessError) else f"{type(error).__name__}: {error}").split())
    return text if len(text) <= LONGEST_ERROR else text[: LONGEST_ERROR - 3] + "..."
