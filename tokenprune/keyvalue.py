"""Keys and values of attention modules, kept for the whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.errors import AttentionError

MEMORY = 0.3
"""How much of what a damping was learnt from is kept from one observation to the next."""

SAMPLE = 16
"""Dampings are fitted to one of so many computed rows."""

TINY = torch.finfo(torch.float32).tiny


def store(kept: Tensor | None, fresh: Tensor) -> Tensor:
    """Copy a tensor into the memory of an earlier one, which stays where it is; if it does not fit, into new memory."""
    if kept is None or (kept.shape, kept.dtype, kept.device) != (fresh.shape, fresh.dtype, fresh.device):
        return fresh.contiguous().clone()
    return kept.copy_(fresh)


def narrow(fresh: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in another floating type, cut off where that ends; None leaves it as it is."""
    if dtype is None or dtype == fresh.dtype:
        return fresh
    range_ = torch.finfo(dtype)
    return (fresh.clamp(range_.min, range_.max) if range_.max < torch.finfo(fresh.dtype).max else fresh).to(dtype)


def is_writable(kept: Tensor | None) -> bool:
    """Whether a tensor can be written now; what inference mode made cannot be outside of it."""
    return kept is None or torch.is_inference_mode_enabled() or not kept.is_inference()


class KeyValueBuffer:
    """Keys and values of one attention module for the whole sequence, each stored as [B, L, H, D].

    Rows are then contiguous, as attention modules project them, so a pruned step copies whole rows. B images (of all
    guidance halves), L keys (image and text), H heads, D channels of a head.

    Attributes:
        key: the keys [B, L, H, D]; None before the first record.
        value: the values [B, L, H, D].
        clock: the timestep of the call under way, a tensor [] that the engine renews in place.
        dtype: what keys and values are kept in; None keeps them as they come.
    """

    least_bytes = 1
    """Bytes that a kept number takes at least."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.clock: Tensor | None = None
        self.dtype: torch.dtype | None = None

    def restart(self) -> None:
        """A new generation begins: what is in the memory belongs to another one."""

    def record(self, key: Tensor, value: Tensor) -> None:
        """Store all rows of key and value [B, H, L, D]; memory is reused while shapes stay."""
        self.key = store(self.key, narrow(key.transpose(1, 2), self.dtype))
        self.value = store(self.value, narrow(value.transpose(1, 2), self.dtype))

    def update(self, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite rows with fresh ones and return the whole key and value [B, H, L, D].

        Args:
            rows: places [B * l] in the flattened [B * L] sequences, equally many for each image.
            key: fresh keys [B, H, l, D].
            value: fresh values [B, H, l, D].
        """
        whole = []
        for kept, given in zip(self.kept, (key, value), strict=True):
            fresh = narrow(given.transpose(1, 2).flatten(0, 1), kept.dtype)
            bits = torch.uint8 if kept.dtype.itemsize == 1 else kept.dtype  # torch cannot index floats of 8 bits
            kept.view(bits).flatten(0, 1).index_copy_(0, rows, fresh.view(bits))
            whole.append(kept.transpose(1, 2).to(given.dtype))
        return whole[0], whole[1]

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        if self.key is None or self.value is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        return self.key, self.value

    @property
    def writable(self) -> bool:
        """Whether the memory can be written now."""
        return is_writable(self.key)

    @property
    def length(self) -> int:
        """L, the number of keys; 0 before the first record."""
        return 0 if self.key is None else self.key.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        return sum(t.nbytes for t in (self.key, self.value) if t is not None)


