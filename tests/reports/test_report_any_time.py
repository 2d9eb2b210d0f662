"""Reports while, between and after generations: no model and no picture notices them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import ALL, Tiny
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import tokenprune
from tokenprune import Handle, NoisePolicy, Report
from tokenprune.registry import find_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers warns of its own old names
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # Mochi asks for float32, which the CPU has anyway
]
POLICY = NoisePolicy(0.3, 2)
STEPS = 4
PATIENCE = 120.0
"""Seconds after which a thread that nobody wakes gives up."""


def draw(tiny: Tiny, model: nn.Module, seed: int = 0, stop: int = STEPS) -> list[Tensor]:
    """All tensors that the model gives at the steps of a generation; each step has latents of its own."""
    found, inputs, outputs = find_adapter(model)(model), tiny.inputs(), []
    for step in range(stop):
        factor = 0.2 + 0.2 * step if found.time_rises else 1 - 0.2 * step
        latents = tree_map(lambda x, by=0.2 * step + 0.1 * seed: x + by * x.flip(0), inputs[found.latents])
        timestep = (inputs[found.time] * factor).to(inputs[found.time].dtype)
        with torch.no_grad():
            output = model(**{**inputs, found.time: timestep, found.latents: latents})
        outputs += [leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return outputs


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def inside(model: nn.Module) -> list[nn.Module]:
    """A layer within an attention module, where torch calls go through a mode of the engine, and the exit."""
    found = find_adapter(model)(model)
    attention = model.get_submodule(found.attentions[0].path)
    return [
        next(part for part in attention.modules() if isinstance(part, nn.Linear)),
        model.get_submodule(found.exit_site.path),
    ]


PAUSE = 0.02
"""Seconds between two reports of the other thread."""


@contextmanager
def at_each_call(modules: list[nn.Module], work: Callable[[], Any]) -> Iterator[None]:
    hooks = [module.register_forward_hook(lambda *_: (work(), None)[1]) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def counted_anew(handle: Handle) -> Report:
    """A report that remembers no counts of earlier ones."""
    handle._first._costs.clear()
    return handle.report()


@contextmanager
def reporting(handle: Handle) -> Iterator[list[Report]]:
    """Another thread asks for one report after the other."""
    found: list[Report] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(PAUSE) or not found:
            found.append(counted_anew(handle))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield found
        finally:
            over.set()
            asking.result(PATIENCE)


@pytest.mark.parametrize("tiny", ALL, ids=[tiny.name for tiny in ALL])
def test_no_picture_notices(tiny: Tiny) -> None:
    model = tiny.make()
    plain = draw(tiny, model)
    with tokenprune.apply(model, POLICY):
        fresh = [draw(tiny, model, seed) for seed in (0, 1)]
    model = tiny.make()
    with tokenprune.apply(model, POLICY) as handle:
        assert handle.report().steps == ()
        with at_each_call(inside(model), handle.report):
            assert equal(draw(tiny, model, 0), fresh[0])
        between = counted_anew(handle)
        with reporting(handle) as reports:
            assert equal(draw(tiny, model, 1), fresh[1])
            draw(tiny, model, 0, stop=3)  # interrupted
            assert equal(draw(tiny, model, 1), fresh[1])
        after = counted_anew(handle)
        assert (after.macs, after.dense_macs) == (between.macs, between.dense_macs)
        assert between.macs.total < between.dense_macs.total
        for report in reports:
            assert len(report.steps) <= STEPS
            assert report.macs.total <= report.dense_macs.total == len(report.steps) * between.dense_macs.total / STEPS
    assert equal(draw(tiny, model), plain)
    counted_anew(handle)
    assert equal(draw(tiny, model), plain)
