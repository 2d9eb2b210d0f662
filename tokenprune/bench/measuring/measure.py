"""Drawing the prompts of a bench run with one configuration, and comparing the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.measuring.fidelity import Pictures
from tokenprune.macs.counting import counting_calls
from tokenprune.reports.report import Macs


@dataclass(frozen=True)
class Task:
    """What every configuration draws.

    Attributes:
        prompts: one picture each; picture i starts from the noise of seed i.
        steps: steps of the sampler.
        guidance_scale: classifier-free guidance; None leaves it to the pipeline.
        batch: pictures drawn at a time.
        arguments: further arguments of the pipeline's call.
    """

    prompts: Sequence[str]
    steps: int
    guidance_scale: float | None
    batch: int
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Samples:
    """Pictures, and what they cost as shares of the plain model's at the same number of steps.

    Attributes:
        pictures: [P, height, width, 3], 0 to 1.
        tokens_ratio: image tokens computed; None where that cannot be told.
        mac_ratio: multiply-accumulates of linear layers and attention.
        linear_mac_ratio: those of the linear layers alone.
        cache_bytes: largest memory that the caches held, for one batch; None where that cannot be told.
    """

    pictures: Pictures
    tokens_ratio: float | None = 1.0
    mac_ratio: float = 1.0
    linear_mac_ratio: float = 1.0
    cache_bytes: int | None = 0


def batches(task: Task) -> list[range]:
    """The places of the task's prompts that are drawn at a time."""
    starts = range(0, len(task.prompts), task.batch)
    return [range(start, min(start + task.batch, len(task.prompts))) for start in starts]


def draw(pipe: Any, configuration: Configuration, task: Task, at: Sequence[range] | None = None) -> Samples:
    """Draw the task's prompts, or the given batches of them; the pipeline is left as it was.

    What a method of another package computes is counted, in one further generation of the first prompt.
    """
    steps = configuration.steps or task.steps
    scale = steps / task.steps
    plain = None if configuration.attach is None else count(pipe, task.steps, task)
    with configuration.on(pipe) as handle:
        pictures = draw_all(pipe, steps, task, at)
        report = handle.report() if handle is not None else None
        own = None if plain is None else count(pipe, steps, task)
    if plain is not None and own is not None:
        return Samples(pictures, None, own.total / plain.total, own.linear / plain.linear, None)
    if report is None:
        return Samples(pictures, scale, scale, scale)
    return Samples(
        pictures,
        tokens_ratio=scale * report.tokens_ratio,
        mac_ratio=scale * report.mac_ratio,
        linear_mac_ratio=scale * report.macs.linear / report.dense_macs.linear,
        cache_bytes=report.cache_bytes,
    )


def draw_all(pipe: Any, steps: int, task: Task, at: Sequence[range] | None = None) -> Pictures:
    """Pictures of all prompts of the task, or of the given batches, with the pipeline as it is."""
    return np.concatenate([generate(pipe, steps, task, places) for places in (batches(task) if at is None else at)])


def generate(pipe: Any, steps: int, task: Task, places: Sequence[int]) -> Pictures:
    """One call of the pipeline for the prompts at some places of the task: pictures [P, height, width, 3], 0 to 1."""
    prompts = [task.prompts[place] for place in places]
    return call(pipe, prompts, places, steps, task.guidance_scale, task.arguments)


def call(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float | None,
    arguments: Mapping[str, Any],
) -> Pictures:
    """One call of the pipeline: pictures [P, height, width, 3], 0 to 1, each from the noise of its own seed."""
    guidance = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    result = pipe(
        prompt=list(prompts),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        **guidance,
        **arguments,
    )
    pictures: Pictures = result.images
    return pictures


def count(pipe: Any, steps: int, task: Task) -> Macs:
    """Operations of the transformer in a generation of the task's first prompt, with the pipeline as it is."""
    with counting_calls(pipe.transformer) as calls:
        generate(pipe, steps, task, range(1))
    return calls.macs
