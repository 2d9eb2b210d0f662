"""Errors, interrupts and failing allocations at every place where the engine has a hook, and around the model.

tests/engine/test_interrupts.py does the same at chosen places of the model, for many kinds of calls.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tokenprune
from tokenprune import CATPolicy, Observation, Plan, RefreshSchedule, ScorePolicy, Selection, SelectionPolicy, Taylor

PLANS: dict[str, Plan] = {
    "cat": Plan(CATPolicy(0.3, 2, num_clusters=5)),
    "skipping": Plan(
        CATPolicy(0.3, 2, num_clusters=5), RefreshSchedule(every=3, alpha=0.0, warmup_steps=2), Taylor(keys=True)
    ),
    "forecasts": Plan(CATPolicy(0.3, 2, num_clusters=5), reuse=Taylor(keys=True)),
}
CALLS = 6
"""Calls of the model in a generation."""
REPORT = 1024
"""Bytes that a handle keeps for its report, a few numbers for each token; caches of one layer are ten times that."""


class StopError(Exception):
    """Raised on purpose."""


ERRORS = (StopError, KeyboardInterrupt, torch.OutOfMemoryError)


def live_bytes() -> int:
    """Bytes of all tensors that Python knows of, each storage once."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if type(found) in (Tensor, nn.Parameter) and found.device.type == "cpu":
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def modes() -> list[Any]:
    return torch.overrides._get_current_function_mode_stack()


class Fault:
    """Raises an error the given time it is reached."""

    def __init__(self, error: type[BaseException], call: int) -> None:
        self.error, self._left = error, call

    def reach(self, *_: Any) -> None:
        self._left -= 1
        if self._left == -1:
            raise self.error


class AttentionFault(TorchDispatchMode):
    """Fails inside the attention kernel."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            self._fault.reach()
        return func(*args, **(kwargs or {}))


@contextmanager
def fault_at(module: nn.Module, fault: Fault, before: bool) -> Iterator[None]:
    """Between our hooks and the module, or after the module's last hook."""
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    with register(fault.reach):
        yield


def hook_sites(handle: tokenprune.api.Handle) -> list[nn.Module]:
    """Every module that carries a hook of ours."""
    ours = ("_tokenprune", "_tokenprune_attention", "_tokenprune_block", "_tokenprune_constant", "_tokenprune_expanded")
    return [module for module in handle._masked.model.modules() if any(name in module.__dict__ for name in ours)]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("kind", ["sd3", "pixart"])
def test_a_fault_at_every_hook_in_turn(
    kind: str,
    plan: Plan,
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
    marks: Callable[[nn.Module], dict[str, Any]],
) -> None:
    model, chance = make_model(kind), random.Random(0)
    plain = marks(model)
    fresh = generate_fresh(model, plan, seeds=(1,), steps=CALLS)
    with tokenprune.apply(model, plan) as handle:
        hooked = marks(model)
        assert len(hook_sites(handle)) >= 2 + 2 * len(model.transformer_blocks)
        for module in hook_sites(handle):
            fault = Fault(chance.choice(ERRORS), chance.randrange(CALLS - 2))  # some steps are skipped
            with fault_at(module, fault, chance.random() < 0.5), pytest.raises(fault.error):
                generate(model, steps=2 * CALLS)
            assert torch.equal(generate(model, seeds=(1,), steps=CALLS), fresh)
            assert marks(model) == hooked
            assert not modes()
    assert marks(model) == plain


