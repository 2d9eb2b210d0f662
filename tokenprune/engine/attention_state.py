"""What the hooks of attention modules find there: what the coming call computes, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenprune.engine.attention_calls import SeenCall, SeenCalls
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.rows import Rows, rows_of
from tokenprune.engine.shards import ALONE, Shards
from tokenprune.errors import AttentionError
from tokenprune.modulemap import AttentionSite, Layout
from tokenprune.ops.guidance import Guidance, conditional_rows
from tokenprune.ops.selection import Selection
from tokenprune.reuse.key_value import BufferKey, FreshKeys, KeyValueBuffer, Span

Weigh: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""A policy's `weigh_attention`: queries and keys of image tokens [B, H, N, D] and the scale to weights [B, N]."""


class Carrier(Protocol):
    """Brings keys and values to where a module runs, and takes them away again."""

    def begin(self, states: Iterable[AttentionState], branch: BranchCache) -> None:
        """A call of the model begins, whose attention modules know their plans."""

    def end(self) -> None:
        """It is over."""

    def forget(self) -> None:
        """Let go of what modules share."""

    def arrive(self, path: str) -> None:
        """The module is about to run."""

    def leave(self, path: str) -> None:
        """It is done."""


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

    @property
    def streams(self) -> int:
        """How many rows there are for each image token."""
        return 2 if self.layout == "image-image" else 1

    def span(self, length: int) -> Span:
        """Where image tokens lie among so many queries or keys; anywhere, if it differs."""
        return (self.first(length), self.streams * self.count) if self.starts is None else (0, length)

    def rows(self, sequence: Tensor) -> Tensor:
        """The image tokens' rows [B, H, N, D] of a full sequence of queries or keys."""
        if self.starts is None:
            return sequence.narrow(2, self.first(sequence.shape[2]), self.count)
        starts = self.starts.to(sequence.device)[:, None, None, None]
        places = torch.arange(self.count, device=sequence.device)[:, None]
        return torch.take_along_dim(sequence, starts + places, dim=2)


@dataclass(frozen=True)
class KeptKeys:
    """Where the keys and values of attention calls are kept.

    Attributes:
        buffer: their memory.
        images: where image tokens lie among them.
        fresh: at a pruned call, which of them are computed: selected image tokens and text tokens.
        columns: which of them masks may have a column for: the same, or with all text tokens.
        order: where each of all keys lies in what a full call gives; None: in order.
        fresh_order: where each of the computed ones lies in what a pruned call gives; None: in order.
    """

    buffer: KeyValueBuffer
    images: ImageTokens
    fresh: FreshKeys | None = None
    columns: Selection | None = None
    order: Tensor | None = None
    fresh_order: Tensor | None = None


@dataclass(frozen=True)
class Coming:
    """The coming call of the model.

    Attributes:
        branch: the guidance branch that it belongs to.
        siblings: branches that the same step called before it.
        weighed: how guidance lies in the batch, where the policy wants to know the attention of its conditional part.
        holds_text: whether any pruned call leaves out the text tokens of joint sequences.
        rows: at a pruned call, which rows are computed; None at a full one.
        tokens: N, all image tokens.
        batch: how many sequences of tokens the call has: images, guidance halves and frames.
        period: after how many of those the selected tokens come again.
        clock: the timestep, a tensor [].
        starts: where image tokens begin in each joint sequence [B], if that differs.
        before: how many tokens lie before the image in every joint sequence, at a full call: one with fewer keys than
            these and N sees no image.
        shards: over which ranks the model's tokens are divided.
    """

    branch: BranchCache
    clock: Tensor
    rows: Rows | None = None
    tokens: int = 0
    batch: int = 1
    period: int = 1
    starts: Tensor | None = None
    before: int = 0
    siblings: tuple[BranchCache, ...] = ()
    weighed: Guidance | None = None
    holds_text: bool = False
    shards: Shards = ALONE

    @property
    def conditional_rows(self) -> range:
        """Which sequences of the batch the policy wants to know the attention of."""
        return range(0) if self.weighed is None else conditional_rows(self.batch, self.weighed)

    def starts_of(self, call: SeenCall) -> Tensor | None:
        """Where image tokens begin in the sequences of one attention call."""
        if self.starts is None or call.shape.rows == self.batch:
            return self.starts
        return self.starts[rows_of(call.first, call.shape.rows, self.starts)]


@dataclass(frozen=True)
class AttentionPlan:
    """What the coming call of the model computes in one attention module.

    Attributes:
        coming: the call.
        seen: the attention calls that the module made at the guidance branch's last full call.
        keys: where those that see image keys are kept, by their number.
        pruned: whether only some of the image tokens are computed.
        selected: n, how many.
    """

    coming: Coming
    seen: SeenCalls
    keys: list[KeptKeys] = field(default_factory=list)
    pruned: bool = False
    selected: int = 0


