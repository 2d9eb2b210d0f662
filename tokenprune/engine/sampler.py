"""A pipeline's sampler, looked at from outside: nothing of it is changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Sampler:
    """The scheduler that a pipeline has when it is asked for; users put in others.

    Args:
        pipeline: holds it as `scheduler`.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._read: Tensor | None = None
        self._values: tuple[float, ...] = ()

    @property
    def timesteps(self) -> Tensor | None:
        """Its table of timesteps, another tensor for each generation; None where there is none."""
        table = getattr(getattr(self._pipeline, "scheduler", None), "timesteps", None)
        return table if isinstance(table, Tensor) else None

    @property
    def remaining(self) -> int | None:
        """How many entries of the table are left, the coming step included; None where it does not count them."""
        scheduler, table = getattr(self._pipeline, "scheduler", None), self.timesteps
        places = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
        place = next((place for place in places if isinstance(place, int)), None)
        if table is None or place is None or not 0 <= place < len(table):
            return None
        return len(table) - place

    @property
    def coming(self) -> tuple[float, ...] | None:
        """The entries of the table that are left, the coming step's first; waits for the device once for each table."""
        left, table = self.remaining, self.timesteps
        if left is None or table is None:
            return None
        if self._read is not table:
            self._read, self._values = table, tuple(float(value) for value in table.tolist())
        return self._values[len(self._values) - left :]
