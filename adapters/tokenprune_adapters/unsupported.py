"""Models that are known and cannot be pruned."""

from __future__ import annotations

from torch import nn

from tokenprune import ModuleMap, UnsupportedModelError

LINEAR = (
    "its linear attention sums up all tokens in one state, without keys and values to keep, and its feed-forward "
    "layers are convolutions over the token grid"
)
ROUTED = (
    "its experts choose their tokens among all tokens of an image, so a token's output depends on which others are "
    "computed"
)
RECURRENT = "its attention is recurrent over chunks of the sequence, without keys and values to keep"
FLEX = "it attends through flex attention with masks made for blocks of a fixed sequence"
FACES = "its face adapter takes the tokens apart into frames of equal length"
REASONS = {
    "SanaTransformer2DModel": LINEAR,
    "SanaVideoTransformer3DModel": LINEAR,
    "SanaWMTransformer3DModel": RECURRENT,
    "NucleusMoEImageTransformer2DModel": ROUTED,
    "AnyFlowFARTransformer3DModel": FLEX,
    "WanAnimateTransformer3DModel": FACES,
    "WanAnimate2Transformer3DModel": FLEX,
}
"""Why, by class."""


def refuse(model: nn.Module) -> ModuleMap:
    """Raise the reason.

    Raises:
        UnsupportedModelError: always.
    """
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in REASONS:
            raise UnsupportedModelError(
                f"{ancestor.__name__}: token pruning cannot work with this model: {REASONS[ancestor.__name__]}. A "
                f"module map of your own may cover a variant of it: apply(..., adapter=function)"
            )
    raise UnsupportedModelError(f"{type(model).__name__}: token pruning cannot work with this model")
