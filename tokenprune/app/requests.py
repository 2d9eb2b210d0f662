"""What the page asks for."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.app.methods import METHODS, Method
from tokenprune.bench.commands import check_known
from tokenprune.errors import ConfigurationError
from tokenprune.setting_types import check


@dataclass(frozen=True)
class Request:
    """A picture to draw twice, and how to prune the second time.

    Attributes:
        model: one of the names that the page was started with.
        prompt: what to draw.
        seed: of the initial noise, at least 0.
        steps: of the sampler, at least 2.
        guidance_scale: of classifier-free guidance; None leaves it to the pipeline.
        method: a name of `METHODS`.
        value: that method's number.
        full_steps: of the start, for methods that have them, at least 1.

    Raises:
        ConfigurationError: a value is of another type or out of its range.
    """

    model: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float | None
    method: str
    value: float
    full_steps: int = 8

    def __post_init__(self) -> None:
        wanted = (
            ("prompt", self.prompt, str),
            ("seed", self.seed, int),
            ("steps", self.steps, int),
            ("guidance scale", self.guidance_scale, float | None),
            ("value", self.value, float),
            ("full steps", self.full_steps, int),
        )
        for name, value, kind in wanted:
            try:
                check(name, value, kind)
            except TypeError as error:
                raise ConfigurationError(str(error)) from error
        check_known("method", [self.method], METHODS)
        for name, number, least in (("seed", self.seed, 0), ("steps", self.steps, 2)):
            if number < least:
                raise ConfigurationError(f"{name}: expected at least {least}, got {number}")

    @property
    def pruning(self) -> Method:
        """How to prune."""
        return METHODS[self.method]
