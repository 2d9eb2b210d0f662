"""Whether a later call was given the same tensors."""

from __future__ import annotations

import torch

from tokenprune.engine.conditions import Conditions


def test_the_same_tensors_are_shared() -> None:
    text, pooled = torch.ones(3), torch.ones(3)
    first = Conditions({"text": text, "pooled": pooled, "scale": 4.0})
    assert first.shared_with(Conditions({"text": text, "pooled": pooled.clone()})) == {"text"}
    assert list(first) == ["text", "pooled"]
    assert not Conditions({"scale": 4.0})


def test_they_are_not_kept_alive() -> None:
    first = Conditions({"text": torch.ones(3)})
    assert first.shared_with(first) == set()
