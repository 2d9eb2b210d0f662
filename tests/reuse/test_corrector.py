"""The corrector's settings; what it does is tested with samplers, in tests/engine/test_correction.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenprune import Corrector
from tokenprune.reuse.corrector import DrawnAgain, FullStep


@pytest.mark.parametrize("response", [-1.0, float("inf"), float("nan")])
def test_a_response_is_a_number_of_at_least_0(response: float) -> None:
    with pytest.raises(ValueError, match=r"response: expected a number of at least 0"):
        Corrector(response)


def test_a_response_of_another_type() -> None:
    with pytest.raises(TypeError, match="response: expected a number or None, got '12'"):
        Corrector("12")  # type: ignore[arg-type]


def test_levels_of_a_profile_fall() -> None:
    with pytest.raises(ValueError, match=r"profile: expected levels that fall, got \[0.5, 0.5\]"):
        Corrector(profile=((0.5, 1.0, 0.0), (0.5, 1.0, 0.0)))
    with pytest.raises(ValueError, match="profile: expected finite numbers"):
        Corrector(profile=((0.5, float("nan"), 0.0),))


def gap(level: float, way: Tensor, **others: Any) -> DrawnAgain:
    """A gap of a sampler that says nothing of its predictions."""
    unknown = FullStep(torch.zeros_like(way), torch.zeros_like(way), 0.0, 0.0)
    usual: dict[str, Any] = {"before": unknown, "now": unknown, "predicts": None, "change": lambda change: change}
    return DrawnAgain(3, level, way=way, **usual | others)


def at_sigma(sigma: float, prediction: Tensor) -> FullStep:
    """A full step of a rectified flow."""
    return FullStep(torch.zeros_like(prediction), prediction, 1 - sigma, sigma)


@pytest.mark.parametrize(
    ("level", "latents", "prediction"),
    [
        (1.0, 0.8, 6.0),
        (0.9, 0.8, 6.0),
        (0.7, 0.9, 4.0),
        (0.5, 1.0, 2.0),
        (0.4, 1.1, 1.0),
        (0.3, 1.2, 0.0),
        (0.0, 1.2, 0.0),
    ],
)
def test_a_profile_is_linear_between_its_points_and_constant_beyond(
    level: float, latents: float, prediction: float
) -> None:
    way = torch.randn(2, 4, 3, 3)
    corrector = Corrector(profile=((0.9, 0.8, 6.0), (0.5, 1.0, 2.0), (0.3, 1.2, 0.0)))
    found, offset = corrector.correct(gap(level, way))
    assert offset is not None
    torch.testing.assert_close(found, latents * way)
    torch.testing.assert_close(offset, prediction * way)


def test_without_a_profile_the_answer_is_solved_for() -> None:
    """With latents that move by -0.1 for a unit of the prediction, e = D / (1 + 0.1 s) at s = 12 * 0.5^2."""
    way = torch.randn(2, 4, 3, 3)
    found, offset = Corrector(response=12).correct(
        gap(0.5, way, predicts="velocity", now=at_sigma(0.5, way), change=lambda change: -0.1 * change)
    )
    assert offset is not None
    torch.testing.assert_close(found, way / 1.3)
    torch.testing.assert_close(offset, 3 * way / 1.3)
    kept, nothing = Corrector().correct(gap(0.5, way))
    assert kept is way
    assert nothing is None


def test_the_response_goes_by_the_pace_of_each_image() -> None:
    """From sigma 0.7 to 0.3, predictions of size 1 that change by 1 have the pace 0.5^0.7 / 0.4; response, then s."""
    way, now = torch.randn(3, 4, 2, 2), torch.full((3, 4, 2, 2), 1.0)
    still, turned, far = now[:1], torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), -9.0)
    found, offset = Corrector().correct(
        gap(
            0.3,
            way,
            predicts="velocity",
            before=at_sigma(0.7, torch.cat([still, turned, far])),
            now=at_sigma(0.3, now),
            change=lambda change: 0 * change,
        )
    )
    responses = torch.tensor([0.0, 12 * (0.5**0.7 / 0.4 - 1.2), 40.0 * 2 / 10**2])
    assert offset is not None
    torch.testing.assert_close(found, way)
    torch.testing.assert_close(offset, responses.view(3, 1, 1, 1) * 0.3**2 * way)
