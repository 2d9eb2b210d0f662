"""Errors while the model runs: each says what was wrong, and the next generation is as on a fresh handle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AttentionError,
    AttentionSite,
    CATPolicy,
    Memory,
    ModuleMap,
    NoisePolicy,
    Observation,
    Selection,
    SelectionError,
    SelectionPolicy,
    UnsupportedCallError,
)
from tokenprune.registry import find_adapter

PLAIN = NoisePolicy(0.3, 2)


@dataclass(frozen=True, eq=False)
class Made(SelectionPolicy):
    """Selects what a function makes of what is seen."""

    make: Callable[[Observation], Any] = Selection

    def select(self, seen: Observation, memory: Memory) -> Selection:
        return self.make(seen)


class HandMade:
    """Attention without torch's scaled_dot_product_attention, for SD3's joint blocks."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Any:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if encoder_hidden_states is not None:
            query = torch.cat([query, attn.add_q_proj(encoder_hidden_states)], dim=1)
            key = torch.cat([key, attn.add_k_proj(encoder_hidden_states)], dim=1)
            value = torch.cat([value, attn.add_v_proj(encoder_hidden_states)], dim=1)
        mixed = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(-1) @ value
        tokens = hidden_states.shape[1]
        image = attn.to_out[0](mixed[:, :tokens])
        if encoder_hidden_states is None:
            return image
        text = mixed[:, tokens:]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def hooked(model: nn.Module) -> list[str]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    return [name for name, module in model.named_modules() if any(getattr(module, kind) for kind in kinds)]


@pytest.mark.parametrize(
    ("kind", "processor", "site"),
    [("sd3", HandMade, "transformer_blocks.0.attn"), ("pixart", AttnProcessor, "transformer_blocks.0.attn1")],
)
def test_attention_that_bypasses_torch(
    kind: str,
    processor: type,
    site: str,
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
) -> None:
    model = make_model(kind)
    native = model.transformer_blocks[0].get_submodule(site.rpartition(".")[2]).processor
    model.set_attn_processor(processor())
    plain = generate(model)
    with tokenprune.apply(model, PLAIN):
        for _ in range(2):
            with pytest.raises(AttentionError, match="without torch's scaled_dot_product_attention") as caught:
                generate(model)
        message = str(caught.value)
        assert message.startswith(
            f"{site}: {type(model.get_submodule(site)).__name__} (processor {processor.__name__})"
        )
        assert "such as diffusers' AttnProcessor2_0, through model.set_attn_processor()" in message
        assert "set_attention_backend" not in message, "these processors know of no back-ends"
        model.set_attn_processor(native)
        generate(model)
        model.set_attn_processor(processor())
    assert hooked(model) == []
    assert torch.equal(generate(model), plain)


def index(
    seen: Observation, images: int | None = None, count: int | None = None, tokens: int | None = None
) -> Selection:
    """A selection as wanted, but for what is given."""
    batch, size = seen.prediction.shape[:2]
    count, tokens = count or seen.count, tokens or size
    return Selection.from_index(torch.arange(count).expand(images or batch, count), tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda seen: index(seen, count=6),
            r"expected indices \[B, n\] = \[1, 7\] out of 24 tokens, got \[1, 6\] out of 24",
        ),
        (lambda seen: index(seen, images=2), r"expected indices \[B, n\] = \[1, 7\] .* got \[2, 7\] out of 24"),
        (lambda seen: index(seen, tokens=25), r"expected indices \[B, n\] = \[1, 7\] .* got \[1, 7\] out of 25"),
        (lambda seen: index(seen).index, r"expected a Selection \(Selection.top or Selection.from_index .* got Tensor"),
        (lambda _: None, "expected a Selection .* got NoneType"),
        (lambda _: Selection.from_index(torch.zeros(1, 7, dtype=torch.int64), 24), "unique tokens per image"),
        (
            lambda _: Selection.from_index(torch.arange(20, 27)[None], 24),
            r"expected values in 0\.\.23, got 20\.\.26",
        ),
        (lambda seen: Selection.top(seen.prediction, 7), r"scores: expected shape \[B, N\]"),
    ],
    ids=["n", "B", "N", "tensor", "nothing", "duplicates", "range", "scores"],
)
def test_a_policy_that_returns_something_else(
    sd3: nn.Module, make: Callable[[Observation], Any], message: str, generate: Callable[..., Tensor]
) -> None:
    plain = generate(sd3)
    with tokenprune.apply(sd3, Made(0.3, 2, make=make)):
        for _ in range(2):
            with pytest.raises(SelectionError, match=message):
                generate(sd3)
        assert torch.equal(generate(sd3, stop=2), plain[:2])
    assert torch.equal(generate(sd3), plain)


