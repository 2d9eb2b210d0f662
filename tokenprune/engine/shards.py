"""Which part of a model's tokens this process computes, where several processes compute one model together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from tokenprune.modulemap import Layout
from tokenprune.ops.selection import Selection

Place = tuple[Layout, int, int, torch.device]


@dataclass(frozen=True)
class Shards:
    """Over which processes (ranks) a model's sequences of tokens are divided, and which part this one has.

    Every sequence is divided into `degree` parts of equal length, in its own order: of N image tokens rank r has
    those from r N / degree on; of n selected tokens those from r n / degree on, wherever they lie in the image. A
    sequence of image and text tokens has so many of each on every rank. Attention sees the parts of all ranks one
    after the other: [text of rank 0, image of rank 0, text of rank 1, ...].

    Attributes:
        group: the ranks that compute the model together, a process group; None where this process computes it alone.
        degree: over how many of them sequences are divided; 1 leaves all tokens on each.
        rank: which part this one has.
        divided: the arguments that a block divides itself, so that its hooks find them whole, by the block's path.
    """

    group: dist.ProcessGroup | None = None
    degree: int = 1
    rank: int = 0
    divided: Mapping[str, frozenset[str]] = field(default_factory=dict)
    _orders: dict[Place, Tensor | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def size(self) -> int:
        """How many ranks compute the model together."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def own(self, selection: Selection) -> Selection:
        """The part of the selected tokens that this rank has."""
        if self.degree == 1:
            return selection
        return Selection(selection.index.chunk(self.degree, 1)[self.rank], selection.num_tokens)

    def order(self, layout: Layout, tokens: int, length: int, device: torch.device) -> Tensor | None:
        """Where the tokens of a sequence lie in the parts of all ranks, one after the other.

        Args:
            layout: of the sequence.
            tokens: how many image tokens it has.
            length: how many tokens, text included.
            device: of the answer.

        Returns:
            Places [length] by which to index what attention is given, so that it comes in the sequence's own order;
            None where it does already.
        """
        if self.degree == 1:
            return None
        place = (layout, tokens, length, device)
        if place not in self._orders:
            self._orders[place] = self._order(*place)
        return self._orders[place]

    def _order(self, layout: Layout, tokens: int, length: int, device: torch.device) -> Tensor | None:
        first = length - tokens if layout == "text-image" else tokens
        if first in (0, length):
            return None
        one, other = (stream.chunk(self.degree) for stream in torch.arange(length, device=device).tensor_split([first]))
        return torch.cat([part for parts in zip(one, other, strict=True) for part in parts]).argsort()

    def joined(self, part: Tensor, dim: int) -> Tensor:
        """What all ranks have of a tensor that is divided along a dimension, in their order: the whole of it."""
        if self.group is None:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim)

    def agreed(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, on every rank: its shape and type are the same on all."""
        if self.group is None:
            return tensor
        found = tensor.clone(memory_format=torch.contiguous_format)
        dist.broadcast(found, dist.get_global_rank(self.group, 0), group=self.group)
        return found

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of what each has from its own heads."""
        if self.group is None:
            return tensor
        found = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found, group=self.group)
        return found

    def agree_on(self, tensor: Tensor) -> bool:
        """Whether all ranks have the same numbers in a tensor of one shape; waits for them and for the device."""
        if self.group is None:
            return True
        first = self.agreed(tensor)
        differ = (tensor != first) & ~(tensor.isnan() & first.isnan())
        return not bool(self.total(differ.any().to(torch.int64)))


ALONE = Shards()
"""One process computes the model by itself, as nearly always."""


def in_order(sequence: Tensor, dim: int, *orders: Tensor | None) -> Tensor:
    """A sequence along a dimension in its own order, by the first of these that has its length; else as it is."""
    for order in orders:
        if order is not None and len(order) == sequence.shape[dim]:
            return sequence.index_select(dim, order)
    return sequence
