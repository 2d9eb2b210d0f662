"""Pipelines with several transformers: experts for parts of the noise levels, or one for each guidance branch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from tiny import TEXT, VIDEOS, T, noise
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    AlreadyPrunedError,
    CATPolicy,
    ErrorControlledPolicy,
    Handle,
    Hold,
    ListSchedule,
    NoisePolicy,
    Plan,
    RefreshSchedule,
    Reuse,
    Selection,
    SelectionPolicy,
    Taylor,
    WarmupSchedule,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
WAN = next(tiny for tiny in VIDEOS if tiny.name == "wan")
TEXTS = {"prompt_embeds": noise(1, T, TEXT), "negative_prompt_embeds": noise(1, T, TEXT, seed=1)}
STEPS, TOKENS, FEW = 8, 36, 10  # int(0.3 * 36)
POLICY = ErrorControlledPolicy(0.3, 3)
NAMES = ("transformer", "transformer_2")


def other(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.2 * parameter.data.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def pipe() -> WanPipeline:
    """Of 8 steps the first expert makes 4."""
    absent = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    made = WanPipeline(
        **absent, scheduler=scheduler, transformer=WAN.make(), transformer_2=other(WAN.make()), boundary_ratio=0.55
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe: WanPipeline, seed: int = 0, steps: int = STEPS, **more: Any) -> Tensor:
    size = {"height": 48, "width": 64, "num_frames": 9, "output_type": "latent"}
    wanted = {**TEXTS, **size, "guidance_scale": 4.0, "guidance_scale_2": 3.0, **more}
    return pipe(**wanted, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed)).frames


@pytest.mark.parametrize("reuse", [Hold(), Taylor(keys=True)], ids=str)
def test_keys_and_values_in_host_memory(pipe: WanPipeline, reuse: Reuse) -> None:
    """Both experts' lie there by turns; each brings its own."""
    plan = Plan(NoisePolicy(), ListSchedule([1.0, 1.0, 1.0, 0.3, 1.0, 1.0, 0.3, 0.3]), reuse)
    with tokenprune.apply(pipe, plan) as handle:
        expected = [draw(pipe), draw(pipe, seed=1)]
        whole = handle.report()
    with tokenprune.apply(pipe, plan, cache_device="cpu") as handle:
        assert all(map(torch.equal, expected, [draw(pipe), draw(pipe, seed=1)]))
        report = handle.report()
    assert whole.host_cache_bytes == 0 < report.host_cache_bytes
    assert set(report.transformers) == set(NAMES)
    assert all(0 < each.host_cache_bytes <= report.host_cache_bytes for each in report.transformers.values())


def counts(handle: Handle) -> list[int]:
    return [step.tokens for step in handle.report().steps]


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[tuple[dict[str, Any], Tensor]]]:
    """Every call of a model: what it was given and gave."""
    calls: list[tuple[dict[str, Any], Tensor]] = []
    given: list[dict[str, Any]] = []

    def before(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        given.append({**kwargs, "hidden_states": kwargs["hidden_states"].clone()})

    def after(_: nn.Module, __: Any, output: Any) -> None:
        calls.append((given[-1], output[0].clone()))

    handles = (
        model.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        model.register_forward_hook(after),
    )
    yield calls
    for handle in handles:
        handle.remove()


def test_the_experts_are_those_of_two_stages(pipe: WanPipeline) -> None:
    """What the tests below rest on."""
    with recorded(pipe.transformer) as first, recorded(pipe.transformer_2) as second:
        draw(pipe)
    assert (len(first), len(second)) == (2 * 4, 2 * 4)
    assert not torch.equal(draw(pipe), draw(pipe, guidance_scale_2=4.0))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [36, 36, 36, FEW, 36, FEW, FEW, FEW]),
        (WarmupSchedule(0.3, 6), [36] * 6 + [FEW] * 2),
        (WarmupSchedule(0.3, 2, last_full=1), [36, 36, FEW, FEW, 36, FEW, FEW, 36]),
        (RefreshSchedule(3, 0.3, 2), [36, 36, FEW, FEW, 36, FEW, FEW, 36]),
        (RefreshSchedule(3, 0.0, 1), [36, 0, 0, 36, 36, 0, 36, 0]),
    ],
    ids=["warm-up", "warm-up past the boundary", "full at the end", "refreshed", "skipped"],
)
def test_one_schedule_over_both(pipe: WanPipeline, schedule: Any, expected: list[int]) -> None:
    """Each step of an expert is what the expert makes by itself, with the same counts; its first is full."""
    first, second = pipe.transformer, pipe.transformer_2
    with tokenprune.apply(pipe, POLICY, schedule=schedule) as handle:
        for seed in (1, 0):
            with recorded(first) as of_first, recorded(second) as of_second:
                draw(pipe, seed)
            assert counts(handle) == expected
        assert handle.report().generations == 2
    for model, calls, own in ((first, of_first, expected[:4]), (second, of_second, expected[4:])):
        assert len(calls) == 8
        fractions = ListSchedule(tuple({36: 1.0, FEW: 0.3, 0: 0.0}[count] for count in own))
        with torch.no_grad(), tokenprune.apply(model, POLICY, schedule=fractions) as alone:
            for number, (given, output) in enumerate(calls):
                with model.cache_context("uncond" if number % 2 else "cond"):
                    assert torch.equal(model(**given)[0], output)
            assert counts(alone) == own


