"""A generation that begins at a lower noise level than the last one had reached: not to be taken for its rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy

POLICY = CATPolicy(0.3, 2, num_clusters=5)
GUIDANCE = ["batched", "sequential", "none"]
WHOLE = torch.tensor([1000.0, 900.0, 800.0, 700.0])
BELOW = torch.tensor([400.0, 300.0, 200.0, 100.0, 50.0])


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("stop", [1, 2, 4], ids=["one step", "interrupted", "whole"])
@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("prompt", [0, 5], ids=["same prompt", "other prompt"])
def test_copied_timesteps(
    model: nn.Module,
    guidance: str,
    stop: int,
    length: int,
    prompt: int,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """Texts are other tensors, and the latents are those of another image: that tells, where no table does."""
    wanted = {"guidance": guidance, "times": "fresh", "table": BELOW[:length], "seeds": (3,), "prompts": (prompt,)}
    fresh = generate_fresh(model, POLICY, **wanted)
    with tokenprune.apply(model, POLICY) as handle:
        generate(model, guidance=guidance, times="fresh", table=WHOLE, stop=stop)
        assert torch.equal(generate(model, **wanted), fresh)
        assert [step.full for step in handle.report().steps] == ([True] * 2 + [False] * 3)[:length]


@pytest.mark.parametrize("fall", [0.02, 0.1])
def test_a_text_that_changes_midway_is_no_new_generation(
    sd3: nn.Module,
    fall: float,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Callable[..., Any],
) -> None:
    """As callbacks do it: the latents go on along the same line."""
    image, noise = make_latents((1,), (4, 6)), make_latents((2,), (4, 6))
    texts = [make_condition((0,), 5), make_condition((7,), 5)]
    with tokenprune.apply(sd3, POLICY, guidance="none") as handle, torch.no_grad():
        for step in range(6):
            level = 1 - fall * step
            latents = (1 - level) * image + level * noise
            predict(sd3, latents, torch.full((1,), 1000 * level), texts[step > 3])
        assert handle.report().generations == 1
        assert [step.full for step in handle.report().steps] == [True] * 2 + [False] * 4


def test_texts_that_are_made_anew_at_every_step_say_nothing(
    sd3: nn.Module,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Callable[..., Any],
) -> None:
    image, noise = make_latents((1,), (4, 6)), make_latents((2,), (4, 6))
    with tokenprune.apply(sd3, POLICY, guidance="none") as handle, torch.no_grad():
        for step in range(6):
            level = 1 - 0.1 * step
            latents = (1 - level) * image + level * noise
            predict(sd3, latents, torch.full((1,), 1000 * level), make_condition((0,), 5))
        assert handle.report().generations == 1


@pytest.mark.parametrize("policy_name", ["at-edm", "toca"])
def test_attention_of_a_generation_that_was_given_up_is_not_used(
    sd3: nn.Module, policy_name: str, generate: Callable[..., Tensor]
) -> None:
    """Whose attention it was cannot be told afterwards: the step is full."""
    policy: Any = {"at-edm": tokenprune.AttentionRankPolicy, "toca": tokenprune.TocaPolicy}[policy_name](0.3, 1)
    with tokenprune.apply(sd3, policy) as handle:
        generate(sd3, times="fresh", stop=1)
        generate(sd3, prompts=(5,), times="fresh")
        assert [step.full for step in handle.report().steps][:3] == [True, True, False]