@settings(max_examples=6)
@given(
    kind=st.sampled_from(["sd3", "pixart"]),
    plan=st.sampled_from(list(PLANS.values())),
    site=st.floats(0, 1, exclude_max=True),
    call=st.integers(0, CALLS - 2),
    before=st.booleans(),
    guidance=st.sampled_from(["batched", "sequential", "none"]),
    error=st.sampled_from(ERRORS),
)
def test_a_fault_at_any_hook(
    kind: str,
    plan: Plan,
    site: float,
    call: int,
    before: bool,
    guidance: str,
    error: type[BaseException],
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    model = make_model(kind)
    fresh = generate_fresh(model, plan, seeds=(1,), guidance=guidance, steps=CALLS)
    with tokenprune.apply(model, plan) as handle:
        sites = hook_sites(handle)
        fault = Fault(error, call)
        with fault_at(sites[int(site * len(sites))], fault, before), pytest.raises(error):
            generate(model, guidance=guidance, steps=2 * CALLS)
        assert torch.equal(generate(model, seeds=(1,), guidance=guidance, steps=CALLS), fresh)
        assert not modes()


@pytest.mark.parametrize(("call", "error"), list(zip((0, 4, 9, 14), (*ERRORS, StopError), strict=True)))
def test_a_fault_in_the_attention_kernel(
    call: int,
    error: type[BaseException],
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    model, plan = make_model("sd3"), PLANS["cat"]
    fresh = generate_fresh(model, plan, seeds=(1,))
    with tokenprune.apply(model, plan):
        with AttentionFault(Fault(error, call)), pytest.raises(error):
            generate(model)
        assert torch.equal(generate(model, seeds=(1,)), fresh)
        assert not modes()


class FailingPolicy(ScorePolicy):
    """Fails in its choice when it is told to."""

    fault = Fault(StopError, -1)

    def score(self, seen: Observation, memory: dict[str, Tensor]) -> Tensor:
        self.fault.reach()
        return seen.relative_noise.norm(dim=-1)


class WrongPolicy(SelectionPolicy):
    """Chooses too few tokens when it is told to."""

    wrong = False

    def select(self, seen: Observation, memory: dict[str, Tensor]) -> Selection:
        return Selection.top(seen.relative_noise.norm(dim=-1), seen.count - self.wrong)


@pytest.mark.parametrize(("choice", "error"), list(zip((0, 1, 2), ERRORS, strict=True)))
def test_a_fault_in_the_policy(
    choice: int,
    error: type[BaseException],
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("pixart")
    with tokenprune.apply(model, FailingPolicy(0.4, 2)):
        fresh = generate(model, seeds=(1,))
        monkeypatch.setattr(FailingPolicy, "fault", Fault(error, choice))
        with pytest.raises(error):
            generate(model)
        assert torch.equal(generate(model, seeds=(1,)), fresh)
    with tokenprune.apply(model, WrongPolicy(0.4, 2)):
        fresh = generate(model, seeds=(1,))
        monkeypatch.setattr(WrongPolicy, "wrong", True)
        with pytest.raises(tokenprune.SelectionError):
            generate(model)
        monkeypatch.setattr(WrongPolicy, "wrong", False)
        assert torch.equal(generate(model, seeds=(1,)), fresh)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(("step", "error"), [(0, KeyboardInterrupt), (3, StopError)])
def test_a_fault_around_the_model(
    pipe: DiffusionPipeline,
    step: int,
    error: type[BaseException],
    plan: Plan,
    draw: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the scheduler's step, and in a callback, which is how users kill a generation."""
    callback = "callback_on_step_end" if "callback_on_step_end" in signature(pipe.__call__).parameters else "callback"
    with tokenprune.apply(pipe, plan):
        fresh = draw(pipe, seed=1)

    def reaching(fault: Fault, step: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            fault.reach()
            return step(*args, **kwargs)

        return faulty

    with tokenprune.apply(pipe, plan):
        with monkeypatch.context() as patched:
            patched.setattr(pipe.scheduler, "step", reaching(Fault(error, step), pipe.scheduler.step))
            with pytest.raises(error):
                draw(pipe)
        assert torch.equal(draw(pipe, seed=1), fresh)
        with pytest.raises(error):
            draw(pipe, **{callback: reaching(Fault(error, step), lambda *_: {})})
        assert torch.equal(draw(pipe, seed=1), fresh)
        assert not modes()


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_generation_that_nobody_goes_on_with(
    stop: int,
    make_model: Callable[[str], nn.Module],
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Callable[..., Any],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """Steps that a generator makes on demand, and that is closed after a few."""
    model, plan = make_model("sd3"), PLANS["cat"]
    fresh = generate_fresh(model, plan, seeds=(1,))

    def steps() -> Iterator[Tensor]:
        latents, condition = make_latents((0,), (4, 6)), make_condition((0,), 5)
        for time in torch.linspace(1000, 20, 6):
            with torch.no_grad():
                latents = latents - 0.2 * predict(model, latents, time.expand(1), condition)
            yield latents

    with tokenprune.apply(model, plan):
        drawing = steps()
        for _ in range(stop):
            next(drawing)
        drawing.close()
        assert torch.equal(generate(model, seeds=(1,)), fresh)


@pytest.mark.parametrize(
    ("plan", "call", "error"), list(zip(PLANS.values(), (1, 3, 3), ERRORS, strict=True)), ids=PLANS
)
def test_memory_returns_to_the_baseline(
    call: int,
    error: type[BaseException],
    plan: Plan,
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
) -> None:
    model = make_model("sd3")
    generate(model)
    baseline = live_bytes()
    handle = tokenprune.apply(model, plan)
    for _ in range(2):
        generate(model)
        branch = next(iter(handle._masked.generation.branches.values()))
        kept = [weakref.ref(buffer.key) for buffer in branch.buffers.values() if buffer.key is not None]
        kept.append(weakref.ref(branch.prediction))
        del branch
        assert live_bytes() > baseline
        with fault_at(model.transformer_blocks[1], Fault(error, call), before=True), suppress(error):
            generate(model, seeds=(1,))
    handle.remove()
    assert live_bytes() <= baseline + REPORT
    del handle
    assert live_bytes() == baseline
    assert [reference() for reference in kept] == [None] * len(kept)


@pytest.mark.parametrize("call", [1, 3])
def test_an_error_frees_the_caches_at_once(
    call: int, make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    """After running out of memory the user must find it free again, without removing the handle."""
    model = make_model("sd3")
    generate(model)
    baseline = live_bytes()
    with tokenprune.apply(model, PLANS["cat"]):
        fault = Fault(torch.OutOfMemoryError, call)
        with fault_at(model.transformer_blocks[2], fault, before=True), suppress(torch.OutOfMemoryError):
            generate(model)
        assert live_bytes() <= baseline + REPORT
