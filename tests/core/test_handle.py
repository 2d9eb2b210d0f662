"""The handle: its life, and its report."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, DensePolicy, NoisePolicy, SelectionPolicy

POLICY = NoisePolicy(0.3, 3)


def test_a_context_manager_removes(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    plain = generate(model)
    with tokenprune.apply(model, POLICY) as handle:
        assert isinstance(handle, tokenprune.Handle)
        assert not torch.equal(generate(model), plain)
    assert torch.equal(generate(model), plain)


def test_remove_twice(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    plain = generate(model)
    handle = tokenprune.apply(model, POLICY)
    handle.remove()
    other = tokenprune.apply(model, POLICY)
    handle.remove()
    assert not torch.equal(generate(model), plain)
    other.remove()
    assert torch.equal(generate(model), plain)


def test_a_pipeline_like_object(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    pipe, plain = SimpleNamespace(transformer=model, vae=None), generate(model)
    with tokenprune.apply(pipe, POLICY):
        through_pipe = generate(pipe.transformer)
    with tokenprune.apply(model, POLICY):
        assert torch.equal(generate(model), through_pipe)
    assert vars(pipe) == {"transformer": model, "vae": None}
    assert torch.equal(generate(model), plain)


def test_repr(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    handle = tokenprune.apply(sd3, POLICY)
    begin = "Handle(SD3Transformer2DModel, NoisePolicy(alpha=0.3, warmup_steps=3), WarmupSchedule(alpha=0.3"
    assert repr(handle).startswith(begin)
    assert "Hold()" in repr(handle)
    assert repr(handle).endswith("3 blocks, 4 attention modules, 0 generations so far)")
    generate(sd3)
    assert repr(handle).endswith("1 generations so far)")
    handle.remove()
    assert repr(handle).endswith("removed)")


def step_fields(report: tokenprune.Report) -> list[tuple[Any, ...]]:
    return [(step.step, step.tokens, step.num_tokens, step.full) for step in report.steps]


EXPECTED = [(i, 24 if i < 3 else 7, 24, i < 3) for i in range(6)]


@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_report_tells_the_latest_generation(sd3: nn.Module, guidance: str, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, POLICY) as handle:
        generate(sd3, steps=4, guidance=guidance)
        generate(sd3, seeds=(0, 1), guidance=guidance)
        report = handle.report()
        assert step_fields(report) == EXPECTED
        assert [step.time for step in report.steps] == torch.linspace(1000, 20, 6).tolist()
        assert report.generations == 2
        assert (report.tokens, report.dense_tokens) == (3 * 24 + 3 * 7, 6 * 24)
        assert report.tokens_ratio == (3 * 24 + 3 * 7) / (6 * 24)
        assert report.grid == (4, 6)
        assert report.token_counts is not None
        assert report.token_counts.shape == (2, 24)
        assert report.token_counts.sum(1).tolist() == [report.tokens] * 2
        assert report.token_counts.min() >= 3
        assert report.cache_bytes > 0
        assert report.seconds >= report.selection_seconds > 0
        assert report.seconds == pytest.approx(sum(step.seconds for step in report.steps))
        assert 0 < report.mac_ratio < 1
        assert report.ideal_speedup == pytest.approx(1 / report.mac_ratio)
        assert f"{report.tokens_ratio:.1%} of the tokens" in str(report)
        assert "6 steps (3 full, 3 pruned)" in str(report)


def test_report_of_a_dense_run(pixart: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(pixart, DensePolicy()) as handle:
        generate(pixart)
        report = handle.report()
    assert report.tokens_ratio == report.mac_ratio == report.ideal_speedup == 1
    assert all(step.full and step.selection_seconds == 0 for step in report.steps)
    assert report.selection_seconds == 0


def test_report_before_the_first_step(sd3: nn.Module) -> None:
    with tokenprune.apply(sd3, POLICY) as handle:
        report = handle.report()
    assert (report.steps, report.tokens, report.generations, report.token_counts) == ((), 0, 0, None)
    assert report.tokens_ratio == report.mac_ratio == 1
    assert "0 steps" in str(report)


def test_report_in_the_middle_changes_nothing(
    sd3: nn.Module, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    fresh = generate_fresh(sd3, POLICY)
    reports = []
    with tokenprune.apply(sd3, POLICY) as handle:
        sd3.proj_out.register_forward_hook(lambda *_: reports.append(handle.report()) if len(reports) < 1 else None)
        generate(sd3)
        middle = generate(sd3, stop=4)
        reports.append(handle.report())
        counts = reports[-1].token_counts.clone()
        assert torch.equal(middle, fresh[:4])
        assert torch.equal(generate(sd3), fresh)
        assert torch.equal(reports[-1].token_counts, counts)


def test_report_after_remove(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    """It still tells the latest generation, and counts no hooks as the model's."""
    handle = tokenprune.apply(sd3, POLICY)
    generate(sd3)
    handle.remove()
    plain = generate(sd3)
    report = handle.report()
    assert step_fields(report) == EXPECTED
    assert report.macs.total > 0
    assert 0 < report.mac_ratio < 1
    assert torch.equal(generate(sd3), plain)


def test_report_after_reset_and_after_an_error(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, POLICY) as handle:
        generate(sd3)
        handle.reset()
        assert handle.report().generations == 1
        with sd3.transformer_blocks[1].register_forward_hook(lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
            generate(sd3)
        assert handle.report().generations == 2


def test_reset_frees_the_caches(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(model, POLICY) as handle:
        generate(model, seeds=(0, 1))
        held = live_bytes()
        handle.reset()
        assert live_bytes() < held


def live_bytes() -> int:
    import gc

    gc.collect()
    return sum(o.nbytes for o in gc.get_objects() if type(o) is Tensor and not o.requires_grad)


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
@pytest.mark.parametrize("policy_used", [CATPolicy(0.3, 3), POLICY], ids=["cat", "noise"])
def test_memory_does_not_grow(
    model: nn.Module, guidance: str, policy_used: SelectionPolicy, generate: Callable[..., Tensor]
) -> None:
    held = []
    with tokenprune.apply(model, policy_used):
        for seed in range(5):
            generate(model, seeds=(seed, seed + 10), guidance=guidance)
            held.append(live_bytes())
    assert len(set(held[1:])) == 1


@pytest.mark.parametrize("times", ["table", "fresh"])
@pytest.mark.parametrize("stop", [1, 2])
def test_memory_does_not_grow_when_one_start_is_repeated(
    sd3: nn.Module, times: str, stop: int, generate: Callable[..., Tensor]
) -> None:
    """The same noise and timestep again and again, as in a benchmark or with a one-step sampler."""
    held = []
    with tokenprune.apply(sd3, POLICY):
        for _ in range(5):
            generate(sd3, stop=stop, times=times)
            held.append(live_bytes())
    assert len(set(held[1:])) == 1


def test_cache_bytes_do_not_grow(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, CATPolicy(0.3, 3)) as handle:
        sizes = []
        for seed in range(3):
            generate(sd3, seeds=(seed,))
            sizes.append(handle.report().cache_bytes)
    assert len(set(sizes)) == 1


def test_cache_bytes_cover_keys_and_values(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    """3 joint sites of 24 + 5 tokens and 1 image site of 24, keys and values, 32 channels, a batch of 2, float32."""
    with tokenprune.apply(sd3, POLICY) as handle:
        generate(sd3)
        keys_and_values = 2 * 2 * 32 * 4 * (3 * 29 + 24)
        predictions = 2 * 24 * 16 * 4
        assert keys_and_values + predictions <= handle.report().cache_bytes <= keys_and_values + 4 * predictions