def test_full_steps_are_those_of_the_plain_pipeline(pipe: WanPipeline) -> None:
    plain = draw(pipe)
    with tokenprune.apply(pipe, NoisePolicy(1.0, 1)):
        assert torch.equal(draw(pipe), plain)
    with tokenprune.apply(pipe, POLICY):
        assert not torch.equal(draw(pipe), plain)
    assert torch.equal(draw(pipe), plain)
    modules = [module for name in NAMES for module in getattr(pipe, name).modules()]
    assert not any(name.startswith("_tokenprune") for module in modules for name in module.__dict__)


def test_policies_see_what_the_first_expert_said_last(pipe: WanPipeline) -> None:
    """The second expert's relative noise after its first step is that to the first expert's last prediction."""
    with tokenprune.apply(pipe, NoisePolicy(0.3, 3), trace=True) as handle:
        draw(pipe)
        trace = handle.trace
    assert [step.report.step for step in trace.steps] == list(range(STEPS))
    assert trace.computed.shape == (STEPS, 1, TOKENS)
    change = trace.relative_noise_to(3)[4]
    assert torch.equal(trace.steps[4].relative_noise, change)
    assert change.min() > 0
    assert torch.equal(trace.steps[5].computed, Selection.top(change, FEW).mask())


@pytest.mark.parametrize("policy", [CATPolicy(0.3, 3, num_clusters=4), POLICY], ids=["cat", "error-controlled"])
def test_generations_follow_each_other(pipe: WanPipeline, policy: SelectionPolicy) -> None:
    with tokenprune.apply(pipe, policy):
        fresh = draw(pipe, 1)
    with tokenprune.apply(pipe, policy) as handle:
        draw(pipe)
        assert torch.equal(draw(pipe, 1), fresh)
        draw(pipe, 2, steps=2)  # one step of each expert
        handle.reset()
        assert torch.equal(draw(pipe, 1), fresh)
        assert handle.report().generations == 4


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_an_interrupted_generation(pipe: WanPipeline, stop: int) -> None:
    def callback(_: Any, step: int, __: Any, found: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == stop:
            raise Stop
        return found

    with tokenprune.apply(pipe, POLICY):
        fresh = draw(pipe, 1)
    with tokenprune.apply(pipe, POLICY) as handle:
        with pytest.raises(Stop):
            draw(pipe, callback_on_step_end=callback)
        assert len(handle.report().steps) == stop
        assert torch.equal(draw(pipe, 1), fresh)


def test_an_error_in_the_second_expert_ends_the_generation_of_both(pipe: WanPipeline) -> None:
    with tokenprune.apply(pipe, POLICY) as handle:
        fresh = draw(pipe, 1)

        def fail(*_: Any) -> None:
            raise Stop

        broken = pipe.transformer_2.blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(Stop):
            draw(pipe)
        broken.remove()
        assert [part.masked.nbytes for part in handle._parts.values()] == [0, 0]
        assert torch.equal(draw(pipe, 1), fresh)


def test_report_of_both(pipe: WanPipeline) -> None:
    with tokenprune.apply(pipe, POLICY) as handle:
        draw(pipe)
        report = handle.report()
    each = [report.transformers[name] for name in NAMES]
    assert list(report.transformers) == list(NAMES)
    assert [[step.step for step in one.steps] for one in each] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert report.macs.total == sum(one.macs.total for one in each)
    assert report.dense_macs.total == 2 * each[0].dense_macs.total == 2 * each[1].dense_macs.total
    assert report.tokens == 4 * 36 + 4 * FEW
    assert report.dense_tokens == 8 * 36
    assert report.token_counts is not None
    assert int(report.token_counts.sum()) == report.tokens
    assert report.mac_ratio == pytest.approx((each[0].mac_ratio + each[1].mac_ratio) / 2)
    assert f"; transformer_2: 4 steps, {each[1].mac_ratio:.1%} of the MACs" in str(report)
    assert handle.transformers == {"transformer": pipe.transformer, "transformer_2": pipe.transformer_2}
    assert repr(handle).startswith("Handle(WanTransformer3DModel and WanTransformer3DModel, Error")


def test_an_experts_caches_are_freed_once_the_other_goes_on(pipe: WanPipeline) -> None:
    held = []

    def look(_: Any, step: int, __: Any, found: dict[str, Any]) -> dict[str, Any]:
        held.append([part.masked.nbytes > 0 for part in handle._parts.values()])
        return found

    with tokenprune.apply(pipe, POLICY) as handle:
        for _ in range(2):
            draw(pipe, callback_on_step_end=look)
        peaks = [report.cache_bytes for report in handle.report().transformers.values()]
        assert max(peaks) < handle.report().cache_bytes <= sum(peaks)
    assert held[:8] == [[True, False]] * 4 + [[True, True]] + [[False, True]] * 3
    assert held[8:] == [[True, True]] + [[True, False]] * 3 + [[True, True]] + [[False, True]] * 3


@pytest.mark.parametrize("wanted", ["transformer", "transformer_2", ["transformer_2"], NAMES[::-1]])
def test_transformers_may_be_chosen(pipe: WanPipeline, wanted: Any) -> None:
    names = [wanted] if isinstance(wanted, str) else sorted(wanted)
    with tokenprune.apply(pipe, POLICY, transformers=wanted) as handle:
        draw(pipe)
        assert list(handle.transformers) == names
        assert tokenprune.handle_of(pipe) is handle
        alone = [36, 36, 36, FEW]  # each by itself has its own warm-up
        assert counts(handle) == (alone if len(names) == 1 else [36, 36, 36, FEW, 36, FEW, FEW, FEW])


@pytest.mark.parametrize("wanted", ["vae", [], ["transformer", "transformer_3"]])
def test_transformers_that_are_not_there(pipe: WanPipeline, wanted: Any) -> None:
    with pytest.raises(ValueError, match="transformers: expected some of transformer, transformer_2, got"):
        tokenprune.apply(pipe, POLICY, transformers=wanted)


def test_one_of_them_is_pruned_already(pipe: WanPipeline) -> None:
    plain = draw(pipe)
    with tokenprune.apply(pipe.transformer_2, POLICY) as handle:
        with pytest.raises(AlreadyPrunedError):
            tokenprune.apply(pipe, POLICY)
        assert tokenprune.handle_of(pipe.transformer) is None
        assert tokenprune.handle_of(pipe) is handle
    assert torch.equal(draw(pipe), plain)


def test_taken_off_by_either(pipe: WanPipeline) -> None:
    plain = draw(pipe)
    tokenprune.apply(pipe, POLICY)
    assert tokenprune.remove(pipe.transformer_2)
    assert tokenprune.handle_of(pipe.transformer) is None
    assert torch.equal(draw(pipe), plain)


def test_a_pipeline_with_the_second_alone(pipe: WanPipeline) -> None:
    lone = WanPipeline(None, None, None, pipe.scheduler, None, pipe.transformer_2, boundary_ratio=1.5)
    lone.set_progress_bar_config(disable=True)
    with tokenprune.apply(lone, POLICY) as handle:
        draw(lone)
        assert list(handle.transformers) == ["transformer_2"]
        assert counts(handle) == [36] * 3 + [FEW] * 5


def test_a_guidance_scale_for_each(pipe: WanPipeline) -> None:
    """Policies see what each expert's guided prediction is."""
    scales = {"transformer": 4.0, "transformer_2": 3.0}
    with recorded(pipe.transformer_2) as calls:
        draw(pipe)
    with (
        recorded(pipe.transformer_2) as calls,
        tokenprune.apply(pipe, NoisePolicy(0.3, 3), guidance_scale=scales, trace=True) as handle,
    ):
        draw(pipe)
        trace = handle.trace
    conditional, unconditional = calls[0][1], calls[1][1]
    guided = unconditional + 3.0 * (conditional - unconditional)
    tokens = guided.unflatten(3, (3, 2)).unflatten(5, (4, 2)).permute(0, 2, 3, 5, 4, 6, 1).reshape(1, TOKENS, -1)
    torch.testing.assert_close(trace.steps[4].prediction, tokens)
    for wrong in ({"transformer": 4.0}, {**scales, "vae": 1.0}):
        with pytest.raises(ValueError, match="guidance_scale: expected a number for each of transformer, tr"):
            tokenprune.apply(pipe, POLICY, guidance_scale=wrong)


def test_it_is_told_once(pipe: WanPipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tokenprune"), tokenprune.apply(pipe, POLICY):
        draw(pipe)
        draw(pipe)
    _, *told = [record.getMessage() for record in caplog.records]  # the first is what is told in advance
    assert told == ["2 transformers are pruned: transformer, transformer_2; apply(..., transformers=...) chooses"]


def test_a_transformer_for_each_guidance_branch() -> None:
    """As in Ideogram 4: both are called at every step; each is as if alone."""
    models = WAN.make(), other(WAN.make())
    pipe = SimpleNamespace(transformer=models[0], unconditional_transformer=models[1])
    table, text = torch.linspace(1000, 100, 6), noise(1, T, TEXT)

    def generate() -> list[list[Tensor]]:
        latents, made = noise(1, 4, 3, 6, 8), []
        with torch.no_grad():
            for time in table:
                made.append([model(latents, time.expand(1), text, return_dict=False)[0] for model in models])
                latents = latents - 0.1 * (made[-1][1] + 3 * (made[-1][0] - made[-1][1]))
        return made

    with tokenprune.apply(pipe, POLICY) as handle:
        for _ in range(2):
            found = generate()
            assert counts(handle) == [36] * 3 + [FEW] * 3
        report = handle.report()
        assert report.generations == 2
        assert report.tokens == 3 * 36 + 3 * FEW
        assert report.macs.total == sum(one.macs.total for one in report.transformers.values())
        assert [len(one.steps) for one in report.transformers.values()] == [6, 6]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(tokenprune.apply(model, POLICY))
        latents = noise(1, 4, 3, 6, 8)
        with torch.no_grad():
            for time, pair in zip(table, found, strict=True):
                alone = [model(latents, time.expand(1), text, return_dict=False)[0] for model in models]
                assert all(torch.equal(one, two) for one, two in zip(alone, pair, strict=True))
                latents = latents - 0.1 * (pair[1] + 3 * (pair[0] - pair[1]))


@pytest.mark.parametrize("budget", [0.5, 0.7])
def test_the_recommended_plan_for_a_transformer_of_each_guidance_branch(budget: float) -> None:
    """A step of both is one step: they are full and skipped together, and the budget counts it once."""
    models = WAN.make(), other(WAN.make())
    pipe = SimpleNamespace(transformer=models[0], unconditional_transformer=models[1])
    text, latents = noise(1, T, TEXT), noise(1, 4, 3, 6, 8)
    with tokenprune.apply(pipe, tokenprune.plan(pipe, budget)) as handle, torch.no_grad():
        for time in torch.linspace(1000, 100, 10):
            pair = [model(latents, time.expand(1), text, return_dict=False)[0] for model in models]
            latents = latents - 0.1 * (pair[1] + 3 * (pair[0] - pair[1]))
        one, two = handle.report().transformers.values()
    full = [[step.step for step in each.steps if step.full] for each in (one, two)]
    assert full[0] == full[1]
    assert len(full[0]) == int(budget * 10)


def test_experts_without_adapters(pipe: WanPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is discovered at its first call, the second one in the middle of a generation.

    What the pipeline calls its branches is known from the call after that on, so that there is one more full step.
    """
    monkeypatch.setattr("tokenprune.installed.entry_points", lambda **_: ())
    with tokenprune.apply(pipe, NoisePolicy(0.3, 3)) as handle:
        draw(pipe)
        assert counts(handle) == [36, 36, 36, FEW, 36, 36, FEW, FEW]
        assert any(note.startswith("transformer_2: ") for note in handle.report().notes)
        draw(pipe)
        assert counts(handle) == [36, 36, 36, FEW, 36, FEW, FEW, FEW]
        assert handle.report().generations == 2


@pytest.mark.parametrize("budget", [0.5, 0.7, 0.8])
def test_the_recommended_plan_over_both(pipe: WanPipeline, budget: float) -> None:
    """Full steps are counted over the whole generation; each expert's first step is full, and latents are corrected."""
    plain = draw(pipe)
    with tokenprune.apply(pipe, tokenprune.plan(pipe, budget)) as handle:
        made, again = draw(pipe), draw(pipe)
        report = handle.report()
    full = [step.step for step in report.steps if step.full]
    assert {0, 4} <= set(full)
    assert len(full) <= int(budget * STEPS) + 1  # the second expert's first step may come on top
    after_a_gap = [step for step in full if step and step - 1 not in full]
    assert [step.step for step in report.steps if step.correction is not None] == after_a_gap
    assert torch.equal(made, again)
    assert not torch.equal(made, plain)
    assert torch.equal(draw(pipe), plain)
