"""A bench run: every configuration of a suite, one after the other, into a result file."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tokenprune.bench.configuration import Configuration
from tokenprune.bench.measure import Drawn, Pictures, Task, draw, fidelity, mean_and_ci95
from tokenprune.bench.results import Results, resume

Score = Callable[[Pictures], dict[str, Any]]
"""Quality of pictures without a reference: figures by name."""


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {name: version(name) for name in ("tokenprune-dit", "torch", "diffusers")}


def machine() -> str:
    """Processor and threads, or the device's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def run(
    pipe: Any,
    configurations: Sequence[Configuration],
    task: Task,
    out: Path,
    settings: dict[str, Any],
    score: Score | None = None,
    begin: Callable[[Configuration], None] | None = None,
) -> Results:
    """Measure what `out` does not hold yet; each configuration is saved when it is done.

    Args:
        pipe: a pipeline with a `transformer`.
        configurations: with unique names; the reference is the plain model at the task's steps.
        task: what to draw.
        out: the JSON file.
        settings: what the rows depend on, beside the task.
        score: quality without a reference.
        begin: told of each configuration before it is drawn.
    """
    described = {
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        "prompts": len(task.prompts),
        "batch": task.batch,
        "versions": versions(),
        "machine": machine(),
        "date": date.today().isoformat(),
    }
    results = resume(out, {**settings, **described})
    wanted = [configuration for configuration in configurations if results.row(configuration.name) is None]
    if not wanted:
        return results
    reference = Configuration(f"plain, {task.steps} steps")
    begin = begin or (lambda _: None)
    begin(reference)
    dense = draw(pipe, reference, task)
    for configuration in wanted:
        drawn = dense
        if configuration.plan is not None or configuration.steps not in (None, task.steps):
            begin(configuration)
            drawn = draw(pipe, configuration, task)
        results.rows.append(_row(configuration, drawn, dense.pictures, task, score))
        results.save(out)
    return results


def _row(
    configuration: Configuration, drawn: Drawn, reference: Pictures, task: Task, score: Score | None
) -> dict[str, Any]:
    closeness = fidelity(drawn.pictures, reference)
    psnr, psnr_ci95 = mean_and_ci95(closeness["psnr"])
    return {
        "name": configuration.name,
        "source": configuration.source,
        "steps": configuration.steps or task.steps,
        "plan": None if configuration.plan is None else repr(configuration.plan),
        "tokens_ratio": drawn.tokens_ratio,
        "mac_ratio": drawn.linear_mac_ratio,
        "total_mac_ratio": drawn.mac_ratio,
        "ideal_speedup": 1 / drawn.mac_ratio,
        "cache_bytes": drawn.cache_bytes,
        "psnr_mean": psnr,
        "psnr_ci95": psnr_ci95,
        "psnr_of_each": [round(value, 3) for value in closeness["psnr"]],
        "ssim_mean": mean_and_ci95(closeness["ssim"])[0],
        "prompts": len(task.prompts),
        **({} if score is None else score(drawn.pictures)),
    }
