"""Pictures of any kind as pictures that a page can hold."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tokenprune.errors import ConfigurationError

Frames: TypeAlias = list[list[Any]]
"""Pictures of PIL [B][frames]; one frame each, but for videos."""

SMALL = 256
"""Pictures of up to so many pixels a side are kept as they are (PNG), larger ones as JPEG."""

QUALITY = 90
SHARED = 16
"""Frames that are shown, at most, of a video whose frames have one selection in common."""

KINDS = "pictures of PIL, arrays [height, width, 3] or tensors [3, height, width]"


def read(pictures: Any, place: str, frames: int, images: int | None = None) -> Frames:
    """The pictures of a run or step, whatever they come as.

    Args:
        pictures: one picture or a sequence of them, one for each image; for videos a sequence of frames or a sequence
            of these. A picture is one of PIL, an array [height, width, 3] or a tensor [3, height, width], bytes or
            fractions from 0 to 1. Arrays and tensors may have the outer dimensions, too.
        place: what to call them in an error.
        frames: extent of the token grid in time; of a longer video one frame is taken for each. Where it is 1, videos
            are those of models with one selection for all frames.
        images: how many there should be; None for any number.

    Raises:
        ConfigurationError: they are something else, or not as many.
    """
    found = _nested(pictures, place)
    depth = _depth(found)
    if frames == 1:  # of a video, too: one selection may be that of all frames
        levels = {0: lambda: [[found]], 1: lambda: [[each] for each in found], 2: lambda: found}
        wanted = "one picture or one for each image"
    else:
        levels = {1: lambda: [found], 2: lambda: found}
        wanted = "the frames of a video, or those of each image"
    if depth not in levels or found == []:
        raise ConfigurationError(f"{place}: expected {wanted}, got {depth} levels of sequences of pictures")
    whole = levels[depth]()
    if not all(isinstance(each, list) and each and not any(isinstance(one, list) for one in each) for each in whole):
        raise ConfigurationError(
            f"{place}: expected {wanted}, got sequences within others that are not alike, or empty"
        )
    whole = [_spread(each, min(len(each), SHARED) if frames == 1 else frames) for each in whole]
    if images is not None and len(whole) != images:
        raise ConfigurationError(f"{place}: expected pictures of {images} images, as the trace has, got {len(whole)}")
    return whole


def _spread(video: list[Any], frames: int) -> list[Any]:
    """As many frames, evenly from the first to the last."""
    last = max(1, frames - 1)
    return [video[round(place * (len(video) - 1) / last)] for place in range(frames)]


def _depth(found: Any) -> int:
    depth = 0
    while isinstance(found, list):
        found, depth = (found[0] if found else None), depth + 1
    return depth


def _nested(pictures: Any, place: str) -> Any:
    """Pictures of PIL in as many lists as they came in sequences or outer dimensions."""
    from PIL.Image import Image as PilImage

    if isinstance(pictures, PilImage):
        return pictures.convert("RGB")
    if isinstance(pictures, (list, tuple)):
        return [_nested(each, place) for each in pictures]
    if isinstance(pictures, Tensor):
        values = pictures.detach().cpu()
        if values.ndim < 3 or values.shape[-3] != 3:
            raise ConfigurationError(f"{place}: expected {KINDS}, got a tensor {list(values.shape)}")
        values = values.movedim(-3, -1)
    else:
        try:
            values = torch.tensor(pictures)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"{place}: expected {KINDS}, got a {type(pictures).__name__}") from error
        if values.ndim < 3 or values.shape[-1] != 3:
            raise ConfigurationError(f"{place}: expected {KINDS}, got an array {list(values.shape)}")
    return _split(_whole_numbers(values, place))


def _whole_numbers(values: Tensor, place: str) -> Tensor:
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point() or not (values.isfinite() & (values > -0.01) & (values < 1.01)).all():
        low, high = values.min().item(), values.max().item()
        raise ConfigurationError(
            f"{place}: expected colours as bytes (uint8) or as fractions from 0 to 1, got {values.dtype} from {low:g} "
            f"to {high:g}"
        )
    return (values.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _split(values: Tensor) -> Any:
    from PIL.Image import fromarray

    return fromarray(values.numpy()) if values.ndim == 3 else [_split(each) for each in values]


@dataclass(frozen=True)
class Encoder:
    """Writes pictures into a page.

    Args:
        side: most pixels of a side; larger pictures are scaled down.
    """

    side: int

    def encode(self, pictures: Frames) -> list[list[str]]:
        """Each picture as a data URI."""
        return [[self._one(picture) for picture in frames] for frames in pictures]

    def _one(self, picture: Any) -> str:
        from PIL.Image import Resampling

        longest = max(picture.size)
        if longest > self.side:
            size = [max(1, round(extent * self.side / longest)) for extent in picture.size]
            picture = picture.resize((size[0], size[1]), Resampling.LANCZOS)
        kind = "PNG" if max(picture.size) <= SMALL else "JPEG"
        content = BytesIO()
        picture.save(content, kind, **({"optimize": True} if kind == "PNG" else {"quality": QUALITY}))
        return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
