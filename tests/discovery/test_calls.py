"""How often discovery calls a model, at which noise levels, and what it says of models that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Block, Centring, DiT, MMDiT, Recurrent, labelled, prompted, randomised, unlabelled
from published import PackedPixArt, UViT, classed, packed
from tiny import ALL
from torch import Tensor, nn

import tokenprune
from tokenprune import NoisePolicy, UnknownModelError
from tokenprune.discovery import discover
from tokenprune.engine.oracle import far_times

TINY = {tiny.name: tiny for tiny in ALL}
POLICY = NoisePolicy(0.3, 2)


class LateBlock(Centring):
    """Below a timestep there is one more block."""

    def __init__(self) -> None:
        DiT.__init__(self)
        self.last = Block()
        self.final_layer.register_forward_pre_hook(self.refined)

    def refined(self, _: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, c = args
        return (self.last(x, c) if self.late else x), c


class OfKnownTimes(DiT):
    """Distilled: knows the timesteps of its four steps alone."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        for time in t.tolist():
            if time not in (1000.0, 750.0, 500.0, 250.0):
                raise KeyError(f"no embedding for timestep {time:g}")
        return super().forward(x, t, y)


def counted(model: nn.Module, inputs: dict[str, Any]) -> tuple[list[float], str]:
    """The timesteps of all calls that discovery makes of a model, and what it raises."""
    name = next(name for name in ("t", "timestep", "timesteps", "sigma") if name in inputs)
    times: list[float] = []

    def note(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        times.append(float(kwargs[name].max()))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        discover(model, (), inputs)
    except UnknownModelError as error:
        return times, str(error)
    finally:
        hook.remove()
    return times, ""


@pytest.mark.parametrize(
    ("make", "call", "most"),
    [
        (lambda: randomised(DiT), labelled, 10),
        (lambda: randomised(MMDiT), prompted, 11),
        (lambda: randomised(UViT), classed, 10),
        (lambda: randomised(PackedPixArt), packed, 10),
        (lambda: randomised(Recurrent), unlabelled, 2),
        *((TINY[name].make, TINY[name].inputs, 11) for name in ("sd3", "sd3.5", "pixart", "flux-kontext", "wan")),
    ],
)
def test_no_more_calls_than_needed(
    make: Callable[[], nn.Module], call: Callable[..., dict[str, Any]], most: int
) -> None:
    times, _ = counted(make(), call())
    assert 0 < len(times) <= most


@pytest.mark.parametrize(
    ("time", "far"),
    [
        (torch.tensor([1000.0, 500.0]), [torch.tensor([20.0, 10.0])]),
        (torch.tensor([999]), [torch.tensor([19])]),
        (torch.tensor([1.0]), [torch.tensor([0.02])]),
        (torch.tensor([0.3]), [torch.tensor([0.006]), torch.tensor([0.98])]),
        (torch.tensor([0.0, 0.0]), [torch.tensor([0.98, 0.98])]),
        (torch.tensor(0), [torch.tensor(980)]),
        (999, [19]),
        (250, [5, 980]),
        (0.0, [0.98]),
        (800.0, [16.0]),
    ],
)
def test_the_other_noise_levels(time: Any, far: list[Any]) -> None:
    found = far_times(time)
    assert [type(each) for each in found] == [type(each) for each in far]
    torch.testing.assert_close(found, far)


def test_maps_are_checked_at_other_noise_levels() -> None:
    times, _ = counted(randomised(DiT), labelled())
    assert set(times) == {500.0, 10.0}
    times, _ = counted(randomised(DiT), labelled(250.0))
    assert set(times) == {250.0, 5.0, 980.0}
    assert len(times) <= 13


def test_what_happens_at_high_noise_is_seen_from_low() -> None:
    """The first call may be of an image-to-image run, which begins at low noise."""
    _, said = counted(randomised(LateBlock), labelled(250.0))
    assert "a call with another timestep (at t = 980) ran final_layer (call) in place of last (call)" in said


@pytest.mark.parametrize(
    ("make", "missing", "most"),
    [
        (Centring, r"at t = 10, .* off by \S+ of its largest \(though not at t = 500: does it do something else", 13),
        (
            LateBlock,
            r"after blocks\.2 a call with another timestep \(at t = 10\) ran last \(call\) in place of final",
            5,
        ),
    ],
)
def test_what_happens_at_low_noise_alone(make: type[nn.Module], missing: str, most: int) -> None:
    model = randomised(make)
    calls, _ = counted(model, labelled())
    assert len(calls) <= most
    with (
        tokenprune.apply(model, POLICY),
        torch.no_grad(),
        pytest.raises(UnknownModelError, match=missing),
    ):
        model(**labelled())


def test_a_model_that_knows_its_timesteps_alone_is_checked_at_those() -> None:
    model = randomised(OfKnownTimes)
    with tokenprune.apply(model, POLICY) as handle, torch.no_grad():
        for time in (1000.0, 750.0, 500.0):
            model(**labelled(time))
        report = handle.report()
    assert [step.tokens for step in report.steps] == [24, 24, 7]
    assert any("not checked at t = 20: there the model raises KeyError" in note for note in report.notes)


class Silent(DiT):
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> None:  # type: ignore[override]
        super().forward(x, t, y)


class Nameless(DiT):
    def forward(self, x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
        return super().forward(x, t, *rest)


class Failing(DiT):
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        torch.rand(1)
        raise ValueError("out of\nmemory, say")


class Suspicious(DiT):
    """Refuses latents that it does not know."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if not torch.equal(x, labelled()["x"]):
            raise ValueError("unknown latents")
        return super().forward(x, t, y)


class Dropping(DiT):
    """Draws random numbers at every call."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, t, y) + torch.rand(1)


class Reshaping(DiT):
    """Its blocks take the whole grid alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].register_forward_pre_hook(lambda _, args: (args[0].unflatten(1, (4, 6)).flatten(1, 2), args[1]))


class OfManyTimes(DiT):
    """Its timestep is a dictionary."""

    def forward(self, x: Tensor, times: dict[str, Tensor], y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, times["t"], y)


@pytest.mark.parametrize(
    ("make", "call", "said"),
    [
        (Silent, labelled, "Missing: an output with tensors, got NoneType"),
        (Nameless, lambda: list(labelled().values()), "names of all arguments: forward takes rest by position alone"),
        (
            Failing,
            labelled,
            "The model itself raises, without any of this, with these arguments: ValueError: out of memory, say. "
            "Correct the call",
        ),
        (DiT, unlabelled, "The model itself raises, .*: TypeError: .*missing 1 required positional argument: 'y'"),
        (Suspicious, labelled, "It serves these arguments, but raised .*: ValueError: unknown latents"),
        (Dropping, labelled, "at t = 500, with 24 of 24 tokens of the same input .*does the model draw random numbers"),
        (Reshaping, labelled, r"at t = 500, with 10 of 24 tokens: RuntimeError: unflatten"),
        (
            OfManyTimes,
            lambda: {"x": labelled()["x"], "times": {"t": labelled()["t"]}, "y": labelled()["y"]},
            "the timestep: none of the arguments x, times, y",
        ),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_no_error_is_left_raw(make: type[nn.Module], call: Callable[..., Any], said: str) -> None:
    model, given = randomised(make), call()
    args, kwargs = (given, {}) if isinstance(given, list) else ((), given)
    handle, state = tokenprune.apply(model, POLICY), torch.get_rng_state()
    with torch.no_grad(), pytest.raises(UnknownModelError, match=said) as caught:
        model(*args, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    message = str(caught.value)
    assert message.startswith(f"{make.__name__}: no adapter describes this model, and it could not be discovered. ")
    assert message.endswith(
        "Pass an adapter, apply(..., adapter=function): see docs/write-an-adapter.md and docs/discovery.md"
    )
    assert "\n" not in message
    assert not any(module._forward_hooks for module in model.modules())
    assert message in handle.report().notes
