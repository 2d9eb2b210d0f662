"""What a trace tells, against what really happened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    CATPolicy,
    ClusterRandomPolicy,
    ErrorControlledPolicy,
    Memory,
    MixturePolicy,
    NoisePolicy,
    Observation,
    RandomPolicy,
    RegionPolicy,
    Selection,
    SelectionPolicy,
    SequentialPolicy,
    Taylor,
    Trace,
    TraceError,
)
from tokenprune.ops.guidance import GUIDANCE_SCALE
from tokenprune.schedule import ListSchedule, RefreshSchedule

CAT = CATPolicy(0.3, 3, num_clusters=5)


class Watching(SelectionPolicy):
    """Selects at random, and keeps what it saw and chose."""

    seen: list[Observation] = []  # noqa: RUF012
    chosen: list[Selection] = []  # noqa: RUF012

    def select(self, seen: Observation, memory: Memory) -> Selection:
        scores = torch.rand(seen.prediction.shape[:2], generator=torch.Generator().manual_seed(seen.step))
        self.seen.append(seen)
        self.chosen.append(Selection.top(scores, seen.count))
        return self.chosen[-1]


@pytest.fixture
def watching() -> Watching:
    Watching.seen, Watching.chosen = [], []
    return Watching(0.3, 3)


def ages_of(computed: Tensor) -> Tensor:
    """Steps since each token was last computed, before every step [S, B, N], counted one by one."""
    ages = torch.ones(computed.shape, dtype=torch.int32)
    for step in range(1, len(computed)):
        for image in range(computed.shape[1]):
            for token in range(computed.shape[2]):
                before = computed[step - 1, image, token]
                ages[step, image, token] = 1 if before else ages[step - 1, image, token] + 1
    return ages


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
def test_masks_counts_and_ages(model: nn.Module, guidance: str, generate: Callable[..., Tensor]) -> None:
    schedule = ListSchedule((1, 1, 0.3, 0, 0.3, 1, 0, 0.1, 0.3))
    with tokenprune.apply(model, CAT, schedule=schedule, trace=True) as handle:
        generate(model, seeds=(0, 1), steps=9, guidance=guidance)
        report, trace = handle.report(), handle.trace
    computed = trace.computed
    assert computed.shape == (9, 2, 24)
    assert computed.sum(2).tolist() == [[count] * 2 for count in (24, 24, 7, 0, 7, 24, 0, 2, 7)]
    assert torch.equal(computed.sum(0).int(), report.token_counts)
    ages = ages_of(computed)
    assert ages.max() >= 4
    for i, step in enumerate(trace.steps):
        assert step.report == report.steps[i]
        assert torch.equal(step.age, ages[i])
        assert torch.equal(step.staleness, torch.where(computed[i], 0, ages[i]))
        assert torch.equal(torch.zeros(2, 24, dtype=torch.bool).scatter(1, step.index, True), computed[i])
    assert trace.grid == (4, 6)


def test_it_is_what_the_policy_saw_and_chose(
    sd3: nn.Module, watching: Watching, generate: Callable[..., Tensor]
) -> None:
    with tokenprune.apply(sd3, watching, trace=True) as handle:
        generate(sd3, seeds=(0, 1), steps=7)
        steps = handle.trace.steps
    assert [step.report.full for step in steps] == [True] * 3 + [False] * 4
    for step, before, seen, chosen in zip(steps[3:], steps[2:], watching.seen, watching.chosen, strict=False):
        assert torch.equal(step.index, chosen.index)
        assert torch.equal(step.age, seen.age)
        assert torch.equal(before.prediction, seen.prediction)
        assert torch.equal(before.relative_noise, seen.relative_noise.norm(dim=-1))
        assert seen.forecast_error is None  # no policy sees more than it would without a trace
    assert all(torch.equal(seen.reference, steps[1].prediction) for seen in watching.seen)


@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_guided_predictions(sd3: nn.Module, watching: Watching, guidance: str, generate: Callable[..., Tensor]) -> None:
    """With guidance in two calls, the prediction of a step is there after the second."""
    with tokenprune.apply(sd3, watching, guidance_scale=3.0, trace=True) as handle:
        generate(sd3, steps=6, guidance=guidance)
        steps = handle.trace.steps
    assert len(watching.seen) == 3
    for before, seen in zip(steps[2:], watching.seen, strict=False):
        assert torch.equal(before.prediction, seen.prediction)


def test_dense_predictions_are_the_models(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    table, given, latents = torch.linspace(1000, 20, 3), make_condition((0, 1), 5), make_latents((0, 1), (4, 6))
    with tokenprune.apply(sd3, NoisePolicy(1.0), trace=True) as handle, torch.no_grad():
        outputs = [predict(sd3, latents, time.expand(2), given) for time in table]
        trace = handle.trace
    tokens = [output.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(2, 24, 16) for output in outputs]
    for step, expected in zip(trace.steps, tokens, strict=True):
        assert torch.equal(step.prediction, expected)
    expected = torch.stack([(one - tokens[1]).norm(dim=-1) for one in tokens])
    assert torch.equal(trace.relative_noise_to(1), expected)
    assert torch.equal(trace.steps[2].relative_noise, expected[2])
    with pytest.raises(IndexError, match="expected a step from 0 to 2, got 3"):
        trace.relative_noise_to(3)


def test_forecast_error_is_fresh_minus_held(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    """Of every policy, though this one does not ask for it; holding forecasts the last prediction, which is guided."""
    with tokenprune.apply(sd3, SequentialPolicy(0.3, 2), guidance_scale=3.0, trace=True) as handle:
        generate(sd3, seeds=(0, 1))
        first, *steps = handle.trace.steps
    assert first.forecast_error is None
    for before, step in zip((first, *steps), steps, strict=False):
        assert step.forecast_error is not None
        assert torch.equal(step.forecast_error.isnan(), ~step.computed)
        moved = (step.prediction - before.prediction).norm(dim=-1)
        torch.testing.assert_close(step.forecast_error[step.computed], moved[step.computed])
        assert (moved[~step.computed] == 0).all()


def test_forecast_error_is_that_of_usual_guidance_where_the_scale_is_unknown(
    sd3: nn.Module, generate: Callable[..., Tensor]
) -> None:
    found = []
    for scale in (None, GUIDANCE_SCALE, 1.0):
        with tokenprune.apply(sd3, SequentialPolicy(0.3, 2), guidance_scale=scale, trace=True) as handle:
            generate(sd3)
            found.append(handle.trace.steps[-1].forecast_error)
    torch.testing.assert_close(found[0], found[1], equal_nan=True)
    assert not torch.allclose(found[0], found[2], equal_nan=True)


def test_forecast_error_is_the_one_that_policies_get(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    seen = []

    class Asking(ErrorControlledPolicy):
        def score(self, observation: Observation, memory: Memory) -> Tensor:
            seen.append(observation.forecast_error.clone())
            return super().score(observation, memory)

    with tokenprune.apply(sd3, Asking(0.3, 3, order=1), reuse=Taylor(), trace=True) as handle:
        generate(sd3)
        steps = handle.trace.steps
    known = torch.zeros(1, 24)
    for step in steps[:-1]:
        if step.forecast_error is not None:
            known = torch.where(step.computed, step.forecast_error, known)
        if step.report.step >= 2:
            assert torch.equal(seen[step.report.step - 2], known)


@pytest.mark.parametrize(
    ("policy", "keys"),
    [
        (CAT, {"labels"}),
        (RegionPolicy(CAT, torch.eye(4, 6).bool()), {"inner.labels"}),
        (
            MixturePolicy(0.3, 3, parts=((NoisePolicy(), 1.0), (RegionPolicy(CAT, torch.eye(4, 6).bool()), 1.0))),
            {"1.inner.labels"},
        ),
        (
            MixturePolicy(0.5, 3, parts=((CAT, 1.0), (ClusterRandomPolicy(num_clusters=3), 1.0))),
            {"0.labels", "1.labels"},
        ),
        (NoisePolicy(0.3, 3), set()),
    ],
    ids=["cat", "region", "nested", "mixture", "none"],
)
def test_labels(policy: SelectionPolicy, keys: set[str], sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, policy, trace=True) as handle:
        generate(sd3, seeds=(0, 1))
        memory = {key: tensor.clone() for key, tensor in handle._masked.generation.choice.memory.items()}
        steps = handle.trace.steps
    assert [set(step.labels) for step in steps] == [set()] * 3 + [keys] * 3
    for key in keys:
        assert steps[-1].labels[key].shape == (2, 24)
        assert torch.equal(steps[-1].labels[key], memory[key])


def test_labels_of_every_step_are_that_steps(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    """A policy that clusters anew after a full step, or writes over its labels, does not change the past."""

    class Overwriting(RandomPolicy):
        def select(self, seen: Observation, memory: Memory) -> Selection:
            memory.setdefault("labels", torch.zeros(1, 24, dtype=torch.int64)).fill_(seen.step)
            return super().select(seen, memory)

    with tokenprune.apply(sd3, Overwriting(0.3, 3), trace=True) as handle:
        generate(sd3)
        steps = handle.trace.steps
    assert [int(step.labels["labels"].unique()) for step in steps[3:]] == [3, 4, 5]


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
def test_an_image_of_a_batch(make_model: Any, guidance: str, generate: Callable[..., Tensor]) -> None:
    model, traces = make_model("sd3"), []
    for seeds in ((3, 5), (5,)):
        with tokenprune.apply(model, CAT, trace=True, guidance="none" if guidance == "none" else None) as handle:
            generate(model, seeds=seeds, guidance=guidance)
            traces.append(handle.trace)
    together, alone = traces
    assert torch.equal(together.computed[:, 1:], alone.computed)
    assert not torch.equal(together.computed[:, 0], together.computed[:, 1])
    for both, one in zip(together.steps, alone.steps, strict=True):
        torch.testing.assert_close(both.prediction[1:], one.prediction)
        torch.testing.assert_close(both.relative_noise[1:], one.relative_noise)
        assert {key: labels[1:].tolist() for key, labels in both.labels.items()} == {
            key: labels.tolist() for key, labels in one.labels.items()
        }


@pytest.mark.parametrize("reuse", [None, Taylor(2)])
@pytest.mark.parametrize("policy", [CAT, ErrorControlledPolicy(0.3, 3)], ids=["cat", "error"])
def test_tracing_changes_nothing(
    model: nn.Module, policy: SelectionPolicy, reuse: Any, generate: Callable[..., Tensor]
) -> None:
    schedule, results, reports = RefreshSchedule(4, 0.3, 3), [], []
    for trace in (False, True):
        with tokenprune.apply(model, policy, schedule=schedule, reuse=reuse, trace=trace) as handle:
            results.append(generate(model, seeds=(0, 1), steps=9))
            reports.append(handle.report())
    assert torch.equal(*results)
    assert reports[0].cache_bytes == reports[1].cache_bytes
    assert reports[0].macs == reports[1].macs


def test_without_tracing_nothing_is_kept(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, CAT) as handle:
        generate(sd3)
        assert handle._masked.generation.recorder is None
        assert handle._masked.generation.history.forecast_error is None
        with pytest.raises(TraceError, match=r"ask for it beforehand with apply\(\.\.\., trace=True\)"):
            _ = handle.trace
    with pytest.raises(TypeError, match="trace: expected True or False, got 'yes'"):
        tokenprune.apply(sd3, CAT, trace="yes")  # type: ignore[arg-type]


def test_before_the_first_step(sd3: nn.Module) -> None:
    with tokenprune.apply(sd3, CAT, trace=True) as handle:
        trace = handle.trace
    assert (trace.steps, trace.grid, trace.nbytes) == ((), (), 0)
    assert trace.computed.shape == (0, 0, 0)
    assert str(trace).startswith("0 steps")


def assert_same(trace: Trace, expected: Trace) -> None:
    assert len(trace.steps) == len(expected.steps)
    for step, other in zip(trace.steps, expected.steps, strict=True):
        assert torch.equal(step.computed, other.computed)
        assert torch.equal(step.age, other.age)
        assert torch.equal(step.prediction, other.prediction)


def test_it_is_of_the_latest_generation_and_outlives_the_handle(
    sd3: nn.Module, generate: Callable[..., Tensor]
) -> None:
    with tokenprune.apply(sd3, CAT, trace=True) as handle:
        generate(sd3, seeds=(1,))
        expected = handle.trace
    handle = tokenprune.apply(sd3, CAT, trace=True)
    generate(sd3, seeds=(0, 2), steps=8)
    old = handle.trace
    generate(sd3, seeds=(1,))
    assert_same(handle.trace, expected)
    assert [len(step.age) for step in old.steps] == [2] * 8
    handle.reset()
    assert_same(handle.trace, expected)
    handle.remove()
    generate(sd3, seeds=(4,))
    assert_same(handle.trace, expected)


def test_a_trace_taken_on_the_way_stays_as_it_is(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    """Also in the middle of a step, between the calls for both guidance branches."""
    table, given = torch.linspace(1000, 20, 6), [make_condition((seed,), 5) for seed in (0, 1)]
    with tokenprune.apply(sd3, CAT, guidance_scale=4.0, trace=True) as handle, torch.no_grad():
        for i, time in enumerate(table):
            for condition in given:
                predict(sd3, make_latents((i,), (4, 6)), time.expand(1), condition)
                if i == 3 and condition is given[0]:
                    early = handle.trace
                    again = handle.trace
                    numbers = early.steps[3].prediction.clone()
        late = handle.trace
    assert (len(early.steps), len(late.steps)) == (4, 6)
    assert torch.equal(again.steps[3].prediction, numbers)
    assert not torch.equal(late.steps[3].prediction, numbers)
    assert torch.equal(late.steps[2].prediction, early.steps[2].prediction)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_interrupted(
    sd3: nn.Module, error: type[BaseException], generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    """What an exception or interrupt left behind holds the steps that ended; the next generation is traced whole."""
    with tokenprune.apply(sd3, CAT, trace=True) as handle:
        generate(sd3)
        expected = handle.trace
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise error

    with tokenprune.apply(sd3, CAT, trace=True) as handle:
        with sd3.transformer_blocks[1].register_forward_pre_hook(stop), pytest.raises(error):
            generate(sd3)
        assert_same(handle.trace, Trace(expected.steps[:4], expected.grid))
        assert torch.equal(handle.trace.computed.sum(0).int(), handle.report().token_counts)
        generate(sd3)
        assert_same(handle.trace, expected)


def test_memory_is_as_documented(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3, CAT, trace=True) as handle:
        generate(sd3, seeds=(0, 1))
        first, sizes = handle.trace.steps[0].nbytes, [step.nbytes for step in handle.trace.steps[1:]]
        images, tokens, channels, chosen = 2, 24, 16, 7
        whole = images * tokens * (channels * 4 + 8)
        assert first == whole - 4 * images * tokens  # no ages to tell yet, no forecast error
        assert sizes == [whole + 4 * images * tokens] * 2 + [whole + 12 * images * chosen + 8 * images * tokens] * 3
        once = handle.trace.nbytes
        for _ in range(2):
            generate(sd3, seeds=(0, 1))
        assert handle.trace.nbytes == once == first + sum(sizes)


def test_a_traced_step_waits_for_nothing(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    class Copying(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func not in (Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.__bool__), func
            return func(*args, **(kwargs or {}))

    table, given = torch.linspace(1000, 20, 6), make_condition((0,), 5)
    with tokenprune.apply(sd3, CAT, trace=True) as handle, torch.no_grad():
        for i, time in enumerate(table):
            with Copying() if i >= 3 else nullcontext():
                predict(sd3, make_latents((i,), (4, 6)), time.expand(1), given)
        with Copying(), pytest.raises(AssertionError, match="cpu"):
            _ = handle.trace.steps[4].prediction


def test_in_half_precision(sd3: nn.Module, generate: Callable[..., Tensor]) -> None:
    with tokenprune.apply(sd3.to(torch.bfloat16), CAT, trace=True) as handle:
        generate(sd3, dtype=torch.bfloat16)
        step = handle.trace.steps[4]
    assert step.prediction.dtype == torch.bfloat16
    assert step.forecast_error is not None
    assert (step.relative_noise.dtype, step.forecast_error.dtype) == (torch.float32, torch.float32)
