"""Tests of what an older version of transformers does not have."""

from __future__ import annotations

import pytest
import transformers


def needs(name: str) -> pytest.MarkDecorator:
    """Skips where transformers has no class of this name, which pipelines of diffusers import."""
    return pytest.mark.skipif(
        name not in dir(transformers),
        reason=f"transformers {transformers.__version__} has no {name}, which pipelines of diffusers import",
    )