def test_the_message_names_the_policy_and_the_step(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with (
        tokenprune.apply(sd3, Made(0.3, 2, make=lambda _: None)),
        pytest.raises(SelectionError, match=r"Made\.select at step 2: "),
    ):
        generate(sd3)


@pytest.mark.parametrize("before", [0, 1, 4])
def test_gradients(
    model: nn.Module,
    before: int,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
) -> None:
    fresh, plain, call = (
        generate_fresh(model, PLAIN),
        generate(model),
        (make_latents((0,), (4, 6)), torch.tensor([900.0])),
    )
    with tokenprune.apply(model, PLAIN):
        if before:
            generate(model, stop=before)
        message = (
            rf"{type(model).__name__}: .* gradients; call the model under torch.no_grad\(\) or remove\(\) the handle"
        )
        with pytest.raises(UnsupportedCallError, match=message):
            predict(model, *call, make_condition((0,), 5))
        assert torch.equal(generate(model), fresh)
    predict(model, *call, make_condition((0,), 5)).sum().backward()
    assert torch.equal(generate(model), plain)


def test_no_timestep(sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Any, make_condition: Any) -> None:
    message = "SD3Transformer2DModel: expected the argument 'timestep', got none"
    with tokenprune.apply(sd3, PLAIN), torch.no_grad(), pytest.raises(UnsupportedCallError, match=message):
        predict(sd3, make_latents((0,), (4, 6)), None, make_condition((0,), 5))


def test_a_wrong_layout_is_found_at_the_first_step(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    def adapter(model: nn.Module) -> ModuleMap:
        found = find_adapter(model)(model)
        return replace(found, attentions=tuple(AttentionSite(site.path) for site in found.attentions))

    plain = generate(sd3)
    message = (
        r"transformer_blocks\.0\.attn: expected 24 image keys, got 29 keys; the module map calls its layout 'image'"
    )
    with tokenprune.apply(sd3, PLAIN, adapter=adapter), pytest.raises(AttentionError, match=message):
        generate(sd3)
    assert torch.equal(generate(sd3), plain)


def test_a_text_of_another_length_at_a_pruned_step(
    sd3: nn.Module,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    fresh, latents = generate_fresh(sd3, PLAIN), make_latents((0,), (4, 6))
    with tokenprune.apply(sd3, PLAIN):
        with torch.no_grad():
            for time in (900.0, 800.0):
                predict(sd3, latents, torch.tensor([time]), make_condition((0,), 5))
            with pytest.raises(AttentionError, match=r"transformer_blocks\.0\.attn: .* the text changed its length"):
                predict(sd3, latents, torch.tensor([700.0]), make_condition((0,), 7))
        assert torch.equal(generate(sd3), fresh)


def check_nan(
    layer: nn.Module, model: nn.Module, policy: SelectionPolicy, guidance: str, runs: tuple[Any, Any]
) -> None:
    """As the plain model would: no exception, NaN everywhere."""
    with layer.register_forward_hook(lambda *seen: seen[-1] * math.nan):
        plain, pruned = runs[0](model, guidance=guidance), runs[1](model, policy, guidance=guidance)
    assert plain.isnan().all()
    assert pruned.isnan().all()


@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_nan_in_nan_out(
    sd3: nn.Module,
    policy: SelectionPolicy,
    guidance: str,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    check_nan(sd3.context_embedder, sd3, policy, guidance, (generate, generate_fresh))


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
def test_nan_in_the_latents(
    model: nn.Module, guidance: str, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    check_nan(model.pos_embed.proj, model, CATPolicy(0.3, 2), guidance, (generate, generate_fresh))
