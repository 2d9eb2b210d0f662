"""Every adapter passes the kit, on a small model of its class."""

from __future__ import annotations

import pytest
from tiny import ALL, Tiny

from tokenprune.testing import check_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers warns of its own old names
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # Mochi asks for float32, which the CPU has anyway
]


@pytest.mark.parametrize("tiny", ALL, ids=[tiny.name for tiny in ALL])
def test_the_kit(tiny: Tiny) -> None:
    check_adapter(tiny.make, tiny.inputs(), image_of=tiny.image_of)
