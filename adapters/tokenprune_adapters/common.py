"""What module maps of several families have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from tokenprune import Arguments, BlockSite, TokenArgument, TokenGrid, latent_grid, num_tokens

TEXT = TokenArgument("encoder_hidden_states", "text")
"""Text tokens of joint sequences [B, T, C]."""


def paths(model: nn.Module, *lists: str) -> tuple[str, ...]:
    """Names of all modules in lists of the model, such as `transformer_blocks.0`."""
    return tuple(f"{name}.{i}" for name in lists for i, _ in enumerate(model.get_submodule(name).children()))


def sites(blocks: Iterable[str], *tokens: TokenArgument | str) -> tuple[BlockSite, ...]:
    """Blocks with the same arguments; a name alone stands for tensors [B, N, C]."""
    arguments = tuple(TokenArgument(token) if isinstance(token, str) else token for token in tokens)
    return tuple(BlockSite(path, arguments) for path in blocks)


def rotary(name: str = "image_rotary_emb") -> TokenArgument:
    """Cosines and sines [N, D], the same for all images."""
    return TokenArgument(name, dim=0, batch=None)


def text_keys(blocks: Iterable[str], attention: str = "attn2", *more: str) -> tuple[str, ...]:
    """Key and value layers of cross-attention to the text."""
    return tuple(f"{path}.{attention}.{name}" for path in blocks for name in ("to_k", "to_v", *more))


def frames_first(patch: tuple[int, ...], argument: str = "hidden_states") -> Callable[[Arguments], TokenGrid]:
    """A grid reader for latents [B, F, C, h, w], whose channels come after the frames."""

    def grid(arguments: Arguments) -> TokenGrid:
        return latent_grid("latents", patch)({"latents": arguments[argument][:, :, 0]})

    return grid


def frames_or_picture(frames: int, height: int, width: int) -> TokenGrid:
    """The grid of a video, or of a picture where there is one frame."""
    return (height, width) if frames == 1 else (frames, height, width)


def pooled_tokens(arguments: Arguments, pictures: Mapping[str, int], patch: tuple[int, ...]) -> int:
    """How many tokens videos [B, C, F, h, w] among the arguments give, each in patches so many times as large.

    What is left at the edges is padded to a patch; videos that are not given give none.
    """
    videos = ((arguments.get(name), factor) for name, factor in pictures.items())
    given = ((video.shape[-3:], factor) for video, factor in videos if video is not None)
    return sum(
        math.prod(math.ceil(extent / (factor * size)) for extent, size in zip(extents, patch, strict=True))
        for extents, factor in given
    )


def rectangle(ids: Tensor, first: int = 1) -> TokenGrid:
    """The grid of a picture from its tokens' positions [N, columns], rows and columns at `first` and `first + 1`.

    Tokens whose other columns differ from the first token's are no part of it. Those that fill no rectangle are a row.
    """
    others = [column for column in range(ids.shape[1]) if column not in (first, first + 1)]
    own = ids[(ids[:, others] == ids[0, others]).all(1)][:, first : first + 2]
    height, width = (len(own[:, axis].unique()) for axis in (0, 1))  # steps may be of any size
    return (height, width) if height * width == len(own) else (1, len(own))


def grid_of_ids(argument: str, tokens: str = "hidden_states", first: int = 1) -> Callable[[Arguments], TokenGrid]:
    """A grid reader for models that get positions of image tokens: ids [N, 3 or 4], with or without a batch.

    The ids are the last rows of the argument, as many as `tokens` [B, N, C] has. The columns `first` and `first + 1`
    are row and column; tokens whose other columns differ from the first token's are reference tokens. Ids without
    values (on torch's meta device) give one row of tokens.
    """

    def grid(arguments: Arguments) -> TokenGrid:
        ids = arguments[argument]
        ids = (ids[0] if ids.ndim == 3 else ids)[-arguments[tokens].shape[1] :]
        return (1, len(ids)) if ids.is_meta else rectangle(ids, first)

    return grid


def after(argument: str, grid: Callable[[Arguments], TokenGrid]) -> Callable[[Arguments], tuple[int, int]]:
    """How many reference tokens follow those of the grid in an argument [B, N, C]."""

    def references(arguments: Arguments) -> tuple[int, int]:
        tokens: Any = arguments[argument]
        return 0, tokens.shape[1] - num_tokens(grid(arguments))

    return references
