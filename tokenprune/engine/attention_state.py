"""What the hooks of attention modules find there: what the coming call computes, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.rows import Rows
from tokenprune.modulemap import AttentionSite, Layout
from tokenprune.ops.guidance import Guidance
from tokenprune.reuse.key_value import BufferKey, FreshKeys, KeyValueBuffer, Span

Weigh: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""A policy's `weigh_attention`: queries and keys of image tokens [B, H, N, D] and the scale to weights [B, N]."""


@dataclass(frozen=True)
class ImageTokens:
    """Where image tokens lie in the sequences of queries and keys of one module.

    Attributes:
        layout: how they lie beside text tokens.
        count: N, how many there are.
        starts: where they begin in each sequence [B], if that differs.
    """

    layout: Layout
    count: int = 0
    starts: Tensor | None = None

    def first(self, length: int) -> int:
        """Where image tokens begin among so many queries or keys; the last place where they do, if it differs."""
        return length - self.count if self.layout == "text-image" else 0

    def span(self, length: int) -> Span:
        """Where image tokens lie among so many queries or keys; anywhere, if it differs."""
        return (self.first(length), self.count) if self.starts is None else (0, length)

    def rows(self, sequence: Tensor) -> Tensor:
        """The image tokens' rows [B, H, N, D] of a full sequence of queries or keys."""
        if self.starts is None:
            return sequence.narrow(2, self.first(sequence.shape[2]), self.count)
        starts = self.starts.to(sequence.device)[:, None, None, None]
        places = torch.arange(self.count, device=sequence.device)[:, None]
        return torch.take_along_dim(sequence, starts + places, dim=2)


@dataclass(frozen=True)
class AttentionPlan:
    """What the coming call of the model computes in one attention module.

    Attributes:
        buffer: keys and values of the call's guidance branch.
        images: where image tokens lie.
        pruned: whether only some of the image tokens are computed.
        fresh: at a pruned call, which of the keys: selected image tokens and all text tokens.
        weighed: how guidance lies in the batch, where the policy wants to know the attention of its conditional half.
    """

    buffer: KeyValueBuffer
    images: ImageTokens
    pruned: bool = False
    fresh: FreshKeys | None = None
    weighed: Guidance | None = None


class AttentionState:
    """What the hooks of one attention module share; the module holds it under `ATTRIBUTE`.

    Args:
        site: where the module is and how its keys lie.
        weigh: the policy's `weigh_attention`, if it wants to know the attention of some full calls.
        key: what its keys and values are kept under.

    Attributes:
        plan: what the coming call computes.
        scale: the last full call's, where the site keeps it.
        images: states of single images, where the site attends to each in a call of its own.
        second: the state of the module's second attention call, where that may see image keys.
        apart: of a second call, whether the last full one saw no image keys, so that it passes unchanged.
        active: whether a call of the model is under way; attention called by itself passes unchanged.
        mode: the mode entered by the pre-hook, while the module runs.
        weights: what `weigh` gave at this call [B, N].
    """

    def __init__(self, site: AttentionSite, weigh: Weigh | None = None, key: BufferKey | None = None) -> None:
        self.site = site
        self.weigh = weigh
        self.key = key or BufferKey(site.path)
        self.scale: float | None = None
        self.images: list[AttentionState] = []
        self.second: AttentionState | None = None
        if site.second is not None:
            apart = replace(site, layout=site.second, second=None)
            self.second = AttentionState(apart, key=BufferKey(site.path, second=True))
        self.apart = False
        self.active = False
        self.mode: TorchFunctionMode | None = None
        self.weights: Tensor | None = None
        self.forget()

    def of_batch(self, batch: int) -> list[AttentionState]:
        """The states that serve the coming call: this one, or one for each image."""
        if not self.site.per_image:
            return [self] if self.second is None else [self, self.second]
        for image in range(len(self.images), batch):
            self.images.append(AttentionState(self.site, self.weigh, BufferKey(self.site.path, image)))
        return self.images[:batch]

    def serving(self, call: int, keys: int) -> AttentionState | None:
        """What serves the module's next attention call, to so many keys; None lets it pass (an IP-adapter's)."""
        if self.site.per_image:
            return self.images[call] if call < len(self.images) else None
        if call == 1 and self.second is not None:
            if not self.second.plan.pruned:
                self.second.apart = keys < self.second.plan.images.count
            return None if self.second.apart else self.second
        return self if call == 0 else None

    def prepare(self, plan: AttentionPlan) -> None:
        """Take in what the coming call computes."""
        self.plan = plan
        self.weights = None

    def forget(self) -> None:
        """Let go of all tensors."""
        self.plan = AttentionPlan(KeyValueBuffer(), ImageTokens(self.site.layout))
        self.weights = None
        self.images = []
        if self.second is not None:
            self.second.forget()


def prepare(
    states: Sequence[AttentionState],
    branch: BranchCache,
    rows: Rows | None,
    tokens: int,
    clock: Tensor,
    starts: Tensor | None = None,
    weighed: Guidance | None = None,
) -> None:
    """Tell all attention modules what the coming call computes.

    Args:
        states: of the modules, or of the images in them.
        branch: the guidance branch of the call.
        rows: at a pruned call, which rows are computed; None at a full one.
        tokens: N, all image tokens.
        clock: the timestep, a tensor [].
        starts: where image tokens begin in each joint sequence [B], if that differs.
        weighed: how guidance lies in the batch, where the policy wants to know the attention of its conditional half.
    """
    conditional = _conditional_images(states, weighed)
    found: dict[tuple[str, int, int | None, torch.device], FreshKeys] = {}
    clocks: dict[torch.device, Tensor] = {clock.device: clock}
    for state in states:
        layout, buffer = state.site.layout, branch.buffer(state.key)
        device = clock.device if buffer.key is None else buffer.key.device
        if device not in clocks:
            clocks[device] = clock.to(device)
        buffer.clock = clocks[device]
        images, fresh = ImageTokens(layout, tokens, None if layout == "image" else starts), None
        if rows is not None and buffer.length:  # 0: a layer that this branch skips
            key = (layout, buffer.length, state.key.image, device)
            if key not in found:
                computed = rows.sequence(layout, buffer.length, state.key.image).to(device)
                found[key] = FreshKeys.of(computed, images.span(buffer.length), rows.static.part(key))
            fresh = found[key]
        of_state = weighed if state.key.image is None else "none" if state.key.image in conditional else None
        state.prepare(AttentionPlan(buffer, images, rows is not None, fresh, of_state))


def _conditional_images(states: Sequence[AttentionState], weighed: Guidance | None) -> Sequence[int]:
    """Which images of a batch are in its conditional half, where each has states of its own."""
    images = sorted({state.key.image for state in states if state.key.image is not None})
    if weighed is None:
        return []
    middle = 0 if weighed == "none" else len(images) // 2
    return images[:middle] if weighed == "cond-first" else images[middle:]
