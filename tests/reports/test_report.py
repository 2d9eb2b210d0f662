"""What a handle reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, DensePolicy, NoisePolicy

POLICY = NoisePolicy(0.3, 3)


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
    assert str(report).startswith("no steps yet; SD3Transformer2DModel, ")
    assert "; a step full " in str(report)
    assert repr(report) == "Report(no steps yet)"
    assert "none yet" in report._repr_html_()


def test_report_in_the_middle_changes_nothing(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    table, given, results = torch.linspace(1000, 20, 6), make_condition((0,), 5), {}
    for asked in (False, True):
        results[asked] = []
        with tokenprune.apply(sd3, POLICY) as handle, torch.no_grad():
            for i, time in enumerate(table):
                results[asked].append(predict(sd3, make_latents((i,), (4, 6)), time.expand(1), given))
                if asked and i == 3:
                    report = handle.report()
                    counts = report.token_counts.clone()
    assert all(torch.equal(a, b) for a, b in zip(*results.values(), strict=True))
    assert step_fields(report) == EXPECTED[:4]
    assert torch.equal(report.token_counts, counts)


def test_report_runs_no_hook_of_the_user(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    """A hook may read its tensors, and counting has none with numbers in them."""
    seen = []

    def read(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(float(output[0].sum()))

    with tokenprune.apply(sd3, POLICY) as handle:
        for path in ("", "transformer_blocks.1.attn", "proj_out"):
            sd3.get_submodule(path).register_forward_hook(read)
        generate(sd3, stop=4)
        calls = len(seen)
        handle.report()
        assert len(seen) == calls
        generate(sd3, stop=4)
        assert len(seen) == 2 * calls


def offload_whole(model: nn.Module) -> nn.Module:
    return cpu_offload_with_hook(model, execution_device="cpu")[0]


def offload_parts(model: nn.Module) -> nn.Module:
    return cpu_offload(model, execution_device="cpu")


def offload_groups(model: nn.Module) -> nn.Module:
    model.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    return model


@pytest.mark.parametrize("offload", [offload_whole, offload_parts, offload_groups])
def test_offloading(
    make_model: Callable[[str], nn.Module],
    offload: Callable[[nn.Module], nn.Module],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """Libraries that offload weights wrap the forward of modules; results and reports stay the same."""
    plain_model = make_model("sd3")
    plain, fresh = generate(plain_model), generate_fresh(plain_model, POLICY)
    with tokenprune.apply(plain_model, POLICY) as handle:
        generate(plain_model)
        expected = handle.report()
    model = offload(make_model("sd3"))
    with tokenprune.apply(model, POLICY) as handle:
        assert torch.equal(generate(model), fresh)
        report = handle.report()
        assert (report.macs, report.dense_macs) == (expected.macs, expected.dense_macs)
        assert torch.equal(generate(model), fresh)
    assert torch.equal(generate(model), plain)


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


def test_cache_bytes_do_not_grow(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, CATPolicy(0.3, 3)) as handle:
        generate(sd3)
        once = handle.report().cache_bytes
        for seed in range(3):
            generate(sd3, seeds=(seed,))
        assert handle.report().cache_bytes == once > 0


def test_cache_bytes_cover_keys_and_values(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    """3 joint sites of 24 + 5 tokens and 1 image site of 24, keys and values, 32 channels, a batch of 2, float32."""
    with tokenprune.apply(sd3, POLICY) as handle:
        generate(sd3)
        keys_and_values = 2 * 2 * 32 * 4 * (3 * 29 + 24)
        predictions = 2 * 24 * 16 * 4
        assert keys_and_values + predictions <= handle.report().cache_bytes <= keys_and_values + 4 * predictions