class AttentionState:
    """What the hooks of one attention module share; the module holds it under `ATTRIBUTE`.

    Args:
        site: where the module is and how its keys lie.
        weigh: the policy's `weigh_attention`, if it wants to know the attention of some full calls.
        trusting: whether attention calls are not looked into, as `PruningSettings` says.
        carrier: brings the keys and values that lie elsewhere; None: they are where the module runs.

    Attributes:
        owner: the model's class.
        plan: what the coming call computes.
        active: whether a call of the model is under way; attention called by itself passes unchanged.
        ran: whether the module ran since the coming call was prepared.
        mode: the mode entered by the pre-hook, while the module runs.
        weights: what `weigh` gave at this call for some conditional rows [b, N], and the first of them.
    """

    def __init__(
        self,
        site: AttentionSite,
        weigh: Weigh | None = None,
        trusting: bool = False,
        carrier: Carrier | None = None,
    ) -> None:
        self.site = site
        self.carrier = carrier
        self.weigh = weigh
        self.trusting = trusting
        self.owner: type[nn.Module] = nn.Module
        self.active = False
        self.ran = False
        self.mode: TorchFunctionMode | None = None
        self.weights: list[tuple[int, Tensor]] = []
        self.plan: AttentionPlan | None = None

    def prepare(self, plan: AttentionPlan) -> None:
        """Take in what the coming call computes."""
        self.plan = plan
        self.weights = []

    def forget(self) -> None:
        """Let go of all tensors."""
        self.plan = None
        self.weights = []

    def keep(self, call: SeenCall) -> KeptKeys:
        """Where the keys of an attention call of a full call of the model are kept from now on."""
        if self.plan is None or call.number is None:
            raise RuntimeError(f"{self.site.path}: no call of the model is under way")
        kept = kept_keys(self.site, self.plan.coming, call)
        kept.buffer.clock = self.plan.coming.clock
        self.plan.keys[call.number :] = [kept]
        return kept

    def attention_weights(self) -> Tensor | None:
        """What `weigh` gave for the conditional rows [B, N], mean over the calls; None if it was not asked.

        Rows without attention (perturbed guidance) are looked at by each token itself: 1 / N each.
        """
        if not self.weights or self.plan is None:
            return None
        tokens, device = self.weights[0][1].shape[1], self.weights[0][1].device
        images = len(self.plan.coming.conditional_rows)
        total, calls = torch.zeros(images, tokens, device=device), torch.zeros(images, 1, device=device)
        for first, weights in self.weights:
            places = rows_of(first, len(weights), total)
            total.index_add_(0, places, weights.to(total.dtype))
            calls.index_add_(0, places, torch.ones_like(weights[:, :1], dtype=calls.dtype))
        return torch.where(calls > 0, total / calls.clamp_min(1), 1 / tokens)


def kept_keys(site: AttentionSite, coming: Coming, call: SeenCall) -> KeptKeys:
    """Where the keys of an attention call with image keys are kept.

    Raises:
        AttentionError: the map does not say where the image tokens lie among them.
    """
    number, shape = call.number or 0, call.shape
    layout = site.layout if number == 0 else site.further or site.layout
    starts = coming.starts_of(call) if "text" in layout else None
    images = ImageTokens(layout, coming.tokens, starts)
    expected = images.streams * coming.tokens
    if "text" not in layout and shape.keys != expected:
        further = f", and nothing in its `further` of attention call {number + 1}" if number else ""
        raise AttentionError(
            f"{site.path}: expected {expected} image keys, got {shape.keys} keys; the module map calls its layout "
            f"{site.layout!r}{further}"
        )
    buffer = coming.branch.buffer(BufferKey(site.path, number), paired=shape.rows == coming.batch)
    buffer.total = None if coming.shards.group is None else coming.shards.total
    order = coming.shards.order(layout, coming.tokens, shape.keys, coming.clock.device)
    return KeptKeys(buffer, images, order=order)


def prepare(states: Iterable[AttentionState], coming: Coming) -> None:
    """Tell all attention modules what the coming call computes."""
    found: dict[Hashable, tuple[FreshKeys, Selection]] = {}
    clocks: dict[torch.device, Tensor] = {coming.clock.device: coming.clock}
    rows = coming.rows
    for state in states:
        seen = coming.branch.seen_calls(state.site.path)
        plan = AttentionPlan(
            coming, seen, pruned=rows is not None, selected=rows.image.count if rows is not None else coming.tokens
        )
        for call in seen.keys.values():
            kept = kept_keys(state.site, coming, call)
            device = kept.buffer.device or coming.clock.device
            kept.buffer.clock = clocks.setdefault(device, coming.clock.to(device))
            if rows is not None:
                part = None if call.shape.rows == coming.batch else (call.first, call.shape.rows)
                key = (kept.images.layout, call.shape.keys, part, device)
                if key not in found:
                    computed, columns = (
                        rows.sequence(kept.images.layout, call.shape.keys, part, whole_text).to(device)
                        for whole_text in (False, True)
                    )
                    span, static = kept.images.span(call.shape.keys), rows.static.part(key)
                    found[key] = FreshKeys.of(computed, span, static, rows.most_text), columns
                fresh, columns = found[key]
                order = coming.shards.order(kept.images.layout, plan.selected, fresh.selection.count, device)
                kept = replace(kept, fresh=fresh, columns=columns, fresh_order=order)
            plan.keys.append(kept)
        state.prepare(plan)
