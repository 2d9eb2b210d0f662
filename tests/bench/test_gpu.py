"""The command for owners of a GPU, on a CPU: what can be checked here is, what cannot is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokenprune.bench.measuring import on_device
from tokenprune.bench.measuring.on_device import checks, timed
from tokenprune.bench.studies import gpu
from tokenprune.bench.studies.gpu import Size, case_of, sizes
from tokenprune.bench.subjects.random_weights import SHAPES
from tokenprune.errors import ConfigurationError
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan
from tokenprune.policies import CATPolicy
from tokenprune.policies.cat import CATPolicy as Policy

SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 16}
PLAN = Plan(CATPolicy(0.3, 4))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["pixart-sigma"]
    config = {**shape.config, **SMALL, "cross_attention_dim": 16}
    monkeypatch.setitem(SHAPES, "pixart-sigma", replace(shape, config=config))


def make() -> on_device.Case:
    return case_of(Size("random:pixart-sigma", 128), 2, torch.device("cpu"), torch.float32)


def test_what_is_checked_on_a_cpu() -> None:
    case = make()
    found = {finding.name: finding for finding in checks(case, PLAN)}
    assert found["waiting"].outcome == "passed"
    assert found["waiting"].detail.startswith("7 pruned steps under")
    assert found["flash attention"].outcome in ("passed", "not checked")
    assert found["compiled with CUDA graphs"].detail == "CUDA graphs need a CUDA device"
    assert not case.model._forward_hooks


def test_a_policy_that_waits_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Policy.select

    def waiting(self: Policy, seen: on_device.Any, memory: on_device.Any) -> on_device.Any:
        float(seen.prediction.sum())
        return own(self, seen, memory)

    monkeypatch.setattr(Policy, "select", waiting)
    found = {finding.name: finding for finding in checks(make(), PLAN)}
    assert found["waiting"].outcome == "failed"
    assert "WaitedError" in found["waiting"].detail


def test_plans_without_pruned_steps_are_not_checked() -> None:
    assert {finding.outcome for finding in checks(make(), best_plan(0.5))} == {"not checked"}


def test_what_is_timed() -> None:
    row = timed(make(), PLAN, turns=1)
    assert (row.tokens, row.peak_bytes) == (64, None)
    assert min(row.plain, row.full, row.pruned, row.speed.ratio) > 0
    assert 1 < row.allowed < 4
    plain, pruned = row.kernels
    assert pruned.outside > plain.outside
    assert row.cache_bytes > 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    given = {"device": "cpu", "dtype": "float32", "layers": 2, "alpha": 0.3, "turns": 1, "out": out}
    gpu.main(model=["random:pixart-sigma"], size=[128], **given)
    printed = capsys.readouterr().out
    assert "compiled with CUDA graphs  not checked" in printed
    assert "| random:pixart-sigma | 128 | 64 |" in printed
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["model"], row["pixels"], row["tokens"]) == ("random:pixart-sigma", 128, 64)
    assert {check["name"] for check in row["checks"]} == {
        "waiting",
        "flash attention",
        "compiled with CUDA graphs",
    }


def test_what_is_measured_by_default() -> None:
    every = list(sizes(None, None))
    assert [each.pixels for each in every] == [512, 1024, 2048] * 2 + [None] * 2
    assert list(sizes(["x"], [256, 512])) == [Size("x", 256), Size("x", 512)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "tpu"}, "device: expected one of cpu, cuda"),
        ({"device": "cpu", "dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16"),
        ({"device": "cpu", "alpha": 1.0}, "alpha: expected a fraction of image tokens between 0 and 1"),
    ],
)
def test_bad_options_are_refused(given: dict[str, on_device.Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        gpu.main(**{"dtype": "float32", "alpha": 0.3, "out": None, **given})
