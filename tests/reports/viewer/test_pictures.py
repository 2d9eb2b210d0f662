"""Pictures of any kind become pictures of a page, or are refused."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune.errors import ConfigurationError
from tokenprune.reports.viewer.pictures import SHARED, Encoder, read

BYTES = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PICTURE = Image.fromarray(BYTES)
FRACTIONS = BYTES / np.float32(255)


def as_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


@pytest.mark.parametrize(
    "given",
    [
        PICTURE,
        [PICTURE],
        BYTES,
        BYTES[None],
        FRACTIONS,
        [FRACTIONS],
        torch.from_numpy(FRACTIONS).movedim(-1, 0),
        torch.from_numpy(BYTES.copy()).movedim(-1, 0).unsqueeze(0),
        PICTURE.convert("RGBA"),
        [[PICTURE]],
    ],
    ids=["pil", "list", "bytes", "batch", "fractions", "list-fractions", "tensor", "batch-tensor", "rgba", "one-frame"],
)
def test_one_picture_whatever_it_comes_as(given: Any) -> None:
    ((found,),) = read(given, "picture", frames=1)
    assert np.array_equal(as_array(found), BYTES)


def test_a_picture_for_each_image() -> None:
    found = read([PICTURE, PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], "picture", frames=1, images=2)
    assert [len(frames) for frames in found] == [1, 1]
    assert np.array_equal(as_array(found[1][0]), BYTES[:, ::-1])


@pytest.mark.parametrize(("length", "taken"), [(9, [0, 4, 8]), (3, [0, 1, 2]), (2, [0, 0, 1]), (1, [0, 0, 0])])
def test_of_a_video_one_frame_is_taken_for_each_of_the_grids(length: int, taken: list[int]) -> None:
    frames = [Image.new("RGB", (4, 4), (place, 0, 0)) for place in range(length)]
    for given in (frames, [frames, frames], np.stack([as_array(frame) for frame in frames])):
        for video in read(given, "picture", frames=3):
            assert [frame.getpixel((0, 0))[0] for frame in video] == taken


def test_of_a_long_video_with_one_selection_some_frames_are_taken() -> None:
    ((*found,),) = read([[PICTURE] * 40], "picture", frames=1)
    assert len(found) == SHARED


@pytest.mark.parametrize(
    ("given", "frames", "message"),
    [
        ("a.png", 1, r"picture: expected pictures of PIL, arrays \[height, width, 3\] or tensors .*, got a str"),
        (np.zeros((4, 4)), 1, r"got an array \[4, 4\]"),
        (torch.zeros(4, 4, 3), 1, r"got a tensor \[4, 4, 3\]"),
        (np.full((4, 4, 3), 7.0), 1, r"as fractions from 0 to 1, got torch.float64 from 7 to 7"),
        (np.full((4, 4, 3), np.nan), 1, r"as fractions from 0 to 1, got torch.float64 from nan to nan"),
        (np.zeros((4, 4, 3), np.int64), 1, r"as bytes \(uint8\) or .* got torch.int64 from 0 to 0"),
        ([[[PICTURE]]], 1, "expected one picture or one for each image, got 3 levels of sequences"),
        (PICTURE, 3, "expected the frames of a video, or those of each image, got 0 levels"),
        ([], 1, "expected one picture or one for each image"),
        ([[]], 1, "got sequences within others that are not alike, or empty"),
        ([[PICTURE], PICTURE], 1, "got sequences within others that are not alike, or empty"),
        ([PICTURE, [PICTURE]], 3, "got sequences within others that are not alike, or empty"),
    ],
)
def test_what_is_no_picture_is_refused(given: Any, frames: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(given, "picture", frames)


def test_another_number_of_images_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected pictures of 2 images, as the trace has, got 1"):
        read(PICTURE, "picture", frames=1, images=2)


def decoded(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    picture = Image.open(BytesIO(base64.b64decode(content)))
    assert head == f"data:image/{picture.format.lower()};base64"
    return picture


def test_small_pictures_are_kept_exactly() -> None:
    ((uri,),) = Encoder(1024).encode([[PICTURE]])
    found = decoded(uri)
    assert found.format == "PNG"
    assert np.array_equal(as_array(found), BYTES)


def test_large_pictures_are_scaled_down_to_a_side() -> None:
    whole = Image.new("RGB", (600, 300), (200, 30, 40))
    ((kept,),), ((smaller,),) = Encoder(1024).encode([[whole]]), Encoder(400).encode([[whole]])
    assert (decoded(kept).format, decoded(kept).size) == ("JPEG", (600, 300))
    assert decoded(smaller).size == (400, 200)
    assert np.abs(as_array(decoded(smaller)).astype(int) - (200, 30, 40)).max() < 4
