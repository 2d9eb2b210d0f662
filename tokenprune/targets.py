"""What users hand to the package: models, what other libraries wrap them in, and pipelines that hold them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from tokenprune.errors import UnknownModelError, UnsupportedModelError

PARTS = ("transformer", "transformer_2", "unconditional_transformer")
"""Under which names pipelines hold transformers that denoise: experts for parts of the noise levels (Wan 2.2, VACE,
LucyEdit), one for each guidance branch (Ideogram 4)."""


TIMES = ("timestep", "timesteps", "time_step", "t", "time", "times", "sigma", "sigmas", "noise_level", "noise_labels")
"""Names of timestep arguments, the likeliest first."""


WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
}
"""Classes whose calls run another module, and under which name they hold it."""


SHARDED = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"


@dataclass(frozen=True)
class OtherModel:
    """A kind of model that is no diffusion transformer, and what it is told by.

    Attributes:
        kind: what it is.
        why: why it cannot be pruned.
        children: parts that it has.
        arguments: one of these is an argument of its forward.
        timeless: whether it has no argument for the noise level.
    """

    kind: str
    why: str
    children: frozenset[str] = frozenset()
    arguments: frozenset[str] = frozenset()
    timeless: bool = False

    def fits(self, children: set[str], arguments: set[str]) -> bool:
        """Whether a model with these parts and arguments is of this kind."""
        asked = not self.arguments or bool(self.arguments & arguments)
        return self.children <= children and asked and not (self.timeless and set(TIMES) & arguments)


_RESOLUTIONS = "its blocks work at several resolutions, so no set of image tokens goes through all of them"
_ONCE = "it is called once for a picture or a text, not at every step, so there is no earlier step to reuse"
OTHERS = (
    OtherModel("a U-Net", _RESOLUTIONS, children=frozenset({"down_blocks", "up_blocks"})),
    OtherModel("a U-Net", _RESOLUTIONS, children=frozenset({"input_blocks", "output_blocks"})),
    OtherModel("an autoencoder", _ONCE, children=frozenset({"encoder", "decoder"}), timeless=True),
    OtherModel(
        "an encoder of text, images or sound",
        _ONCE,
        arguments=frozenset({"input_ids", "pixel_values", "input_features", "input_values"}),
        timeless=True,
    ),
)


def refuse_other_models(model: nn.Module) -> None:
    """Raise UnsupportedModelError for what is plainly no diffusion transformer, with what it is in its place."""
    children = {name for name, _ in model.named_children()}
    arguments = set(inspect.signature(model.forward).parameters)
    for other in OTHERS:
        if other.fits(children, arguments):
            raise UnsupportedModelError(
                f"{type(model).__name__}: expected a diffusion transformer, got {other.kind}: {other.why}. Apply to "
                f"the pipeline, or to its transformer"
            )


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, out of what torch.compile, DistributedDataParallel and the like wrapped it in.

    Raises:
        UnsupportedModelError: it is wrapped so that each call runs copies of it, or parts of it are wrapped for
            themselves.
    """
    while (name := _held_as(module)) is not None:
        devices = getattr(module, "device_ids", None) or ()
        if isinstance(module, nn.DataParallel) and len(devices) > 1:
            raise UnsupportedModelError(
                f"DataParallel over {len(devices)} devices: expected one model that is called at every step, got "
                f"copies made anew for each call, which cannot keep anything. Use DistributedDataParallel, or a "
                f"process for each device"
            )
        module = getattr(module, name)
    for path, part in module.named_modules():
        if SHARDED in _classes_of(part):
            raise UnsupportedModelError(
                f"{path}: {type(part).__name__} within the model hides the module that it wraps. Wrap the whole model "
                f"alone (no auto_wrap_policy), or use torch's fully_shard, which wraps nothing"
            )
    return module


def _classes_of(module: nn.Module) -> list[str]:
    return [f"{ancestor.__module__}.{ancestor.__qualname__}" for ancestor in type(module).__mro__]


def _held_as(module: nn.Module) -> str | None:
    """Under which name a wrapper holds what its calls run; None for any other module."""
    return next((WRAPPERS[name] for name in _classes_of(module) if name in WRAPPERS), None)


@dataclass(frozen=True)
class Target:
    """The transformers of what a user named.

    Attributes:
        whole: what the user named.
        called: what is called for each of them, by name in the pipeline; a model by itself is "transformer".
    """

    whole: Any
    called: dict[str, nn.Module]

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        """The same without wrappers."""
        return {name: unwrapped(module) for name, module in self.called.items()}

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a pipeline, not a model."""
        return not isinstance(self.whole, nn.Module)


def target_of(whole: Any, transformers: str | Sequence[str] | None = None) -> Target:
    """The transformers of a model or pipeline.

    Args:
        whole: a transformer, wrapped or not, or a pipeline.
        transformers: which of a pipeline's, by name; None is all that it has.

    Raises:
        UnknownModelError: it is neither.
        UnsupportedModelError: it is wrapped in a way that cannot be pruned.
        ValueError: the pipeline holds none of such a name.
    """
    if isinstance(whole, nn.Module):
        found = {PARTS[0]: whole}
    else:
        held: dict[str, Any] = {name: getattr(whole, name, None) for name in reversed(PARTS)}
        once = {id(module): name for name, module in held.items()}  # one under two names goes by the first of them
        found = {name: held[name] for name in PARTS if isinstance(held[name], nn.Module) and name in once.values()}
    if not found:
        unet = isinstance(getattr(whole, "unet", None), nn.Module)
        raise UnknownModelError(
            f"expected a transformer (torch.nn.Module) or a pipeline with a `transformer`, got {type(whole).__name__}"
            + (f", which has a U-Net: {_RESOLUTIONS}" if unet else "")
        )
    if transformers is None:
        return Target(whole, found)
    names = [transformers] if isinstance(transformers, str) else list(transformers)
    if not names or not set(names) <= set(found):
        raise ValueError(
            f"transformers: expected some of {', '.join(found)}, got {', '.join(map(str, names)) or 'none'}"
        )
    return Target(whole, {name: found[name] for name in found if name in names})


def transformer_of(whole: Any) -> nn.Module:
    """The first of `target_of`, without wrappers."""
    return next(iter(target_of(whole).models.values()))
