"""What is seen of a pipeline while it draws."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch

from tokenprune.errors import ConfigurationError
from tokenprune.reports.viewer import Previews

CALLBACK = "callback_on_step_end"
"""What most pipelines of diffusers call after each step."""


class StepWatch:
    """Tells each step that ends, and decodes its latents where that was asked for and can be done.

    Args:
        pipe: the pipeline that draws.
        tell: is told how many steps have ended.
        previewed: whether to decode the latents of each step.

    Attributes:
        seconds: spent here, which are none of the drawing's.
        pictures: previews by step.
        notes: what could not be done, and why.
    """

    def __init__(self, pipe: Any, tell: Callable[[int], None], previewed: bool) -> None:
        self.seconds = 0.0
        self.notes: list[str] = []
        self._pipe, self._tell = pipe, tell
        self._previews: Previews | None = None
        self._known = CALLBACK in inspect.signature(type(pipe).__call__).parameters
        if not self._known:
            self.notes.append(f"steps are not followed: {type(pipe).__name__} has no {CALLBACK}")
        elif previewed:
            try:
                self._previews = Previews(pipe)
            except ConfigurationError as error:
                self.notes.append(f"no previews of the steps: {error}")

    @property
    def arguments(self) -> dict[str, Any]:
        """What to call the pipeline with."""
        return {CALLBACK: self} if self._known else {}

    @property
    def pictures(self) -> dict[int, Any]:
        """Previews by step."""
        return {} if self._previews is None else self._previews.pictures

    def __call__(self, pipe: Any, step: int, noise_level: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Take in a step: the signature of diffusers' `callback_on_step_end`; changes nothing."""
        if self._pipe.device.type == "cuda":
            torch.cuda.synchronize()  # the step's own work is the drawing's
        start = time.perf_counter()
        self._tell(step + 1)
        if self._previews is not None:
            try:
                self._previews(pipe, step, noise_level, given)
            except ConfigurationError as error:
                self.notes.append(f"no previews of the steps: {error}")
                self._previews = None
        self.seconds += time.perf_counter() - start
        return given
