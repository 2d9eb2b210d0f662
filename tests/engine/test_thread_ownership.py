"""Two threads: with a model each they do not notice one another; with one model they take turns or are told so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, ConcurrentUseError, RefreshSchedule, Taylor

POLICY = CATPolicy(0.3, 2, num_clusters=5)
PATIENCE = 60.0
"""Seconds after which a thread that nobody wakes gives up."""

Work = Callable[[], Tensor]


class Gate:
    """Holds a thread at a call of a module until it is let on."""

    def __init__(self, module: nn.Module, call: int) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self._left = call
        self.hook = module.register_forward_pre_hook(self._hold)

    def _hold(self, *_: Any) -> None:
        self._left -= 1
        if self._left == -1:
            self.reached.set()
            assert self.open.wait(PATIENCE)


class Relay:
    """Threads take turns at the calls of a module: the first, the second, the first, ..."""

    def __init__(self, first: Work, second: Work, model: nn.Module) -> None:
        self._works = (first, second)
        self._turn = threading.Condition()
        self._places: dict[int, int] = {}
        self._next = 0
        self._over: set[int] = set()
        self._model = model

    def _pass_on(self) -> None:
        with self._turn:
            me = self._places[threading.get_ident()]
            self._next = 1 - me
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._next == me or 1 - me in self._over, PATIENCE)

    def _work(self, place: int) -> Tensor | Exception:
        self._places[threading.get_ident()] = place
        with self._turn:
            assert self._turn.wait_for(lambda: self._next == place or 1 - place in self._over, PATIENCE)
        try:
            return self._works[place]()
        except ConcurrentUseError as error:
            return error
        finally:
            with self._turn:
                self._over.add(place)
                self._turn.notify_all()

    def run(self) -> list[Tensor | Exception]:
        """What each made, or the error that stopped it."""
        hook = self._model.register_forward_hook(lambda *_: self._pass_on())
        try:
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(self._work, (0, 1)))
        finally:
            hook.remove()


@pytest.fixture
def transformer(make_model: Callable[[str], nn.Module]) -> nn.Module:
    return make_model("sd3")


def in_thread(work: Work) -> Tensor:
    """Do it in a thread that ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(PATIENCE)


@pytest.mark.parametrize("kinds", [("sd3", "pixart"), ("sd3", "sd3")])
def test_two_models_at_the_same_time(
    kinds: tuple[str, str], make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    models = [make_model(kind) for kind in kinds]
    with tokenprune.apply(models[0], POLICY), tokenprune.apply(models[1], POLICY):
        works = [lambda model=model, seed=seed: generate(model, seeds=(seed,)) for seed, model in enumerate(models)]
        after = [work() for work in works]
        start = threading.Barrier(2)

        def repeat(place: int) -> list[Tensor]:
            start.wait(PATIENCE)
            return [works[place]() for _ in range(3)]

        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(repeat, (0, 1)))
    for pictures, expected in zip(together, after, strict=True):
        assert all(torch.equal(picture, expected) for picture in pictures)


