"""Pruned steps that hold the text: what the model is given, what they refuse, and that the text is really held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    CATPolicy,
    HeldText,
    Hold,
    NoisePolicy,
    Plan,
    Reuse,
    Taylor,
    UnsupportedCallError,
    UnsupportedModelError,
)
from tokenprune.registry import find_adapter
from tokenprune.testing import AdapterCheckError, check_adapter

POLICY = NoisePolicy(0.3, 2)
STEPS = 8
CASES = {case.name: case for case in tiny.ALL}


def draw(model: nn.Module, predict: Any, latents: Tensor, given: Any, plan: Plan) -> tuple[Tensor, list[int]]:
    """The last output of a generation, and how many text tokens the first block was given at each step."""
    texts: list[int] = []

    def watch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        texts.append(kwargs["encoder_hidden_states"].shape[1])

    output = latents
    with tokenprune.apply(model, plan), torch.no_grad():
        seen = model.transformer_blocks[0].register_forward_pre_hook(watch, with_kwargs=True)
        for time in torch.linspace(1000, 100, STEPS):
            output = predict(model, latents, time.expand(len(latents)), given)
        seen.remove()
    return output, texts


@pytest.mark.parametrize("reuse", [Hold(), Taylor(keys=True)], ids=["held keys", "forecast keys"])
def test_the_model_gets_one_text_token_where_the_text_is_held(
    sd3: nn.Module,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
    reuse: Reuse,
) -> None:
    latents, given = make_latents((0, 1), (4, 6)), make_condition((0, 1), 5)

    def run(every: int | None) -> tuple[Tensor, list[int]]:
        return draw(sd3, predict, latents, given, Plan(POLICY, HeldText(POLICY.schedule(), every), reuse))

    plain = draw(sd3, predict, latents, given, Plan(POLICY, reuse=reuse))
    always, second, never = run(1), run(2), run(None)
    assert torch.equal(always[0], plain[0])
    assert always[1] == plain[1] == [5] * STEPS
    assert second[1] == [5, 5, 1, 5, 1, 5, 1, 5]
    assert never[1] == [5, 5, 1, 1, 1, 1, 1, 1]
    assert not torch.equal(never[0], plain[0])
    assert (second[0] - plain[0]).abs().max() < 0.1 * plain[0].abs().max()


def test_the_kit_sees_whether_the_text_is_held_right() -> None:
    """With the first text token's rows taken for another's, steps that hold the text are wrong."""
    case = CASES["flux"]

    def wrong(model: nn.Module) -> Any:
        found = find_adapter(model)(model)
        kept = tuple(argument for argument in found.inputs if argument.name != "txt_ids")
        return replace(found, token_inputs=kept)

    passed = {finding.name: finding.outcome for finding in check_adapter(case.make, case.inputs()).findings}
    assert passed["held text"] == "passed"
    with pytest.raises(AdapterCheckError, match="breaks 'held text'"):
        check_adapter(case.make, case.inputs(), adapter=wrong)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pixart", "its image tokens share no sequence with text tokens"),
        ("wan", "its image tokens share no sequence with text tokens"),
        ("auraflow", "names no arguments with a row for each text token"),
        ("hunyuan-video-1.5", "names no arguments with a row for each text token"),
    ],
)
def test_models_that_must_have_their_text_are_refused(name: str, reason: str) -> None:
    model = CASES[name].make()
    schedule = HeldText(POLICY.schedule(), None)
    with pytest.raises(UnsupportedModelError, match=reason):
        tokenprune.apply(model, POLICY, schedule=schedule)
    tokenprune.apply(model, POLICY, schedule=HeldText(POLICY.schedule(), 1)).remove()


def test_two_sequences_of_keys_are_refused_at_the_first_step(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    attention = sd3.transformer_blocks[1].attn
    own = attention.processor

    class Twice(nn.Module):
        """Attends once more, to other text, as an image prompt's processor does."""

        def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, **more: Any) -> Any:
            output = own(attn, hidden_states, encoder_hidden_states, **more)
            own(attn, hidden_states, encoder_hidden_states.flip(1), **more)
            return output

    latents, given = make_latents((0,), (4, 6)), make_condition((0,), 5)
    attention.set_processor(Twice())
    with (
        tokenprune.apply(sd3, CATPolicy(0.3, 2), schedule=HeldText(POLICY.schedule())),
        torch.no_grad(),
        pytest.raises(UnsupportedCallError, match="images attend to 2 sequences of keys"),
    ):
        predict(sd3, latents, torch.tensor([900.0]), given)


def test_places_of_their_own_are_refused_at_the_first_call() -> None:
    case = CASES["lumina2"]
    model = case.make()

    def named(found: nn.Module) -> Any:
        own = find_adapter(found)(found)
        return replace(own, token_inputs=(*own.inputs, tokenprune.TokenArgument("encoder_hidden_states", "text")))

    with (
        tokenprune.apply(model, POLICY, schedule=HeldText(POLICY.schedule()), adapter=named),
        torch.no_grad(),
        pytest.raises(UnsupportedCallError, match="images begin at places of their own"),
    ):
        model(**case.inputs())
