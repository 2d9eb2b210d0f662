"""Attention that cannot be pruned says so at the first full step; attention that changed, at the step that it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import processors
import pytest
import torch
import torch.nn.functional as F
from processors import Once
from torch import Tensor, nn

import tokenprune
from tokenprune import AttentionError, AttentionSite, ModuleMap, NoisePolicy
from tokenprune.ops.grid import TokenGrid

GRID, TOKENS = (4, 5), 20
POLICY = NoisePolicy(0.4, 2)  # 8 of 20 tokens


class Region(Once):
    """Some of the queries attend to keys of their own."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        inside = processors.attend(query[:, :, :6], key, value)
        return torch.cat([inside, processors.attend(query[:, :, 6:], 2 * key, value)], dim=2)


class MaskedQueries(Once):
    """Parts of the queries, each with its own rows of a mask."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(5)
        parts = zip(query.split(8, dim=2), mask.split(8), strict=True)
        return torch.cat([processors.attend(part, key, value, attn_mask=rows) for part, rows in parts], dim=2)


class Backwards(Once):
    """Twice over each image: which call is for which image is not known."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        rows = [slice(image, image + 1) for image in range(len(query))]
        return torch.cat([sum(processors.attend(query[r], s * key[r], value[r]) for s in (1, 2)) for r in rows])


class Causal(Once):
    """The second call is causal."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        return processors.attend(query, key, value) + processors.attend(query, 2 * key, value, is_causal=True)


class Wider(Once):
    """A second call with more keys than the image's, in a place that the map does not tell of."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        more = (torch.cat([one[:, :, :3], one], dim=2) for one in (key, value))
        return processors.attend(query, key, value) + processors.attend(query, *more)


