"""Reading the timesteps that a model is called with, and where they stand in the sampler's table."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenprune.errors import UnsupportedCallError
from tokenprune.ops.static_memory import version_of


class Timestep(NamedTuple):
    """What was read of a timestep.

    Attributes:
        time: its value.
        place: its place in the memory of its table; None outside a table.
        coming: entries of the table from there on; None outside a table.
        new_table: whether that table is another one than the last.
    """

    time: float
    place: int | None = None
    coming: tuple[float, ...] | None = None
    new_table: bool = False

    @property
    def remaining(self) -> int | None:
        """How many entries of the table are left, this one included; None outside a table."""
        return None if self.coming is None else len(self.coming)


class TimestepReader:
    """Reads timesteps without waiting for the device more than once per generation.

    Schedulers keep a table of timesteps and hand out views of it. The table is read once; a later view of the same
    table is recognised by its address. Holding on to the table keeps that address from being used again. Tables made
    in inference mode do not tell when they are changed, so that their entries are read at every step.

    A table may itself be a part of a longer one, which a single entry does not show: its length is that of the
    sampler's table, where that is known, else of the memory from the first entry on, in steps as far apart as the last.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self._version = 0
        self._values: list[float] = []
        self._place: int | None = None
        self._stride = 1

    def read(self, timestep: Tensor | float | int, whole: Tensor | None = None) -> Timestep:
        """Read one.

        Args:
            timestep: as the model received it.
            whole: the sampler's own table, if that is known.

        Raises:
            UnsupportedCallError: it holds no value.
        """
        if not isinstance(timestep, Tensor):
            return Timestep(float(timestep))
        if timestep.numel() == 0:
            raise UnsupportedCallError("timestep: expected at least one value, got an empty tensor")
        storage = timestep.untyped_storage()
        entries = storage.nbytes() // timestep.element_size()
        single = timestep.numel() == 1 or all(stride == 0 for stride in timestep.stride())
        if not single or entries < 2:
            return Timestep(float(timestep.detach().flatten().max()))
        place = int(timestep.storage_offset())
        new = not self._knows(timestep, place)
        if new:
            self._table = torch.empty(0, dtype=timestep.dtype, device=timestep.device).set_(storage)
            self._version = version_of(timestep)
            self._values = [float(value) for value in self._table.tolist()]
            self._place, self._stride = None, 1
        if self._place is not None and place > self._place:
            self._stride = place - self._place
        self._place = place
        return Timestep(self._values[place], place, self._coming(place, timestep, whole), new)

    def _knows(self, timestep: Tensor, place: int) -> bool:
        table = self._table
        if table is None or (table.device, table.dtype) != (timestep.device, timestep.dtype):
            return False
        if table.untyped_storage().data_ptr() != timestep.untyped_storage().data_ptr():
            return False
        if timestep.is_inference():
            return float(timestep.detach().flatten()[0]) == self._values[place]
        return self._version == version_of(timestep)

    def _coming(self, place: int, timestep: Tensor, whole: Tensor | None) -> tuple[float, ...]:
        if whole is not None and whole.ndim == 1 and whole.dtype == timestep.dtype and len(whole) > 1:
            first, stride = int(whole.storage_offset()), int(whole.stride(0))
            if whole.untyped_storage().data_ptr() == timestep.untyped_storage().data_ptr() and stride > 0:
                index, rest = divmod(place - first, stride)
                if rest == 0 and 0 <= index < len(whole):
                    return tuple(self._values[place : first + stride * len(whole) : stride])
        return tuple(self._values[place :: self._stride])
