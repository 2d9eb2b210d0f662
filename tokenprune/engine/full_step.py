"""The full steps of a generation, and how far their forecasts were off."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenprune.schedule import ForecastError


@dataclass
class FullStep:
    """A full step that was made.

    Attributes:
        index: of the step.
        gap: steps since the full step before it.
        error: by how much its forecast was off: on the device [2] until it is asked for; None where nobody asks.
    """

    index: int
    gap: int
    error: Tensor | ForecastError | None
