"""What every package needs from a pipeline: the start of a generation, the timestep, and to be taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

from tokenprune.embedded.load import EMBEDDED

CALIBRATION_PROMPT = "a red circle on a green background"
"""What is drawn where a method has to be calibrated."""


@contextmanager
def tidied(model: nn.Module) -> Iterator[None]:
    """Takes the attributes off a model and its modules that came meanwhile, and puts children back in their order.

    Packages leave attributes behind, and a child that was replaced for a while comes back as the last.
    """
    had = {module: (set(vars(module)), list(module._modules)) for module in model.modules()}
    try:
        yield
    finally:
        for module, (names, children) in had.items():
            for name in set(vars(module)) - names:
                delattr(module, name)
            for child in children:
                module._modules[child] = module._modules.pop(child)


@contextmanager
def at_each_generation(pipe: Any, begin: Callable[[], None]) -> Iterator[None]:
    """Calls `begin` whenever the pipeline asks its scheduler for timesteps, which it does once a generation."""
    scheduler, set_timesteps = pipe.scheduler, pipe.scheduler.set_timesteps

    @wraps(set_timesteps)
    def beginning(*args: Any, **kwargs: Any) -> Any:
        begin()
        return set_timesteps(*args, **kwargs)

    scheduler.set_timesteps = beginning
    try:
        yield
    finally:
        del scheduler.set_timesteps


def current_timestep(pipe: Any) -> float:
    """The timestep (0 to 1000) of the step that the pipeline is at, from its scheduler.

    Raises:
        AttributeError: the scheduler counts no steps.
    """
    return float(pipe.scheduler.timesteps[pipe.scheduler.step_index or 0])


def draw_once(pipe: Any, steps: int) -> None:
    """One generation, thrown away: with the bench's own arguments for an embedded pipeline, else with the defaults."""
    embedded = EMBEDDED.get(Path(str(pipe.config["_name_or_path"])).name)
    arguments = {} if embedded is None else {"guidance_scale": embedded.guidance_scale, **embedded.arguments}
    pipe(CALIBRATION_PROMPT, num_inference_steps=steps, output_type="latent", **arguments)
