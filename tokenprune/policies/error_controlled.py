"""Selection by the error that not computing a token is expected to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.grid import neighbourhood, smooth
from tokenprune.policies.base import Memory, Need, Observation, ScorePolicy
from tokenprune.policies.description import Between, Description, OneOf, Variant


@dataclass(frozen=True)
class ErrorControlledPolicy(ScorePolicy):
    """Select the tokens whose forecast is expected to be furthest from what the model would say.

    Our own; no paper. A forecast of order p is off by an amount that grows like the (p + 1)-th power of the time it
    reaches ahead. When a token was last computed, its forecast reached `gap` steps ahead and was off by its error
    s = ||fresh - forecast||_2; left alone at the coming step it reaches `age` steps ahead. Hence

        score = (s + floor * mean(s)) * (age / gap)^(order + 1),

    averaged over a token's neighbourhood with Gaussian weights; higher is more important, the mean is over the tokens
    of the image. The floor keeps the score of every token growing, so that none starves. Neighbours are best computed
    together: they attend to each other most, and then find each other's keys and values fresh. Where nothing was
    surprising, or nothing is known yet, the oldest tokens come first. Steps stand for time: the samplers' timesteps are
    taken to be evenly spaced. Cost: a few element-wise operations, a small matrix product for each axis of the grid,
    and one sort; the engine keeps two numbers per token and forecasts the tokens that it computes.

    Args:
        order: p of the forecast in use: 0 for `Hold`, 1 and 2 for `Taylor` of that order.
        floor: fraction of the image's mean forecast error added to every token's, at least 0.
        smoothing: sigma of the neighbourhood in tokens; 0 leaves the scores as they are.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"forecast_error"})
    description: ClassVar[Description] = Description(
        "the largest expected error of the forecast",
        "ours",
        "element-wise",
        variants=(
            Variant(
                "error-controlled",
                "ours",
                suites={"ablations": (8, 4), "rivals": (4,)},
                searched={
                    "order": OneOf((0, 1)),
                    "floor": Between(0.01, 2.0, log=True),
                    "smoothing": Between(0.0, 3.0),
                },
            ),
        ),
    )

    order: int = 0
    floor: float = 0.1
    smoothing: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order < 0:
            raise ValueError(f"order: expected a whole number of at least 0, got {self.order!r}")
        if not 0 <= self.floor < float("inf"):
            raise ValueError(f"floor: expected a number of at least 0, got {self.floor}")
        if not 0 <= self.smoothing < float("inf"):
            raise ValueError(f"smoothing: expected a number of at least 0, got {self.smoothing}")

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """The expected error of every token [B, N], relative to the image's largest forecast error."""
        if seen.age is None:
            return torch.zeros(seen.prediction.shape[:2], device=seen.prediction.device)
        if seen.forecast_error is None or seen.gap is None:
            return seen.age.float()
        forecast_error = seen.forecast_error.float().nan_to_num()
        largest = forecast_error.amax(dim=1, keepdim=True)
        share = forecast_error / largest.clamp_min(torch.finfo(forecast_error.dtype).tiny)
        expected = share.add(share.mean(dim=1, keepdim=True), alpha=self.floor)
        reach = seen.age / seen.gap.clamp_min(1)
        for _ in range(self.order + 1):
            expected = expected * reach
        if self.smoothing > 0:
            expected = smooth(expected, seen.grid, self._neighbourhoods(seen, memory))
        return torch.where(largest > 0, expected, seen.age.float())

    def _neighbourhoods(self, seen: Observation, memory: Memory) -> list[Tensor]:
        """The weights of neighbours along each axis of the grid, made once."""
        for extent in seen.grid:
            if (name := f"neighbourhood {extent}") not in memory:
                weights = neighbourhood(extent, self.smoothing, seen.prediction.device)
                memory[name] = weights.expand(len(seen.prediction), -1, -1)
        return [memory[f"neighbourhood {extent}"][0] for extent in seen.grid]
