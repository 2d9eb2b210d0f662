"""Models of diffusers that cannot be pruned, with the reason, and those that make neither images nor video."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tokenprune import ModuleMap, UnsupportedModelError

OWN_MAP = "a module map of your own may cover a variant of it: apply(..., adapter=function)"


@dataclass(frozen=True)
class Refusal:
    """Why a class of models is refused.

    Attributes:
        why: what of it pruning cannot work with.
        advice: what to do instead.
    """

    why: str
    advice: str = OWN_MAP


LINEAR = Refusal(
    "its linear attention sums up all tokens in one state, without keys and values to keep, and its feed-forward "
    "layers are convolutions over the token grid"
)
ROUTED = Refusal(
    "its experts choose their tokens among all tokens of an image, so a token's output depends on which others are "
    "computed"
)
RECURRENT = Refusal("its attention is recurrent over chunks of the sequence, without keys and values to keep")
STREAMED = Refusal(
    "it draws a video piece by piece, and calls of it write keys and values to a cache of its own for the pieces to "
    "come; those of a call that computes some tokens alone would have gaps"
)
FLEX = Refusal("it attends through flex attention with masks made for blocks of a fixed sequence")
TILES = Refusal(
    "it attends in tiles of 64 tokens through flex attention, chosen from all tokens anew at each step, and needs all "
    "tokens of a tile"
)
FACES = Refusal("its face adapter takes the tokens apart into frames of equal length")
PICTURES = Refusal(
    "it goes back to a picture right behind its blocks, and convolutions mix its tokens",
    "apply to a pipeline with a transformer that works on tokens throughout",
)
FILLING = Refusal(
    "it fills in discrete tokens, and has no latents whose prediction could be held from step to step; convolutions "
    "mix its tokens",
    "apply to a pipeline with a diffusion transformer",
)
REFUSALS = {
    "AnyFlowFARTransformer3DModel": Refusal(FLEX.why, "draw the whole video at once, with AnyFlowPipeline"),
    "DreamLiteTransformer2DModel": PICTURES,
    "Kandinsky6SRTransformer3DModel": TILES,
    "NucleusMoEImageTransformer2DModel": ROUTED,
    "SanaTransformer2DModel": LINEAR,
    "SanaVideoTransformer3DModel": LINEAR,
    "SanaWMLTX2RefinerTransformer3DModel": STREAMED,
    "SanaWMTransformer3DModel": RECURRENT,
    "UVit2DModel": FILLING,
    "WanAnimate2Transformer3DModel": FLEX,
    "WanAnimateTransformer3DModel": FACES,
}
"""By class; pyproject.toml names `refuse` as the adapter of each."""

SOUND, PROTEINS = "sound", "proteins"
EMBEDDINGS = "image embeddings from text"
PART = "a part of U-Nets"
OTHERS = {
    "AceStepTransformer1DModel": SOUND,
    "DualTransformer2DModel": PART,
    "LongCatAudioDiTTransformer": SOUND,
    "MiniMaxMusic3RVQDepthDecoder": SOUND,
    "MiniMaxMusic3Transformer1DModel": SOUND,
    "PriorTransformer": EMBEDDINGS,
    "RFD4ProteinaTransformer": PROTEINS,
    "StableAudio3DiTModel": SOUND,
    "StableAudioDiTModel": SOUND,
    "T5FilmDecoder": SOUND,
    "TransformerTemporalModel": PART,
}
"""Transformers of diffusers that are none of images or video, and what they are for; no adapter is registered."""


def refuse(model: nn.Module) -> ModuleMap:
    """Raise the reason.

    Raises:
        UnsupportedModelError: always.
    """
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in REFUSALS:
            refusal = REFUSALS[ancestor.__name__]
            raise UnsupportedModelError(
                f"{ancestor.__name__}: token pruning cannot work with this model: {refusal.why}. Instead: "
                f"{refusal.advice}"
            )
    raise UnsupportedModelError(f"{type(model).__name__}: token pruning cannot work with this model")
