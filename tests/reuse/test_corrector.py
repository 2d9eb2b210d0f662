"""The corrector's settings; what it does is tested with samplers, in tests/engine/test_correction.py."""

from __future__ import annotations

import pytest

from tokenprune import Corrector


@pytest.mark.parametrize("response", [-1.0, float("inf"), float("nan")])
def test_a_response_is_a_number_of_at_least_0(response: float) -> None:
    with pytest.raises(ValueError, match=r"response: expected a number of at least 0"):
        Corrector(response)


def test_a_response_of_another_type() -> None:
    with pytest.raises(TypeError, match="response: expected a number, got '12'"):
        Corrector("12")  # type: ignore[arg-type]
