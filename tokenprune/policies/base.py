"""The interface of a selection policy: what it sees, what it may remember, what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokenprune.ops.grid import TokenGrid
from tokenprune.ops.selection import Selection
from tokenprune.policies.description import Description
from tokenprune.schedule import Schedule, WarmupSchedule
from tokenprune.setting_types import Settings

Need = Literal["forecast_error", "attention"]


Memory = dict[str, Tensor]
"""A policy's own tensors for one generation: empty at its start, one row per image, thrown away at its end."""


@dataclass(frozen=True)
class Observation:
    """What is known before a pruned step.

    Predictions are what the model returned for the conditional branch (the guided combination if asked for), in
    token space: B images, N tokens, C channels of noise per token (learned variance left out).

    Attributes:
        prediction: the latest prediction n_i [B, N, C]; rows not computed last step are reused ones.
        reference: n_t0 [B, N, C], the prediction of the step before the last full step.
        count: n, how many tokens to select.
        grid: extents of the token grid, with product N.
        step: index of the coming step in its generation, from 0.
        pruned_steps: pruned steps since the last full step; 0 for the first.
        time: timestep of the coming step as the model receives it.
        previous: the selection of the last pruned step, None before the first.
        age: steps since each token was last computed [B, N], int32; 1 for a token computed at the last step.
        forecast_error: how far each token's prediction was from its forecast when it was last computed,
            ||fresh - forecast||_2 [B, N], float32, 0 before there was a forecast; None unless the policy needs it.
            Where both halves of guidance share a batch, of the guided prediction (by a usual scale, if unknown).
        gap: the age each token had reached at that computation [B, N], int32; None if there is no forecast error.
        attention: what `SelectionPolicy.weigh_attention` made of the last full step, mean over the attention modules
            [B, N], float32; None unless the policy needs it.
    """

    prediction: Tensor
    reference: Tensor
    count: int
    grid: TokenGrid
    step: int
    pruned_steps: int
    time: float
    previous: Selection | None
    age: Tensor | None = None
    forecast_error: Tensor | None = None
    gap: Tensor | None = None
    attention: Tensor | None = None

    @property
    def relative_noise(self) -> Tensor:
        """RN_i = n_i - n_t0 [B, N, C] (CAT Pruning, section 3.2); NaN, which a broken model gives, reads as 0."""
        return (self.prediction - self.reference).float().nan_to_num()


@dataclass(frozen=True)
class SelectionPolicy(Settings, ABC):
    """Chooses the tokens of every pruned step.

    A policy is a set of settings; what it must remember during a generation goes into `memory`. An image's
    selection must not depend on the other images of the batch.

    Args:
        alpha: fraction of image tokens computed at a pruned step, above 0 up to 1 (1: never pruned).
        warmup_steps: full steps at the start of each generation, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    """What the engine must collect beyond predictions, selections and ages: "forecast_error", "attention"."""

    description: ClassVar[Description | None] = None
    """What suites, figures, benchmarks and docs should know of it; those of other packages need none."""

    alpha: float = 0.3
    warmup_steps: int = 8

    def __post_init__(self) -> None:
        self.schedule()

    def schedule(self) -> Schedule:
        """How many tokens each step computes, unless `apply` is given another schedule."""
        return WarmupSchedule(self.alpha, self.warmup_steps)

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """What one attention module says of the image tokens at a full step: [B, N], float32.

        Called for every attention module, only where `needs` has "attention", at the last full step before a pruned
        one; at other full steps where the schedule does not tell what comes (`Schedule.may_prune_after`). Of
        guidance's branches it is shown the conditional one. Must not keep its arguments.

        Args:
            query: queries of the image tokens [B, H, N, D], as they go into the attention, of the model's type.
            key: their keys [B, H, N, D].
            scale: the attention map is softmax(scale * query key^T).
        """
        raise NotImplementedError(f"{type(self).__name__} needs attention statistics: define its weigh_attention")

    @classmethod
    def examples(cls, grid: TokenGrid) -> dict[str, SelectionPolicy]:
        """Policies of this class to measure a selection's cost with on a grid, by the code that makes them."""
        variants = cls.description.variants if cls.description is not None else ()
        return {variant.code(cls): variant.make(cls) for variant in variants}

    @abstractmethod
    def select(self, seen: Observation, memory: Memory) -> Selection:
        """Select exactly `seen.count` tokens of every image."""


class ScorePolicy(SelectionPolicy):
    """A policy that only says how important each token is; the highest scores are selected."""

    @abstractmethod
    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """Scores [B, N]; higher means more important. Ties go to the first token in the grid."""

    def select(self, seen: Observation, memory: Memory) -> Selection:
        """The `seen.count` tokens with the highest scores."""
        return Selection.top(self.score(seen, memory), seen.count)
