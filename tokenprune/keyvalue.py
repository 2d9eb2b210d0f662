"""Keys and values of attention modules, kept for the whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 0.3
"""How much of what a damping was learnt from is kept from one observation to the next."""

TINY = torch.finfo(torch.float32).tiny


class KeyValueBuffer:
    """Keys and values of one attention module for the whole sequence, each stored as [B, L, H, D].

    Rows are then contiguous, as attention modules project them, so a pruned step copies whole rows. B images (of all
    guidance halves), L keys (image and text), H heads, D channels of a head.

    Attributes:
        key: the keys [B, L, H, D]; None before the first record.
        value: the values [B, L, H, D].
        clock: the timestep of the call under way, a tensor [] that the engine renews in place.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.clock: Tensor | None = None

    def restart(self) -> None:
        """A new generation begins: what is in the memory belongs to another one."""

    def record(self, key: Tensor, value: Tensor) -> None:
        """Store all rows of key and value [B, H, L, D]; memory is reused while shapes stay."""
        self.key = _store(self.key, key.transpose(1, 2))
        self.value = _store(self.value, value.transpose(1, 2))

    def update(self, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite rows with fresh ones and return the whole key and value [B, H, L, D].

        Args:
            rows: places [B * l] in the flattened [B * L] sequences, equally many for each image.
            key: fresh keys [B, H, l, D].
            value: fresh values [B, H, l, D].
        """
        kept_key, kept_value = self.kept
        for buffer, fresh in ((kept_key, key), (kept_value, value)):
            buffer.flatten(0, 1).index_copy_(0, rows, fresh.transpose(1, 2).flatten(0, 1).to(buffer.dtype))
        return kept_key.transpose(1, 2), kept_value.transpose(1, 2)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        if self.key is None or self.value is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        return self.key, self.value

    @property
    def writable(self) -> bool:
        """Whether the memory can be written now; what inference mode made cannot be outside of it."""
        return self.key is None or torch.is_inference_mode_enabled() or not self.key.is_inference()

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
    between its last two, and a damping d. The damping is the row's own: whenever the row is computed, the fresh value
    shows by how much of d = 1 the forecast should have moved (least squares over the row's heads and channels), and d
    follows, within [0, 1]. Keys and values have each their own; the halves of classifier-free guidance share theirs,
    as guidance multiplies what sets them apart. Before its third value a row is held.

    The stored `key` and `value` stay the last fresh ones. Beyond those: two slopes of the same size, and five numbers
    for each row.

    Args:
        halves: how many parts of the batch guidance combines, 1 or 2.
    """

    def __init__(self, halves: int = 1) -> None:
        super().__init__()
        self._halves = halves
        self._lines: tuple[_Line, _Line] | None = None
        self._times = torch.empty(0)
        self._started = torch.empty(0)

    def restart(self) -> None:
        """The next record begins every line."""
        if self._lines is not None:
            self._started.zero_()

    def record(self, key: Tensor, value: Tensor) -> None:
        """Store all rows of key and value [B, H, L, D] and the slopes from the last ones."""
        shape = (key.shape[0], key.shape[2], *key.shape[1::2])
        if self._lines is None or self.key is None or self.key.shape != shape or self.key.dtype != key.dtype:
            super().record(key, value)
            self._lines = (_Line(self.kept[0], self._halves), _Line(self.kept[1], self._halves))
            self._times = torch.zeros(shape[:2], device=key.device) + self._now
            self._started = torch.ones((), device=key.device)
            return
        gap = self._now - self._times
        for line, kept, fresh in zip(self._lines, self.kept, (key, value), strict=True):
            line.learn(gap, fresh.transpose(1, 2) - kept, self._started)
        super().record(key, value)
        self._times.copy_(self._now)
        self._started.fill_(1)

    def update(self, rows: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in fresh rows; return them within the forecast of all others [B, H, L, D]."""
        if self._lines is None:
            raise RuntimeError("nothing was recorded yet: a generation starts with a full step")
        gap = self._now - self._times
        whole = []
        for line, kept, given in zip(self._lines, self.kept, (key, value), strict=True):
            fresh = given.transpose(1, 2).flatten(0, 1).to(kept.dtype)
            forecast = kept + line.step(gap)
            line.learn(gap, fresh - kept.flatten(0, 1)[rows], self._started, rows)
            kept.flatten(0, 1).index_copy_(0, rows, fresh)
            forecast.flatten(0, 1).index_copy_(0, rows, fresh)
            whole.append(forecast.transpose(1, 2))
        self._times.flatten().index_copy_(0, rows, self._now.expand(rows.shape))
        return whole[0], whole[1]

    @property
    def _now(self) -> Tensor:
        if self.clock is None:
            raise RuntimeError("a linear buffer needs the engine's clock")
        return self.clock

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        return super().nbytes + sum(line.nbytes for line in self._lines or ()) + self._times.nbytes


class _Line:
    """Slopes [B, L, H, D] of rows, and what their dampings were learnt from [B, L]."""

    def __init__(self, like: Tensor, halves: int) -> None:
        self._halves = halves
        self.slope = torch.zeros_like(like)
        self.product = torch.zeros(like.shape[:2], device=like.device)
        self.square = torch.zeros_like(self.product)

    def step(self, gap: Tensor) -> Tensor:
        """How far the rows moved in the gaps [B, L] since they were fresh: [B, L, H, D]."""
        product, square = self._shared(self.product), self._shared(self.square)
        damping = torch.where(square > 0, product / square.clamp_min(TINY), 0.0).clamp(0, 1)
        return self.slope * (damping * gap).to(self.slope.dtype)[..., None, None]

    def _shared(self, numbers: Tensor) -> Tensor:
        """Sums over the halves, for each of them [B, L]."""
        return numbers.unflatten(0, (self._halves, -1)).sum(0).repeat(self._halves, 1)

    def learn(self, gap: Tensor, change: Tensor, started: Tensor, rows: Tensor | None = None) -> None:
        """Take in the changes since the last fresh values, of all rows [B, L, H, D] or of some [l, H, D].

        `started` is 0 where the last values belong to another generation.
        """
        memory = {"slope": self.slope, "product": self.product, "square": self.square}
        if rows is not None:
            memory = {name: tensor.flatten(0, 1)[rows] for name, tensor in memory.items()}
            gap = gap.flatten()[rows]
        change = change.nan_to_num()
        term = memory["slope"].float() * gap[..., None, None]
        product = (change * term).sum((-2, -1)) + MEMORY * memory["product"]
        square = term.square().sum((-2, -1)) + MEMORY * memory["square"]
        slope = torch.where(gap == 0, 0.0, 1 / torch.where(gap == 0, 1.0, gap))[..., None, None] * change
        moved = (gap != 0)[..., None, None]
        fresh = {
            "slope": torch.where(moved, slope, memory["slope"]) * started,
            "product": product * started,
            "square": square * started,
        }
        for name, tensor in fresh.items():
            whole: Tensor = getattr(self, name)
            if rows is None:
                whole.copy_(tensor)
            else:
                whole.flatten(0, 1).index_copy_(0, rows, tensor.to(whole.dtype))

    @property
    def nbytes(self) -> int:
        return self.slope.nbytes + self.product.nbytes + self.square.nbytes


def _store(buffer: Tensor | None, fresh: Tensor) -> Tensor:
    if buffer is None or buffer.shape != fresh.shape or buffer.dtype != fresh.dtype or buffer.device != fresh.device:
        return fresh.contiguous().clone()
    return buffer.copy_(fresh)
