"""A pruned step reads nothing back from the device: no operator whose result must be known on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tokenprune
from tokenprune import Memory, Observation, Selection, SelectionPolicy

WAITING = (
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique",
    "aten._unique",
)


COPYING = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.new_tensor, torch.tensor, torch.as_tensor)
"""Copies between host and device, which wait on a GPU; on the CPU they are no operators, or unremarkable ones."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = (
            [i for i in args[1] if i is not None and i.dtype == torch.bool] if "aten.index" in str(func)[:10] else []
        )
        if str(func).startswith(WAITING) or masks:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPYING:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    with _Calls(), _Operators():
        yield


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        torch.unique_consecutive,
        lambda x: torch.equal(x, x + 1),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.new_tensor(3),
        lambda x: x + torch.tensor(3),
    ],
)
def test_the_check_can_fail(wait: Callable[[Tensor], Any]) -> None:
    values = torch.arange(4.0)
    with no_waiting(), pytest.raises(AssertionError, match="waits for the device"):
        wait(values)


def test_the_check_lets_the_rest_pass() -> None:
    values = torch.arange(4.0)
    with no_waiting():
        assert values.where(values > 1, 0)[values.argsort()].sum().shape == ()


@pytest.mark.parametrize("images", [1, 2])
def test_select(policy: SelectionPolicy, images: int) -> None:
    """The first selection of a generation and those after it."""
    memory: Memory = {}
    previous: Selection | None = None
    for step in range(4):
        prediction = torch.randn(images, 35, 16, generator=torch.Generator().manual_seed(step))
        reference = torch.zeros_like(prediction)
        seen = Observation(prediction, reference, 11, (5, 7), 3 + step, step, 900.0 - step, previous)
        with no_waiting():
            previous = policy.select(seen, memory)


@pytest.mark.parametrize("guidance", ["batched", "sequential", "none"])
def test_a_pruned_step(
    kind: str,
    guidance: str,
    policy: SelectionPolicy,
    make_model: Callable[[str], nn.Module],
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
) -> None:
    model, latents, table = make_model(kind), make_latents((0,), (4, 6)), torch.linspace(1000, 20, 7)
    batch = 2 if guidance == "batched" else 1
    given = [make_condition((seed,) * batch, 5) for seed in range(2 if guidance == "sequential" else 1)]
    seen = []

    def step(time: Tensor) -> None:
        for condition in given:
            predict(model, latents.repeat(batch, 1, 1, 1), time.expand(batch), condition)

    def watch(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(args[0].shape[1])

    with tokenprune.apply(model, policy), torch.no_grad(), model.proj_out.register_forward_pre_hook(watch):
        for time in table[:4]:
            step(time)
        seen.clear()
        for time in table[4:]:
            with no_waiting():
                step(time)
    assert set(seen) == {24 if policy.alpha == 1 else 7}


def test_the_first_pruned_step(
    model: nn.Module,
    policy: SelectionPolicy,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
) -> None:
    latents, table, given = make_latents((0,), (4, 6)), torch.linspace(1000, 20, 7), make_condition((0,), 5)
    with tokenprune.apply(model, policy), torch.no_grad():
        for time in table[:3]:
            predict(model, latents, time.expand(1), given)
        with no_waiting():
            predict(model, latents, table[3].expand(1), given)