class Prompt(Once):
    """No call sees the image keys."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        return processors.attend(query, key[:, :, :4], value[:, :, :4])


@pytest.mark.parametrize(
    ("kind", "processor", "message"),
    [
        ("pixart", Region, r"expected the queries of all tokens for each set of keys, got 6 queries for 20 keys"),
        ("sd3-plain", Region, r"expected the queries of all tokens for each set of keys, got 6 queries for 25 keys"),
        ("pixart", MaskedQueries, "expected all queries in one call, as the mask has a row for each, got 8, 8, 4"),
        (
            "sd3-plain",
            MaskedQueries,
            "expected all queries in one call, as the mask has a row for each, got 8, 8, 8, 1",
        ),
        (
            "pixart",
            Backwards,
            r".* over each part of it once and in order, got calls over 1, 1, 1, 1 rows; which images",
        ),
        ("sd3-plain", Causal, "causal attention cannot be pruned"),
        ("pixart", Wider, r"expected 20 image keys, got 23 keys; .* nothing in its `further` of attention call 2"),
        ("pixart", Prompt, "expected 20 image keys, got 4 keys; the module map calls its layout 'image'"),
        ("sd3-plain", Prompt, "expected 20 image keys and the text keys, got 4 keys"),
    ],
)
def test_refused_at_the_first_step(
    kind: str,
    processor: type[Once],
    message: str,
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
) -> None:
    model, wanted = make_model(kind), {"seeds": (0, 1), "guidance": "none", "grid": GRID}
    processors.put(model, processor())
    plain = generate(model, **wanted)
    with tokenprune.apply(model, POLICY):
        for _ in range(2):
            with pytest.raises(AttentionError, match=rf"transformer_blocks\.0\.attn1?: {message}"):
                generate(model, stop=1, **wanted)
        processors.put(model, Once())
        generate(model, **wanted)
    processors.put(model, processor())
    assert torch.equal(generate(model, **wanted), plain)


def test_parts_of_a_batch_of_one_image_may_come_in_any_order(
    make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    model = make_model("pixart")
    processors.put(model, Backwards())
    generate_fresh(model, POLICY, guidance="batched", grid=GRID)


class Changing(processors.Twice):
    """Does another thing from some step on.

    Args:
        then: what it does then.
    """

    def __init__(self, then: Once) -> None:
        super().__init__(0)
        self.then, self.changed = then, False

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        return (self.then if self.changed else super()).mix(attn, query, key, value, tokens)


@pytest.mark.parametrize("kind", ["pixart", "sd3-plain"])
@pytest.mark.parametrize(
    ("then", "got"),
    [
        (Once(), r"got 1 attention calls"),
        (processors.Images(), r"got \[1, 4, \d+, 8\] \[B, H, n \+ T, D\]"),
        (processors.Heads(2), r"got \[2, 2, \d+, 8\] \[B, H, n \+ T, D\]"),
        (processors.TwiceInTurn(1), r"got (\[2, 4, 14, 8\] \[B, H, n \+ T, D\]|\[2, 4, 8, 8\] \[B, H, n \+ T, D\])"),
        (processors.Identity(), r"got \[1, 4, \d+, 8\] \[B, H, n \+ T, D\]"),
    ],
    ids=["fewer", "images", "heads", "more", "off"],
)
def test_calls_that_change_at_a_pruned_step(
    kind: str, then: Once, got: str, make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    model, wanted = make_model(kind), {"seeds": (0, 1), "guidance": "none", "grid": GRID}
    processor = Changing(then)
    processors.put(model, processor)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        processor.changed = calls == 4

    message = rf"transformer_blocks\.0\.attn1?: expected .* as at the last full step, {got}; .* reset\(\)"
    with model.register_forward_pre_hook(count), tokenprune.apply(model, POLICY):
        with pytest.raises(AttentionError, match=message):
            generate(model, **wanted)
        calls = 4
        generate(model, **wanted)


def test_two_calls_with_the_same_keys_that_differ_at_a_pruned_step(
    make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    class Same(processors.Twice):
        def other(self, key: Tensor, value: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
            return (key, value) if key.shape[2] == TOKENS else (2 * key, value)

    model = make_model("pixart")
    processors.put(model, Same())
    with (
        tokenprune.apply(model, POLICY),
        pytest.raises(AttentionError, match=r"got other keys \[1, 4, 8, 8\] in attention call 2"),
    ):
        generate(model, guidance="none", grid=GRID)


# Attention that is not seen -----------------------------------------------------------------------------------------


def test_no_attention_at_all(make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]) -> None:
    """Values in the place of attention, and no call of the model that attends: a back-end that is not seen, maybe."""

    class Values(Once):
        def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
            return value

    model = make_model("pixart")
    processors.put(model, Values())
    message = r"without torch's .* \(Guidance that leaves attention out, such as PAG or STG, is told from that by an "
    with tokenprune.apply(model, POLICY), pytest.raises(AttentionError, match=message):
        generate(model, guidance="none")


class Off(Once):
    """Attention that can be switched off: then each token is given its own value.

    Attributes:
        off: whether it is.
    """

    off = False

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        return value if self.off else super().mix(attn, query, key, value, tokens)


@dataclass
class Sampler:
    """A step is a call, then another of the same branch with attention off in the first block."""

    model: nn.Module
    predict: Callable[..., Tensor]
    given: Any
    order: tuple[bool, ...] = (False, True)

    def __call__(self, steps: int = 6, off: Callable[[int, bool], bool] = lambda _, off: off) -> Tensor:
        generator, found = torch.Generator().manual_seed(0), []
        processor = self.model.transformer_blocks[0].attn1.processor
        with torch.no_grad():
            for step, time in enumerate(torch.linspace(1000, 100, steps)):
                latents = torch.randn(1, 4, 8, 10, generator=generator)
                for second in self.order:
                    processor.off = off(step, second)
                    found.append(self.predict(self.model, latents, time.expand(1), self.given))
        return torch.stack(found)


@pytest.fixture
def sampler(pixart: nn.Module, predict: Callable[..., Tensor], make_condition: Any) -> Sampler:
    for block in pixart.transformer_blocks:
        block.attn1.processor = Off()
    return Sampler(pixart, predict, make_condition((0,), 5))


def test_a_branch_without_attention_in_a_layer(sampler: Sampler) -> None:
    plain = sampler()
    with tokenprune.apply(sampler.model, NoisePolicy(1.0, 1)):
        assert torch.equal(sampler(), plain)
    with tokenprune.apply(sampler.model, POLICY):
        first = sampler()
        assert torch.equal(first[:4], plain[:4])
        assert not torch.allclose(first[5], plain[5])
        assert torch.equal(sampler(), first), "the next generation takes over what is known of the layer"


def test_a_branch_without_attention_that_comes_first(sampler: Sampler) -> None:
    sampler.order = (True, False)
    with tokenprune.apply(sampler.model, POLICY), pytest.raises(AttentionError, match="Guidance that leaves attention"):
        sampler()


@pytest.mark.parametrize("step", [3, 5])
def test_attention_switched_off_at_a_pruned_step(sampler: Sampler, step: int) -> None:
    with tokenprune.apply(sampler.model, POLICY):
        message = r"transformer_blocks\.0\.attn1: .* those of \[1, 4, 8, D\] as at the last full step, got no attention"
        with pytest.raises(AttentionError, match=message):
            sampler(off=lambda now, second: second or now == step)
        message = r"transformer_blocks\.0\.attn1: .* none, as there were none before, got \[1, 4, 8, 8\]"
        with pytest.raises(AttentionError, match=message):
            sampler(off=lambda now, second: second and now != step)


def test_another_back_end_in_the_middle(sampler: Sampler) -> None:
    """A full step without attention calls that the processor made before: it is another back-end's by now."""
    processor = sampler.model.transformer_blocks[0].attn1.processor

    def switch(step: int, second: bool) -> bool:
        processor._attention_backend = "flash" if step == 1 and second else None
        return second

    with tokenprune.apply(sampler.model, POLICY), pytest.raises(AttentionError, match="without torch's"):
        sampler(off=lambda step, second: switch(step, second) and step == 1)


