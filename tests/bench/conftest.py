"""The embedded pipeline that the bench is tried on."""

from __future__ import annotations

from typing import Any

import pytest

from tokenprune.embedded.load import EMBEDDED


@pytest.fixture(scope="package")
def pipe() -> Any:
    pipe = EMBEDDED["shapes-sd3"].load()
    pipe.set_progress_bar_config(disable=True)
    return pipe
