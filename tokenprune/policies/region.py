"""A region of interest around any policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.ops.grid import TokenGrid
from tokenprune.policies._composition import namespace, preference
from tokenprune.policies.base import Memory, Observation, ScorePolicy, SelectionPolicy
from tokenprune.policies.description import Description
from tokenprune.policies.error_controlled import ErrorControlledPolicy
from tokenprune.schedule import Schedule


@dataclass(frozen=True, eq=False)
class RegionPolicy(ScorePolicy):
    """Compute a region first, the rest as another policy chooses, and excluded tokens last.

    Our own; no paper. The score is minus the place in the order: tokens of the region, then all others, then excluded
    tokens; within each of the three by the inner policy's preference. So the region is covered whenever it has at
    most n tokens, and an excluded token is computed only when fewer than n others exist. A token that is in both is
    excluded. Cost: the inner policy's, and two sorts.

    The preference of an inner `ScorePolicy` is its score. Any other policy is asked once, for `n` tokens; those are
    preferred, and on either side of that cut the tokens not computed for longest, then the first in the grid.
    The inner policy sees as `previous` what was really selected. Its alpha, warm-up, schedule and needs hold here, too.

    Args:
        inner: the policy that chooses where the region leaves a choice.
        mask: the region, bool, over the token grid or over pixels or latents whose extents are whole multiples of
            the grid's; a token belongs to the region if any of its pixels does. On a video grid (t, h, w) a mask of
            one frame holds for all. The same for every image.
        exclude: tokens never computed as far as n allows (such as a reference image's), given like `mask`; a token
            is excluded if all of its pixels are.

    Raises:
        ValueError: neither mask nor exclude is given, or one is not bool; at the first selection, if its extents are
            no multiples of the grid's.
    """

    description: ClassVar[Description] = Description(
        "a region first, excluded tokens last, the rest by another policy",
        "ours",
        "the inner policy's, two sorts",
        "the inner policy's",
    )

    alpha: float = field(init=False, default=0.3)
    warmup_steps: int = field(init=False, default=8)
    inner: SelectionPolicy
    mask: Tensor | None = field(default=None, repr=False)
    exclude: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.mask is None and self.exclude is None:
            raise ValueError("mask: expected a region or tokens to exclude, got neither")
        for name in ("mask", "exclude"):
            given = getattr(self, name)
            if given is not None and given.dtype != torch.bool:
                raise ValueError(f"{name}: expected dtype torch.bool, got {given.dtype}")
        for name in ("alpha", "warmup_steps", "needs"):
            object.__setattr__(self, name, getattr(self.inner, name))
        super().__post_init__()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @classmethod
    def examples(cls, grid: TokenGrid) -> dict[str, SelectionPolicy]:
        """A region of the second quarter along each axis."""
        mask = torch.zeros(grid, dtype=torch.bool)
        mask[tuple(slice(extent // 4, extent // 2) for extent in grid)] = True
        return {"RegionPolicy(ErrorControlledPolicy(), mask)": cls(ErrorControlledPolicy(), mask)}

    def schedule(self) -> Schedule:
        """The inner policy's."""
        return self.inner.schedule()

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """The inner policy's."""
        return self.inner.weigh_attention(query, key, scale)

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        """Minus the place of every token [B, N] in the order of selection."""
        images, tokens = seen.prediction.shape[:2]
        if "level" not in memory:
            memory["level"] = self._level(seen.grid, seen.prediction.device).expand(images, -1)
        with namespace(memory, "inner") as inner_memory:
            places = preference(self.inner, seen, inner_memory, seen.count)
        return -(memory["level"] * tokens + places)

    def _level(self, grid: TokenGrid, device: torch.device) -> Tensor:
        """0 in the region, 1 outside, 2 where excluded [N]."""
        level = torch.ones(grid, dtype=torch.int64, device=device)
        if self.mask is not None:
            inside = _pixels_by_token("mask", self.mask, grid, device).any(dim=-1)
            level = level.masked_fill(inside, 0)
        if self.exclude is not None:
            outside = _pixels_by_token("exclude", self.exclude, grid, device).all(dim=-1)
            level = level.masked_fill(outside, 2)
        return level.flatten()


def _pixels_by_token(name: str, mask: Tensor, grid: TokenGrid, device: torch.device) -> Tensor:
    """The mask's pixels in every token [*grid, pixels]."""
    one_frame = len(grid) == 3 and mask.ndim == 2
    frames = mask.expand(grid[0], *mask.shape) if one_frame else mask
    fits = frames.ndim == len(grid) and all(m > 0 and m % g == 0 for m, g in zip(frames.shape, grid, strict=True))
    if not fits:
        expected = f"extents that are whole multiples of the token grid's {list(grid)}"
        raise ValueError(f"{name}: expected {expected}, got {list(mask.shape)}")
    for axis, extent in enumerate(grid):
        frames = frames.unflatten(2 * axis, (extent, -1))
    order = [*range(0, 2 * len(grid), 2), *range(1, 2 * len(grid), 2)]
    return frames.permute(order).flatten(len(grid)).to(device, non_blocking=True)
