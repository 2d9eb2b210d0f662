"""How classifier-free guidance lies in a batch, with halves and with a perturbed third, and what it makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenprune.ops.guidance import (
    PARTS,
    Guidance,
    branches_of,
    combined,
    conditional_rows,
    count_images,
    guidance_of_parts,
    guided,
    halves_agree,
    parts_agree,
)

ORDERS: dict[Guidance, tuple[str, ...]] = {
    "none": ("cond",),
    "uncond-first": ("uncond", "cond"),
    "cond-first": ("cond", "uncond"),
    "uncond-cond-perturbed": ("uncond", "cond", "perturbed"),
}
"""What each part of a batch is."""
IMAGES = 2
VALUES = {"cond": 5.0, "uncond": 1.0, "perturbed": 100.0}
every = pytest.mark.parametrize("guidance", ORDERS)


def batch(guidance: Guidance) -> Tensor:
    """A batch [G * 2, 1] with 5 and 6 for conditional rows, 1 and 2 for unconditional ones, 100 and 101 for others."""
    return torch.tensor([[VALUES[part] + image] for part in ORDERS[guidance] for image in range(IMAGES)])


def test_every_kind_is_looked_at() -> None:
    assert ORDERS.keys() == PARTS.keys()


@every
def test_parts(guidance: Guidance) -> None:
    assert PARTS[guidance] == len(ORDERS[guidance])
    rows = conditional_rows(len(batch(guidance)), guidance)
    assert batch(guidance)[rows.start : rows.stop, 0].tolist() == [5, 6]


@every
def test_branches(guidance: Guidance) -> None:
    cond, uncond = branches_of(batch(guidance), guidance)
    assert cond.flatten().tolist() == [5, 6]
    assert (uncond is None) == (guidance == "none")
    assert uncond is None or uncond.flatten().tolist() == [1, 2]


@every
def test_what_guidance_makes_of_them(guidance: Guidance) -> None:
    """The perturbed part is no part of it: what it adds depends on a scale that nobody tells."""
    expected = [5, 6] if guidance == "none" else [1 + 3 * 4, 2 + 3 * 4]
    assert guided(batch(guidance), guidance, 3.0).flatten().tolist() == expected
    cond, uncond = branches_of(batch(guidance), guidance)
    assert torch.equal(guided(batch(guidance), guidance, 3.0), combined(cond, uncond, 3.0))


@every
def test_images_are_counted(guidance: Guidance) -> None:
    assert count_images(torch.zeros(12, 3), guidance) == 12 // len(ORDERS[guidance])


@pytest.mark.parametrize(("parts", "images"), [(1, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("order", ["uncond-first", "cond-first"])
def test_images_are_counted_by_equal_parts(parts: int, images: int, order: Guidance) -> None:
    """Thirds are those of perturbed guidance, which only models with the unconditional half first have."""
    latents = torch.arange(images, dtype=torch.float32)[:, None].repeat(parts, 1)
    expected = parts * images if parts == 3 and order == "cond-first" else images
    assert count_images(latents, None, order) == expected
    assert [parts_agree(latents, number) for number in (1, 2, 3)] == [True, parts == 2, parts == 3]
    assert halves_agree(latents) == (parts == 2)


@pytest.mark.parametrize(
    ("parts", "order", "expected"),
    [
        (1, "uncond-first", "none"),
        (2, "uncond-first", "uncond-first"),
        (2, "cond-first", "cond-first"),
        (3, "uncond-first", "uncond-cond-perturbed"),
        (3, "cond-first", "none"),
        (3, "uncond-cond-perturbed", "uncond-cond-perturbed"),
        (2, "uncond-cond-perturbed", "none"),
        (1, "none", "none"),
    ],
)
def test_guidance_by_the_number_of_parts(parts: int, order: Guidance, expected: Guidance) -> None:
    assert guidance_of_parts(parts, order) == expected