class LinearBuffer(KeyValueBuffer):
    """Keys and values that move on along a line while they are stale.

    A row that is not computed is taken for k + d s (t - t_1): its last fresh value k at timestep t_1, the slope s
    between its last two, and a damping d. Whenever rows are computed, their fresh values show by how much of d = 1 the
    forecasts should have moved (least squares over every SAMPLE-th of them), and d follows, within [0, 1]. Keys and
    values of an image have one damping each; the halves of classifier-free guidance share it, as guidance multiplies
    what sets them apart. Before the third value rows are held.

    The stored `key` and `value` are the forecasts, moved on in place, so that a pruned step reads and writes each
    number once. Beyond those: the changes s (t_1 - t_0) between the last two values, of the same size, and four numbers
    for each row. W = 2 for keys and values.

    Args:
        halves: how many parts of the batch guidance combines, 1 or 2.
    """

    least_bytes = 2

    def __init__(self, halves: int = 1) -> None:
        super().__init__()
        self._halves = halves
        self._forecast: Tensor | None = None  # key and value [W, B, L, H, D]
        self._change = torch.empty(0)  # between the last two fresh values [W, B, L, H, D]
        self._gone = torch.empty(0)  # share of the change by which a forecast has moved on since [W, B, L]
        self._span = torch.empty(0)  # time between the last two fresh values, 0 before the second [B, L]
        self._time = torch.empty(0)  # timestep of the last fresh value [B, L]
        self._fit = torch.empty(0)  # numerators and denominators of the dampings [2, W, B / halves]
        self._moved = torch.empty(0)  # timestep of the forecasts []
        self._started = torch.empty(0)  # 0 where the last fresh values belong to another generation []

    def restart(self) -> None:
        """The next record begins every line."""
        if self._forecast is not None:
            for memory in (self._forecast, self._change, self._gone, self._span, self._fit, self._started):
                memory.zero_()

    def record(self, key: Tensor, value: Tensor) -> None:
        """Store all rows of key and value [B, H, L, D] and the changes since the last ones.

        Raises:
            AttentionError: the values are of another shape than the keys.
        """
        if key.shape != value.shape:
            raise AttentionError(
                f"keys to forecast: expected values of the same shape {list(key.shape)}, got {list(value.shape)}; hold "
                f"both with Taylor(keys=False)"
            )
        fresh, known = (key.transpose(1, 2), value.transpose(1, 2)), self._forecast
        fits = (fresh[0].shape, self.dtype or key.dtype, key.device)
        if known is None or (known.shape[1:], known.dtype, known.device) != fits:
            self._begin(narrow(torch.stack(fresh), self.dtype))
            return
        for new, old in zip(fresh, known.unbind(), strict=True):
            torch.sub(new, old, out=old)
        kept, taken, span = self._learn(known, self._change, self._gone, self._span, self._now - self._time)
        self._change.mul_(kept).addcmul_(known, taken)
        for new, old in zip(fresh, known.unbind(), strict=True):
            old.copy_(new)
        self._gone.zero_()
        self._span.copy_(span)
        self._time.copy_(self._now)
        self._moved.copy_(self._now)
        self._started.fill_(1)

    def update(self, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in fresh rows; return them within the forecast of all others [B, H, L, D]."""
        if self._forecast is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        self._move_on(self._forecast)
        forecasts, changes, gone = (part.flatten(1, 2) for part in (self._forecast, self._change, self._gone))
        spans, times = self._span.flatten(), self._time.flatten()
        fresh = narrow(torch.stack((key.transpose(1, 2), value.transpose(1, 2))), forecasts.dtype)
        known, change = (part.index_select(1, rows).view_as(fresh) for part in (forecasts, changes))
        off, shape = torch.sub(fresh, known, out=known), fresh.shape[1:3]
        gap, span = (self._now - times[rows]).view(shape), spans[rows].view(shape)
        kept, taken, span = self._learn(off, change, gone.index_select(1, rows).view(2, *shape), span, gap)
        changes.index_copy_(1, rows, change.mul_(kept).addcmul_(off, taken).flatten(1, 2))
        forecasts.index_copy_(1, rows, fresh.flatten(1, 2))
        gone.index_fill_(1, rows, 0.0)
        spans.index_copy_(0, rows, span.flatten())
        times.index_copy_(0, rows, self._now.expand(rows.shape))
        whole = self._forecast.transpose(2, 3).to(key.dtype)
        return whole[0], whole[1]

    def _begin(self, fresh: Tensor) -> None:
        self._forecast = fresh
        self.key, self.value = fresh.unbind()
        self._change = torch.zeros_like(fresh)
        self._gone = torch.zeros(fresh.shape[:3], device=fresh.device)
        self._span, self._fit = self._gone[0].clone(), self._gone.new_zeros(2, 2, fresh.shape[1] // self._halves)
        self._time, self._moved = self._span + self._now, self._now.clone()
        self._started = torch.ones_like(self._moved)

    def _move_on(self, forecasts: Tensor) -> None:
        """Forecasts of all rows, from the timestep that they stand at to the one of the call under way."""
        product, weight = self._fit.unbind()
        damping = (product / weight.clamp_min(TINY)).clamp(0, 1).repeat(1, self._halves)
        rate = damping[..., None] * ((self._now - self._moved) / torch.where(self._span == 0, 1.0, self._span))
        forecasts.addcmul_(self._change, rate.to(self._change.dtype)[..., None, None])
        self._gone.add_(rate)
        self._moved.copy_(self._now)

    def _learn(
        self, off: Tensor, change: Tensor, gone: Tensor, span: Tensor, gap: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fit the dampings to rows with a fresh value.

        Args:
            off: the fresh values less their forecasts [W, B, l, H, D].
            change: the changes between the last two fresh values [W, B, l, H, D].
            gone: by how much of it the forecasts have moved on since [W, B, l].
            span: the time that it took [B, l].
            gap: the time since the last fresh value [B, l]; 0 at a repeated timestep, which changes no line.

        Returns:
            The shares of `change` and of `off` that make up the new changes [W, B, l, 1, 1], and their time [B, l].
        """
        last, run = change[:, :, ::SAMPLE].float(), (gap / torch.where(span == 0, 1.0, span))[:, ::SAMPLE]
        moved = off[:, :, ::SAMPLE].float() + gone[:, :, ::SAMPLE, None, None] * last
        term = run[..., None, None] * last
        fit = torch.stack((moved * term, term.square())).sum((-3, -2, -1))
        self._fit.mul_(MEMORY).add_(fit.unflatten(-1, (self._halves, -1)).sum(-2))
        again = gap == 0
        kept, taken = torch.where(again, 1.0, gone), torch.where(again, 0.0, self._started)
        kept, taken = (share.to(change.dtype)[..., None, None] for share in (kept, taken))
        return kept, taken, torch.where(again, span, gap * self._started)

    @property
    def _now(self) -> Tensor:
        if self.clock is None:
            raise RuntimeError("a linear buffer needs the engine's clock")
        return self.clock

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        return super().nbytes + sum(t.nbytes for t in (self._change, self._gone, self._span, self._time, self._fit))
