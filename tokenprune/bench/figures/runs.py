"""Pictures to make figures of: each configuration draws once, traced, and is then remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

import tokenprune
from tokenprune.bench.measuring.fidelity import Picture, psnr
from tokenprune.handles import Handle
from tokenprune.policies import CATPolicy, DensePolicy
from tokenprune.policies.base import SelectionPolicy
from tokenprune.reports.report import Report
from tokenprune.reports.trace import Trace

FEWEST_PRUNED_STEPS = 3


@dataclass(frozen=True)
class Settings:
    """What all pictures of a set of figures have in common.

    Args:
        prompt: what to draw, where a figure is of one prompt.
        steps: steps of the sampler; at least three more than `warmup_steps`.
        warmup_steps: full steps at the start.
        alpha: fraction of image tokens computed at a pruned step, above 0, below 1.
        seed: seed of the initial noise.
        guidance_scale: of classifier-free guidance.

    Raises:
        ValueError: an argument is out of its range.
    """

    prompt: str
    steps: int = 28
    warmup_steps: int = 8
    alpha: float = 0.3
    seed: int = 0
    guidance_scale: float = 4.0

    def __post_init__(self) -> None:
        CATPolicy(self.alpha, self.warmup_steps)
        if self.alpha == 1:
            raise ValueError("alpha: expected a fraction below 1, which prunes something, got 1.0")
        if self.steps < self.warmup_steps + FEWEST_PRUNED_STEPS:
            fewest = self.warmup_steps + FEWEST_PRUNED_STEPS
            raise ValueError(
                f"steps: expected at least {fewest}, the full steps and {FEWEST_PRUNED_STEPS} pruned ones, "
                f"got {self.steps}"
            )


@dataclass(frozen=True, eq=False)
class Samples:
    """One picture [S, S, 3], and how it came about."""

    prompt: str
    picture: Picture
    trace: Trace
    _handle: Handle

    @cached_property
    def report(self) -> Report:
        """What it cost; counting the operations takes a while."""
        return self._handle.report()


class Runs:
    """Draws on demand.

    Args:
        pipe: a diffusers pipeline with a transformer.
        settings: what to draw, and how.
        arguments: what else the pipeline's calls need.
        own: policies of a user's own by name, shown beside the package's.
    """

    def __init__(
        self,
        pipe: Any,
        settings: Settings,
        arguments: Mapping[str, Any],
        own: Mapping[str, SelectionPolicy] | None = None,
    ) -> None:
        self.settings = settings
        self.own = dict(own or {})
        self._pipe = pipe
        self._arguments = arguments
        self._drawn: dict[tuple[SelectionPolicy, int, str], Samples] = {}

    def draw(self, policy: SelectionPolicy, steps: int | None = None, prompt: str | None = None) -> Samples:
        """The picture under a policy, of the prompt and in the steps of the settings unless told otherwise."""
        key = (policy, steps or self.settings.steps, prompt or self.settings.prompt)
        if key not in self._drawn:
            with tokenprune.apply(self._pipe, policy, trace=True) as handle:
                picture = self._picture(*key[1:])
                self._drawn[key] = Samples(key[2], picture, handle.trace, handle)
        return self._drawn[key]

    @property
    def dense(self) -> Samples:
        """The plain model's picture of the settings' prompt."""
        return self.dense_of(self.settings.prompt)

    def dense_of(self, prompt: str) -> Samples:
        """The plain model's picture of a prompt."""
        return self.draw(DensePolicy(), prompt=prompt)

    def fewer_steps(self, like: Samples) -> tuple[Samples, int]:
        """The plain model in as many steps as cost what another picture did, and how many those are."""
        steps = max(1, round(self.settings.steps * like.report.mac_ratio))
        return self.draw(DensePolicy(), steps), steps

    def psnr(self, drawn: Samples) -> float | None:
        """PSNR to the plain model's picture of the same prompt in dB; None where it is identical."""
        return psnr(drawn.picture, self.dense_of(drawn.prompt).picture, peak=255)

    def _picture(self, steps: int, prompt: str) -> Picture:
        result = self._pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=self.settings.guidance_scale,
            generator=torch.Generator().manual_seed(self.settings.seed),
            output_type="np",
            **self._arguments,
        )
        return (np.asarray(result.images[0]) * 255 + 0.5).clip(0, 255).astype(np.uint8)