# What to do about attention that is not seen ------------------------------------------------------------------------


class Tiny(nn.Module):
    """A transformer of one block.

    Args:
        attention: its attention module.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.out = attention, nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.attention(x))


class WithMultihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


class Dispatching(nn.Module):
    """As diffusers' newer modules: the processor knows its back-end."""

    class Processor:
        _attention_backend = "flash"

    def __init__(self) -> None:
        super().__init__()
        self.processor = self.Processor()

    forward = Plain.forward


class TinyOfDiffusers(Tiny):
    def set_attention_backend(self, backend: str) -> None:
        raise NotImplementedError

    def set_attn_processor(self, processor: Any) -> None:
        raise NotImplementedError


def tiny_map(model: nn.Module) -> ModuleMap:
    def grid(_: Any) -> TokenGrid:
        return (4, 5)

    return ModuleMap(("attention",), (AttentionSite("attention"),), "out", grid, "x", "x", "t", text=None)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (
            Tiny(WithMultihead()),
            r"torch\.nn\.MultiheadAttention attends within one function of torch: write the module",
        ),
        (TinyOfDiffusers(WithMultihead()), r"torch\.nn\.MultiheadAttention attends within one function of torch"),
        (Tiny(Plain()), r"Let the module call torch\.nn\.functional\.scaled_dot_product_attention\. "),
        (TinyOfDiffusers(Dispatching()), r"Use a native back-end: model\.set_attention_backend\('native'\)"),
        (Tiny(Dispatching()), r"Let the module call torch\.nn\.functional\.scaled_dot_product_attention\. "),
    ],
    ids=["multihead", "multihead of diffusers", "plain", "back-end", "back-end without the method"],
)
def test_advice(model: nn.Module, advice: str) -> None:
    found = tiny_map(model)
    found = replace(found, blocks=(tokenprune.BlockSite("attention", (tokenprune.TokenArgument("x"),)),))
    refused = pytest.raises(AttentionError, match=rf"attention: {type(model.attention).__name__} .*{advice}")
    with tokenprune.apply(model, POLICY, adapter=lambda _: found), torch.no_grad(), refused as caught:
        model(torch.randn(1, 20, 8), torch.tensor([900.0]))
    assert ("set_attention_backend" in str(caught.value)) == (
        isinstance(model.attention, Dispatching) and isinstance(model, TinyOfDiffusers)
    )


def sage(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value


def test_a_function_in_the_place_of_torchs(
    sd3: nn.Module, generate: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", sage)
    message = r"scaled_dot_product_attention was replaced by \S*test_attention_refused\.sage: put torch's own back"
    with tokenprune.apply(sd3, POLICY), pytest.raises(AttentionError, match=message) as caught:
        generate(sd3)
    assert "set_attention_backend" not in str(caught.value)


def test_a_wrapper_of_torchs_function(
    sd3: nn.Module,
    generate_fresh: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends in torch's own, which is seen."""
    expected, own = generate_fresh(sd3, POLICY), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given, **named: own(*given, **named))
    assert torch.equal(generate_fresh(sd3, POLICY), expected)
