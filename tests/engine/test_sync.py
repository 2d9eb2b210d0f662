"""A pruned step reads nothing back from the device: no operator whose result must be known on the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch_geometric  # noqa: F401  makes tensors when it is first imported, as policies do
from torch import Tensor, nn

import tokenprune
from tokenprune import HeldText, Memory, NoisePolicy, Observation, Schedule, Selection, SelectionPolicy
from tokenprune.testing import WaitedError, no_waiting


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
        lambda x: x.index_put_((x > 0,), x[1:]),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.new_tensor(3),
        lambda x: x + torch.tensor(3),
    ],
)
def test_the_check_can_fail(wait: Callable[[Tensor], Any]) -> None:
    values = torch.arange(4.0)
    with no_waiting(), pytest.raises(WaitedError, match="waits for the device"):
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


def check_pruned_steps(
    model: nn.Module,
    policy: SelectionPolicy,
    guidance: str,
    predict: Any,
    latents: Tensor,
    make_condition: Any,
    schedule: Schedule | None = None,
) -> None:
    table, seen = torch.linspace(1000, 20, 7), []
    batch = 2 if guidance == "batched" else 1
    given = [make_condition((seed,) * batch, 5) for seed in range(2 if guidance == "sequential" else 1)]

    def watch(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(args[0].shape[1])

    with (
        tokenprune.apply(model, policy, schedule=schedule),
        torch.no_grad(),
        model.proj_out.register_forward_pre_hook(watch),
    ):
        for i, time in enumerate(table):
            with no_waiting() if i >= 3 else nullcontext():
                for condition in given:
                    predict(model, latents.repeat(batch, 1, 1, 1), time.expand(batch), condition)
    assert seen[-4:] == [24 if policy.alpha == 1 else 7] * 4


def test_pruned_steps(
    sd3: nn.Module,
    policy: SelectionPolicy,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
) -> None:
    check_pruned_steps(sd3, policy, "batched", predict, make_latents((0,), (4, 6)), make_condition)


@pytest.mark.parametrize("guidance", ["sequential", "none"])
def test_pruned_steps_of_every_model(
    model: nn.Module,
    guidance: str,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
) -> None:
    check_pruned_steps(model, NoisePolicy(0.3, 3), guidance, predict, make_latents((0,), (4, 6)), make_condition)


def test_steps_that_hold_the_text(
    sd3: nn.Module, predict: Callable[..., Tensor], make_latents: Callable[..., Tensor], make_condition: Any
) -> None:
    policy = NoisePolicy(0.3, 3)
    with_text = HeldText(policy.schedule(), every=2)
    check_pruned_steps(sd3, policy, "batched", predict, make_latents((0,), (4, 6)), make_condition, with_text)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pruned_steps_on_cuda(
    sd3: nn.Module,
    policy: SelectionPolicy,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Any,
) -> None:
    """The same under torch's own watch, which raises where the host waits."""
    model = sd3.cuda()
    table, latents = torch.linspace(1000, 20, 7, device="cuda"), make_latents((0,), (4, 6)).cuda().repeat(2, 1, 1, 1)
    given = make_condition((0, 0), 5)
    condition = type(given)(given.text.cuda(), given.pooled.cuda(), given.mask.cuda())
    try:
        with tokenprune.apply(model, policy), torch.no_grad():
            for i, time in enumerate(table):
                torch.cuda.set_sync_debug_mode("error" if i >= 3 else "default")
                predict(model, latents, time.expand(2), condition)
    finally:
        torch.cuda.set_sync_debug_mode("default")
