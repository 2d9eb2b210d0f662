"""The exit's output: image tokens read out of it, and written back when all are known."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenprune.engine.rows import Rows
from tokenprune.modulemap import ExitSite
from tokenprune.ops.selection import Selection

EXPANDED = "_tokenprune_expanded"


class Exit:
    """How the coming call's exit lays out its tokens.

    Attributes:
        site: where the exit is.
        rows: at a pruned call, which rows were computed; None at a full one.
        tokens: N, all image tokens, reference tokens included.
        starts: where each image begins in its joint sequence [B], if that differs.
        frames: F, how many sequences of the batch belong to each image.
        cut: how many reference tokens before and after those of the picture the model cuts off before its exit.
    """

    def __init__(self, site: ExitSite) -> None:
        self.site = site
        self.rows: Rows | None = None
        self.tokens = 0
        self.starts: Tensor | None = None
        self.frames = 1
        self.cut = (0, 0)

    def read(self, output: Tensor) -> Tensor:
        """The computed image tokens [B, N or n, F C] in the exit's output; 0 for those cut off before it."""
        found = self._sequences(output)
        if any(self.cut) and (self.rows is None or self.site.expand is not None):
            found = F.pad(found, (0, 0, *self.cut))
        if self.rows is not None and self.site.expand is not None:
            found = self.rows.sequence(self.site.layout, found.shape[1]).gather(found)
        count = self.tokens if self.rows is None else self.rows.image.count
        images = self._places(count, found).gather(found) if self.site.layout != "image" else found
        return rearrange(images, "(b f) n c -> b n (f c)", f=self.frames) if self.frames > 1 else images

    def write(self, output: Tensor, images: Tensor) -> Tensor:
        """The exit's output with all image tokens [B, N, F C]; rows of text stay where there are any."""
        if any(self.cut):
            before, after = self.cut
            images = images[:, before : images.shape[1] - after].contiguous()
        if self.frames > 1:
            images = rearrange(images, "b n (f c) -> (b f) n c", f=self.frames)
        if self.site.layout != "image" and self.rows is not None and self.site.expand is None:
            found = self._sequences(output)
            length = found.shape[1] + self.tokens - self.rows.image.count
            whole = found.new_empty(len(found), length, found.shape[2])
            whole = self.rows.sequence(self.site.layout, length).scatter(found, whole)
            images = self._places(self.tokens, whole).scatter(images, whole)
        elif self.site.layout != "image":
            found = self._sequences(output)
            images = self._places(self.tokens, found).scatter(images, found)
        if output.ndim > 3:
            return images.unflatten(1, output.shape[1:-1])
        if self.site.batch is None:
            return images.squeeze(0).movedim(0, self.site.dim)
        return images.movedim((0, 1), (self.site.batch, self.site.dim))

    def _sequences(self, output: Tensor) -> Tensor:
        if output.ndim > 3:
            return output.flatten(1, -2)
        if self.site.batch is None:
            return output.movedim(self.site.dim, 0).unsqueeze(0)
        return output.movedim((self.site.batch, self.site.dim), (0, 1))

    def _places(self, count: int, sequences: Tensor) -> Selection:
        """Where `count` image tokens lie in sequences of image and text tokens [B, l, C]."""
        places = torch.arange(count, device=sequences.device).expand(len(sequences), -1)
        if self.site.layout == "text-image" and count < sequences.shape[1]:
            starts = None if self.starts is None else self.starts.to(sequences.device)
            first = sequences.shape[1] - count if starts is None else starts.unsqueeze(1)
            places = places + first
        return Selection(places, sequences.shape[1])


class ExpandState:
    """What the hook of the module before an exit that needs all rows works with; held under `EXPANDED`.

    Attributes:
        site: the exit.
        rows: at a pruned call, which rows were computed; None at a full one.
    """

    def __init__(self, site: ExitSite) -> None:
        self.site = site
        self.rows: Rows | None = None


def after_expanded(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: all rows again, those that were not computed 0."""
    state: ExpandState = getattr(module, EXPANDED)
    if state.rows is None:
        return None
    hidden = output[state.site.expand_item] if isinstance(output, tuple) else output
    selection, alone = state.rows.on(hidden.device, state.site.expand_layout), state.site.batch is None
    given = hidden.unsqueeze(0) if alone else hidden
    whole = selection.scatter(given, given.new_zeros(len(given), selection.num_tokens, *given.shape[2:]))
    whole = whole.squeeze(0) if alone else whole
    if not isinstance(output, tuple):
        return whole
    item = state.site.expand_item
    return (*output[:item], whole, *output[item + 1 :])