def test_two_compiled_models_at_the_same_time(
    make_model: Callable[[str], nn.Module], generate: Callable[..., Tensor]
) -> None:
    """Making the buffers runs blocks eagerly: that of one model must neither reach nor outlive that of the other."""
    models = [make_model("sd3-plain"), make_model("sd3-plain")]
    calls = [0, 0]
    for place, model in enumerate(models):
        for block in model.transformer_blocks:

            def compiled(*args: Any, _place: int = place, _block: nn.Module = block, **kwargs: Any) -> Any:
                calls[_place] += 1
                return _block._call_impl(*args, **kwargs)

            block._compiled_call_impl = compiled
    layers = len(models[0].transformer_blocks)
    with tokenprune.apply(models[0], POLICY), tokenprune.apply(models[1], POLICY):
        works = [lambda model=model: generate(model, guidance="none") for model in models]
        gate = Gate(models[0].proj_out, 0)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(works[0])
            assert gate.reached.wait(PATIENCE)
            assert torch._dynamo.eval_frame._stance.stance == "default"
            generate(models[1], guidance="none")
            gate.open.set()
            first.result(PATIENCE)
    assert calls == [5 * layers, 5 * layers]  # of 6 steps, the one that makes the buffers is eager
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("call", [0, 3], ids=["full", "pruned"])
@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_a_call_during_another_threads_call(
    transformer: nn.Module,
    call: int,
    guidance: str,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """The one that comes second is told so; the first does not notice, and afterwards the second may go on."""
    fresh = [generate_fresh(transformer, POLICY, seeds=(seed,), guidance=guidance) for seed in (0, 1)]
    with tokenprune.apply(transformer, POLICY):
        gate = Gate(transformer.transformer_blocks[1].attn.to_q, call)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(generate, transformer, seeds=(0,), guidance=guidance)
            assert gate.reached.wait(PATIENCE)
            with pytest.raises(ConcurrentUseError, match="SD3Transformer2DModel: expected calls of one thread"):
                generate(transformer, seeds=(1,), guidance=guidance)
            gate.open.set()
            assert torch.equal(first.result(PATIENCE), fresh[0])
        assert torch.equal(generate(transformer, seeds=(1,), guidance=guidance), fresh[1])


@pytest.mark.parametrize("times", ["table", "fresh"])
@pytest.mark.parametrize("guidance", ["batched", "sequential"])
@pytest.mark.parametrize("first_steps", [6, 4])
def test_calls_of_two_threads_in_turns(
    transformer: nn.Module,
    times: str,
    guidance: str,
    first_steps: int,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """The generation that began last is undisturbed; the other one is told so at its next call."""
    options: list[dict[str, Any]] = [
        {"seeds": (seed,), "guidance": guidance, "times": times, "steps": steps}
        for seed, steps in ((0, first_steps), (1, 6))
    ]
    fresh = generate_fresh(transformer, POLICY, **options[1])
    with tokenprune.apply(transformer, POLICY):
        first, second = Relay(*(lambda o=o: generate(transformer, **o) for o in options), transformer).run()
        assert isinstance(first, ConcurrentUseError)
        assert "expected all calls of a generation from one thread" in str(first)
        assert isinstance(second, Tensor)
        assert torch.equal(second, fresh)
        assert torch.equal(generate(transformer, **options[1]), fresh)


def test_a_generation_may_not_change_its_thread(transformer: nn.Module, generate: Callable[..., Tensor]) -> None:
    table = torch.linspace(1000, 20, 6)
    with tokenprune.apply(transformer, POLICY) as handle:
        generate(transformer, table=table, stop=3)
        with pytest.raises(ConcurrentUseError, match="got step 3"):
            in_thread(lambda: generate(transformer, table=table[3:]))
        handle.reset()
        in_thread(lambda: generate(transformer, table=table[3:]))


@pytest.mark.parametrize("schedule", [None, RefreshSchedule(every=3, alpha=0.0, warmup_steps=2)])
def test_threads_that_come_and_go(
    transformer: nn.Module,
    schedule: RefreshSchedule | None,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """As in a server: every generation in a thread of its own, or in any of a pool, each after the one before."""
    with tokenprune.apply(transformer, POLICY, schedule=schedule, reuse=Taylor()):
        fresh = [generate(transformer, seeds=(seed,)) for seed in (0, 1)]
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            for seed, pool in zip((0, 1, 0, 0, 1), (one, other, one, one, other), strict=True):
                assert torch.equal(pool.submit(generate, transformer, seeds=(seed,)).result(PATIENCE), fresh[seed])
        assert torch.equal(in_thread(lambda: generate(transformer, seeds=(1,))), fresh[1])
        assert torch.equal(generate(transformer, seeds=(0,)), fresh[0])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("ended", [True, False], ids=["thread ended", "thread lives on"])
def test_a_thread_that_an_interrupt_stopped_in_a_call_blocks_nobody(
    transformer: nn.Module,
    stop: type[BaseException],
    ended: bool,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    fresh = generate_fresh(transformer, POLICY, seeds=(1,))

    def raise_stop(*_: Any) -> None:
        raise stop

    with tokenprune.apply(transformer, POLICY):
        pool = ThreadPoolExecutor(1)
        with transformer.transformer_blocks[1].register_forward_pre_hook(raise_stop):
            assert isinstance(pool.submit(generate, transformer).exception(PATIENCE), stop)
        if ended:
            pool.shutdown()
        assert torch.equal(generate(transformer, seeds=(1,)), fresh)
        pool.submit(lambda: [torch.overrides._pop_mode() for _ in stack()]).result() if not ended else None
        pool.shutdown()


def stack() -> list[Any]:
    return torch.overrides._get_current_function_mode_stack()


def test_names_of_branches_are_each_threads_own() -> None:
    """Pipelines name their guidance branches by a context of the model, which another thread may have entered, too."""
    import tiny

    model = {tiny_model.name: tiny_model for tiny_model in chain(tiny.IMAGES)}["flux"].make()
    inputs = {tiny_model.name: tiny_model for tiny_model in tiny.IMAGES}["flux"].inputs()
    with torch.no_grad(), tokenprune.apply(model, POLICY, guidance="none") as handle:
        with model.cache_context("cond"):

            def name_another() -> Tensor:
                with model.cache_context("uncond"):
                    return torch.empty(0)

            context = model.cache_context("uncond")
            with ThreadPoolExecutor(1) as pool:
                pool.submit(context.__enter__).result(PATIENCE)
                model(**inputs)
                pool.submit(context.__exit__, None, None, None).result(PATIENCE)
        (call,) = handle._masked.generation.records[-1].calls
        assert call.branch.name == "cond"
