"""Steps that compute nothing, against a step cache on the model's output, written here on its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Handle, Hold, Reuse
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import ListSchedule, RefreshSchedule, Schedule

EVERY_THIRD = RefreshSchedule(every=3, warmup_steps=2)
FULL = (0, 1, 4, 7)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
REUSES = [Hold(), Taylor(1), Taylor(1, damped=False)]


class StepCache:
    """The outputs of the last two computed steps, and the line through them."""

    def __init__(self, follows: bool, damped: bool) -> None:
        self.follows, self.damped = follows, damped
        self.past: list[tuple[float, Tensor]] = []
        self.product: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def computed(self, time: float, output: Tensor) -> None:
        output = output.float()
        if len(self.past) == 2:
            forecast_error, term = output - self.past[1][1], self.term(time)
            self.product = 0.3 * self.product + (forecast_error * term).sum((1, 2, 3), keepdim=True)
            self.square = 0.3 * self.square + (term * term).sum((1, 2, 3), keepdim=True)
        self.past = [*self.past, (time, output)][-2:]

    def term(self, time: float) -> Tensor:
        (before, first), (last, second) = self.past
        return (second - first) * ((time - last) / (last - before))

    def forecast(self, time: float) -> Tensor:
        if not self.follows or len(self.past) < 2:
            return self.past[-1][1]
        known = torch.is_tensor(self.square)
        factor = (self.product / self.square).clamp(0, 1) if self.damped and known else float(not self.damped)
        return self.past[1][1] + factor * self.term(time)


def skipping(model: nn.Module, schedule: Schedule = EVERY_THIRD, reuse: Reuse | None = None) -> Handle:
    return tokenprune.apply(model, CATPolicy(0.3), schedule=schedule, reuse=reuse or Taylor(1))


@settings(max_examples=8)
@given(
    reuse=st.sampled_from(REUSES),
    images=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    return_dict=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_skipped_steps_equal_a_step_cache(
    family: str,
    make_model: Callable[[str], nn.Module],
    make_steps: Callable[..., Any],
    reuse: Reuse,
    images: int,
    dtype: torch.dtype,
    return_dict: bool,
    seed: int,
) -> None:
    model = make_model(family).to(dtype)
    steps = make_steps(model, images, seed=seed, dtype=dtype)
    plain = list(steps)
    cache = StepCache(isinstance(reuse, Taylor), getattr(reuse, "damped", False))
    with skipping(model, reuse=reuse):
        made = [steps.call(i, return_dict) for i in range(len(plain))]
    for i, (result, whole) in enumerate(zip(made, plain, strict=True)):
        assert type(result) is type(made[0])
        assert isinstance(result, tuple) is not return_dict
        output, time = result.sample if return_dict else result[0], float(steps.table[i])
        assert output.dtype == dtype
        assert output.shape == whole.shape
        if i in FULL:
            assert torch.equal(output, whole)
            cache.computed(time, whole)
        else:
            expected, tolerance = cache.forecast(time).to(dtype), TOLERANCE[dtype]
            torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)
            assert (expected - whole).abs().max() > 10 * tolerance


def test_the_reuses_differ_from_one_another(family: str, make_model: Any, make_steps: Any) -> None:
    """Else the test above would not tell them apart."""
    model, outputs = make_model(family), []
    for reuse in REUSES:
        steps = make_steps(model)
        with skipping(model, reuse=reuse):
            outputs.append(torch.stack(list(steps))[5:])
    assert min(float((outputs[i] - outputs[i - 1]).abs().max()) for i in range(3)) > 1e-2


def test_a_skipped_step_calls_no_block(family: str, make_model: Any, make_steps: Any) -> None:
    model = make_model(family)
    steps, calls = make_steps(model), {"pos_embed": 0, "transformer_blocks.0": 0, "proj_out": 0}

    def count(path: str, *_: Any) -> None:
        calls[path] += 1

    for path in calls:
        model.get_submodule(path).register_forward_hook(functools.partial(count, path))
    with skipping(model):
        for i in range(9):
            calls = dict.fromkeys(calls, 0)
            steps.call(i)
            assert i == 0 or set(calls.values()) == {1 if i in FULL else 0}
            assert i > 0 or min(calls.values()) >= 1  # the first call also finds out how tokens lie in the output


def test_remove_leaves_nothing(family: str, make_model: Any, make_steps: Any) -> None:
    model = make_model(family)
    steps, before = make_steps(model), set(model.__dict__)
    plain = list(steps)
    handle = skipping(model)
    list(steps)
    assert "forward" in model.__dict__
    handle.report()
    handle.remove()
    assert set(model.__dict__) == before
    assert "forward" not in model.__dict__
    assert all(torch.equal(a, b) for a, b in zip(steps, plain, strict=True))


def test_a_models_own_forward_comes_back(sd3: nn.Module, make_steps: Any) -> None:
    calls, steps = [], make_steps(sd3)
    bound = sd3.forward

    @functools.wraps(bound)
    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["timestep"])
        return bound(*args, **kwargs)

    sd3.forward = own
    plain, calls[:] = list(steps), []
    with skipping(sd3) as handle:
        made = list(steps)
        assert len(calls) >= len(FULL)
        assert {float(time.max()) for time in calls} == {float(steps.table[i]) for i in FULL}
        handle.report()
    assert sd3.__dict__["forward"] is own
    assert all(torch.equal(made[i], plain[i]) for i in FULL)
    assert all(torch.equal(a, b) for a, b in zip(steps, plain, strict=True))


class BreakError(Exception):
    pass


def test_an_exception_at_a_later_full_step_leaves_a_clean_model(family: str, make_model: Any, make_steps: Any) -> None:
    model = make_model(family)
    steps, other = make_steps(model), make_steps(model, seed=7)
    plain = list(steps)
    with skipping(model):
        fresh = list(other)
    handle = skipping(model)
    for i in range(4):
        steps.call(i)

    def fail(*_: Any) -> None:
        raise BreakError

    hook = model.get_submodule("transformer_blocks.1").register_forward_pre_hook(fail)
    with pytest.raises(BreakError):
        steps.call(4)
    hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(other, fresh, strict=True))
    handle.remove()
    assert "forward" not in model.__dict__
    assert all(torch.equal(a, b) for a, b in zip(steps, plain, strict=True))


@pytest.mark.parametrize("stop", [3, 9])
def test_a_new_generation_equals_a_fresh_handles(family: str, stop: int, make_model: Any, make_steps: Any) -> None:
    model = make_model(family)
    steps, other, larger = make_steps(model), make_steps(model, seed=7), make_steps(model, images=2, seed=9)
    expected = []
    for wanted in (other, larger):
        with skipping(model):
            expected.append(list(wanted))
    with skipping(model) as handle:
        for i in range(stop):
            steps.call(i)
        for wanted, fresh in zip((other, larger), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(wanted, fresh, strict=True))
        assert handle.report().generations == 3


def test_a_new_generation_may_ask_for_another_kind_of_output(sd3: nn.Module, make_steps: Any) -> None:
    steps, other = make_steps(sd3), make_steps(sd3, seed=7)
    with skipping(sd3):
        fresh = list(other)
    with skipping(sd3):
        list(steps)
        assert all(torch.equal(other.call(i, return_dict=True).sample, fresh[i]) for i in range(9))


def test_the_report_counts_nothing_at_skipped_steps(family: str, make_model: Any, make_steps: Any) -> None:
    model = make_model(family)
    with skipping(model, ListSchedule((1, 0, 1, 0, 0, 1, 0, 0))) as handle:
        list(make_steps(model, images=2, steps=8))
        report = handle.report()
    assert [step.tokens for step in report.steps] == [12, 0, 12, 0, 0, 12, 0, 0]
    assert [step.full for step in report.steps] == [True, False, True, False, False, True, False, False]
    assert report.tokens == 3 * 12
    assert report.dense_tokens == 8 * 12
    assert report.macs.linear > 0
    assert report.macs.linear * 8 == report.dense_macs.linear * 3
    assert report.macs.attention * 8 == report.dense_macs.attention * 3
    assert report.token_counts is not None
    assert report.token_counts.unique().tolist() == [3]
