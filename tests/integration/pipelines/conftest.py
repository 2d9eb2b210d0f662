"""Small real diffusers pipelines with random weights."""

from __future__ import annotations

import pytest
from diffusers import PixArtSigmaPipeline, StableDiffusion3Pipeline
from small import make_pixart, make_sd3


@pytest.fixture(scope="package")
def sd3_pipeline() -> StableDiffusion3Pipeline:
    return make_sd3()


@pytest.fixture(scope="package")
def pixart_pipeline() -> PixArtSigmaPipeline:
    return make_pixart()
