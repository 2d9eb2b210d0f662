"""Keys and values of attention modules that move on while they are stale."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.errors import AttentionError
from tokenprune.ops.damping import MEMORY, damping_of
from tokenprune.ops.static_memory import is_writable
from tokenprune.reuse.key_value import FreshKeys, KeyValueBuffer, Span, narrow

SAMPLE = 16
"""Dampings are fitted to one of so many computed image tokens."""


class LinearBuffer(KeyValueBuffer):
    """Keys and values that move on along a line while they are stale.

    A row that is not computed is taken for k + d s (t - t_1): its last fresh value k at timestep t_1, the slope s
    between its last two, and a damping d. Whenever rows are computed, their fresh values show by how much of d = 1 the
    forecasts should have moved (least squares over every SAMPLE-th of them), and d follows, within [0, 1]. Keys and
    values of an image have one damping each; the halves of classifier-free guidance share it, as guidance multiplies
    what sets them apart. Before the third value rows are held.

    Only rows of image tokens have lines: all others are computed at every step. The stored `key` and `value` are the
    forecasts, moved on in place, so that a pruned step reads and writes each number once. Beyond those: for every image
    token the last value but one less the last, s (t_0 - t_1), and four numbers. W = 2 for keys and values, N image
    tokens of L keys.

    Args:
        halves: how many parts of the batch guidance combines, 1 to 3.
    """

    least_bytes = 2
    reads_recorded = True

    def __init__(self, halves: int = 1) -> None:
        super().__init__()
        self._halves = halves
        self._whole: Tensor | None = None  # key and value [W, B, L, H, D]
        self._span: Span = (0, 0)  # where image tokens lie among the L
        self._forecast = torch.empty(0)  # their part of the whole [W, B, N, H, D], the same memory
        self._back = torch.empty(0)  # from the last fresh values to those before [W, B, N, H, D]
        # for each image token [W + 2, B, N]: the shares of that by which its forecasts have moved away since; 1 / time
        # between the last two fresh values, 0 before the second; timestep of the last
        self._lines = torch.empty(0)
        self._fit = torch.empty(0)  # numerators and denominators of the dampings, to one scale [2, W, B / halves]
        self._moved = torch.empty(0)  # timestep of the forecasts []
        self._started = torch.empty(0)  # 0 where the last fresh values belong to another generation []

    def restart(self) -> None:
        """The next record begins every line."""
        super().restart()
        if self._whole is not None:
            large = () if self.home is not None else self.memory
            for memory in (*large, self._lines[:-1], self._fit, self._started):
                memory.zero_()

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """All keys and values, and the way back of those of image tokens."""
        return () if self._whole is None else (self._whole, self._back)

    def place(self, memory: tuple[Tensor, ...]) -> None:
        """Go on with other memory of the same shapes and types."""
        whole, self._back = memory
        self._see(whole)

    def record(self, key: Tensor, value: Tensor, span: Span) -> None:
        """Store all rows of key and value [B, H, L, D] and the way back to the last ones.

        Raises:
            AttentionError: the values are of another shape than the keys.
        """
        if key.shape != value.shape:
            raise AttentionError(
                f"keys to forecast: expected values of the same shape {list(key.shape)}, got {list(value.shape)}; hold "
                f"both with Taylor(keys=False)"
            )
        fresh, whole = (key.transpose(1, 2), value.transpose(1, 2)), self._whole
        fits = (fresh[0].shape, self.dtype or key.dtype, key.device, span)
        if whole is None or (whole.shape[1:], whole.dtype, whole.device, self._span) != fits:
            self._begin(narrow(torch.stack(fresh), self.dtype), span)
            return
        for new, old in zip(fresh, self._forecast.unbind(), strict=True):
            old.sub_(new.narrow(1, *span))
        gone, pace, time = self._lines[:-2], self._lines[-2], self._lines[-1]
        paced = self._learn(self._forecast, self._back, gone, self._now - time, pace)
        for new, old in zip(fresh, whole.unbind(), strict=True):
            old.copy_(new)
        gone.zero_()
        torch.mul(paced, self._started, out=pace)
        time.copy_(self._now)
        self._moved.copy_(self._now)
        self._started.fill_(1)

    def needed(self, key: Tensor, value: Tensor, span: Span) -> int:
        """Bytes that recording these would take where nothing is kept yet: those of image tokens are kept twice."""
        batch, heads, _, width = key.shape
        rows = batch * span[1]
        lines = 2 * rows * heads * width * (self.dtype or key.dtype).itemsize
        float32 = 2 * rows + 2 * rows + 4 * (batch // self._halves)  # gone; pace and time; fit
        return super().needed(key, value, span) + lines + 4 * float32

    def update(self, fresh: FreshKeys, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in fresh rows; return them within the forecast of all others [B, H, L, D]."""
        if self._whole is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        self._move_on()
        places, (rows, backs) = fresh.places, (part.flatten(1, 2).flatten(2) for part in (self._whole, self._back))
        lines = self._lines.flatten(1)
        new = narrow(torch.stack((key.transpose(1, 2), value.transpose(1, 2))), rows.dtype)
        own = new.narrow(2, fresh.first, places.shape[0] // new.shape[1])
        off = rows.index_select(1, fresh.chosen).view_as(own).sub_(own)
        back = backs.index_select(1, places).view_as(own)
        known = lines.index_select(1, places).unflatten(1, own.shape[1:3])
        paced = self._learn(off, back, known[:-2], self._now - known[-1], known[-2])
        backs.index_copy_(1, places, back.flatten(1, 2).flatten(2))
        rows.index_copy_(1, fresh.rows, new.flatten(1, 2).flatten(2))
        lines[:-2].index_fill_(1, places, 0.0)
        lines[-2].index_copy_(0, places, paced.flatten())
        lines[-1].index_copy_(0, places, self._now.expand(places.shape))
        whole = self._whole.transpose(2, 3).to(key.dtype)
        return whole[0], whole[1]

    def _begin(self, fresh: Tensor, span: Span) -> None:
        self._span = span
        self._see(fresh)
        self._back = torch.zeros_like(self._forecast, memory_format=torch.contiguous_format)
        self._lines = torch.zeros(4, *self._back.shape[1:3], device=fresh.device)
        self._lines[-1].copy_(self._now)
        self._fit = self._lines.new_zeros(2, 2, fresh.shape[1] // self._halves)
        self._moved = self._now.clone()
        self._started = torch.ones_like(self._moved)

    def _see(self, whole: Tensor) -> None:
        """Take in all keys and values [W, B, L, H, D], and where those of image tokens are among them."""
        self._whole, (self.key, self.value) = whole, whole.unbind()
        self._forecast = whole.narrow(2, *self._span)

    def _move_on(self) -> None:
        """Forecasts of all image tokens, from the timestep that they stand at to the one of the call under way."""
        damping, pace = damping_of(*self._fit.unbind()), self._lines[-2]
        run = (pace * (self._now - self._moved)).unflatten(0, (self._halves, -1))
        share = (damping[:, None, :, None] * run).flatten(1, 2)
        self._forecast.addcmul_(self._back, _wide(share, self._back), value=-1)
        self._lines[:-2].add_(share)
        self._moved.copy_(self._now)

    def _learn(self, off: Tensor, back: Tensor, gone: Tensor, gap: Tensor, pace: Tensor) -> Tensor:
        """Fit the dampings to rows with a fresh value, and keep the way back from there.

        Args:
            off: the forecasts less the fresh values [W, B, n, H, D].
            back: from the last fresh values to those before, of the same shape; overwritten by the new ones.
            gone: by how much of it the forecasts have moved away since [W, B, n].
            gap: the time since the last fresh value [B, n]; 0 at a repeated timestep, whose value replaces the last.
            pace: 1 / the time between the last two [B, n].

        Returns:
            The new pace [B, n].
        """
        last, run = back[:, :, ::SAMPLE].float(), (gap * pace)[:, ::SAMPLE, None, None]
        moved = torch.addcmul(off[:, :, ::SAMPLE].float(), gone[:, :, ::SAMPLE, None, None], last)
        term = run * last
        products = (torch.stack((moved, term)) * term).unflatten(2, (self._halves, -1))
        fit = products.sum((2, 4, 5, 6))
        self._fit.lerp_(fit if self.total is None else self.total(fit), 1 - MEMORY)
        again = gap == 0
        torch.addcmul(off, back, _wide(gone.masked_fill(again, 1.0), back), out=back)
        return torch.where(again, pace, gap.reciprocal())

    @property
    def _now(self) -> Tensor:
        if self.clock is None:
            raise RuntimeError("a linear buffer needs the engine's clock")
        return self.clock

    @property
    def writable(self) -> bool:
        """Whether the memory can be written now."""
        return super().writable and is_writable(self._lines)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held, but for those at `home`."""
        return super().nbytes + sum(t.nbytes for t in (self._lines, self._fit))


def _wide(share: Tensor, like: Tensor) -> Tensor:
    """Numbers [..., N] for each row of a tensor [..., N, H, D], in its type."""
    return share.to(like.dtype)[..., None, None]
