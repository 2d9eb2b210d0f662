"""Keys and values in host memory: the same pictures, two modules' memory on the device, copies in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosted import PLANS, POLICY, Generate, Late, both, same
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    CacheLimitError,
    Handle,
    HeldText,
    Hold,
    ListSchedule,
    NoisePolicy,
    Plan,
    Taylor,
)
from tokenprune.engine import host_caches
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.copy_streams import Copies, Pairs
from tokenprune.engine.host_caches import AHEAD, HostCaches
from tokenprune.reuse.key_value import BufferKey
from tokenprune.testing import no_waiting
from tokenprune.units import memory_in_words


class Noted(Copies):
    """Notes which memory is copied, by address, and which way."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, int]] = []

    def fetch(self, pairs: Pairs) -> None:
        super().fetch(pairs := list(pairs))
        self.log.append(("fetch", pairs[0][1].data_ptr()))

    def give_back(self, pairs: Pairs) -> None:
        super().give_back(pairs := list(pairs))
        self.log.append(("give back", pairs[0][0].data_ptr()))


@pytest.fixture(params=[Copies, Late])
def copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_caches, "copies_of", lambda _: request.param())


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("guidance", ["none", "batched", "sequential"])
def test_pictures_are_the_same(model: nn.Module, plan: str, guidance: str, generate: Generate) -> None:
    """To the bit, in one generation after another, of one image, of two, and anew after a reset."""

    def draw(handle: Handle) -> list[Tensor]:
        made = [generate(model, seeds=seeds, guidance=guidance) for seeds in ((0,), (1,), (0, 2), (3,))]
        handle.reset()
        return [*made, generate(model, guidance=guidance)]

    expected, found, _ = both(model, draw, PLANS[plan])
    assert same(expected, found)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize(
    ("plan", "dtype"),
    [
        (PLANS["held"], torch.bfloat16),
        (PLANS["held"], torch.int8),
        (PLANS["held"], torch.float8_e4m3fn),
        (PLANS["forecast"], torch.bfloat16),
    ],
)
def test_in_smaller_types(sd3: nn.Module, plan: Plan, dtype: torch.dtype, generate: Generate) -> None:
    expected, found, _ = both(sd3, lambda _: [generate(sd3), generate(sd3, seeds=(1,))], plan, cache_dtype=dtype)
    assert same(expected, found)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("reuse", [Hold(), Taylor(keys=True)], ids=str)
def test_full_pruned_and_skipped_steps(model: nn.Module, reuse: Any, make_steps: Callable[..., Any]) -> None:
    counts = ListSchedule([1.0, 1.0, 1.0, 0.3, 0.0, 1.0, 0.5, 0.3, 0.0])
    plan = Plan(NoisePolicy(), counts, reuse)
    expected, found, _ = both(model, lambda _: [*make_steps(model), *make_steps(model, images=2, seed=1)], plan)
    assert same(expected, found)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("reuse", [Hold(), Taylor(keys=0.5)], ids=str)
def test_text_that_is_held(sd3: nn.Module, reuse: Any, make_steps: Callable[..., Any]) -> None:
    plan = Plan(POLICY, HeldText(POLICY.schedule(), every=2), reuse)
    expected, found, _ = both(sd3, lambda _: [*make_steps(sd3), *make_steps(sd3, seed=1)], plan)
    assert same(expected, found)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("plan", PLANS)
def test_generations_in_and_out_of_inference_mode(sd3: nn.Module, plan: str, generate: Generate) -> None:
    def draw(_: Handle) -> list[Tensor]:
        made = []
        for mode in (True, False, True):
            with torch.inference_mode(mode):
                made.append(generate(sd3).clone())
        return made

    expected, found, _ = both(sd3, draw, PLANS[plan])
    assert same(expected, found)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("plan", PLANS)
def test_windows_in_turns(sd3: nn.Module, plan: str, make_steps: Callable[..., Any]) -> None:
    def draw(handle: Handle) -> list[Tensor]:
        parts = {name: iter(make_steps(sd3, seed=seed)) for seed, name in enumerate("ab")}
        made = []
        for _ in range(9):
            for name, steps in parts.items():
                with handle.window(name):
                    made.append(next(steps))
        return made

    expected, found, _ = both(sd3, draw, PLANS[plan])
    assert same(expected, found)


class StopError(Exception):
    pass


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("call", [0, 2, 4])
def test_an_error_frees_all_and_the_next_generation_is_as_ever(
    sd3: nn.Module, plan: str, call: int, error: type[BaseException], make_steps: Callable[..., Any]
) -> None:
    expected, found, _ = both(sd3, lambda _: list(make_steps(sd3)), PLANS[plan])
    assert same(expected, found)
    inner = sd3.transformer_blocks[1].attn.to_q
    with tokenprune.apply(sd3, PLANS[plan], cache_device="cpu") as handle:
        steps = iter(make_steps(sd3, seed=5))
        for _ in range(call):
            next(steps)

        def stop(*_: Any) -> None:
            raise error

        with inner.register_forward_pre_hook(stop), pytest.raises(error):
            next(steps)
        if error is StopError:
            assert handle._timeline.nbytes == handle._timeline.host_bytes == 0
        assert same(expected, list(make_steps(sd3)))


@pytest.mark.parametrize("plan", PLANS)
def test_the_device_holds_the_memory_of_two_modules(
    plan: str, make_model: Callable[..., nn.Module], make_steps: Callable[..., Any]
) -> None:
    model = make_model("sd3-plain", layers=6)
    with tokenprune.apply(model, PLANS[plan]) as handle:
        list(make_steps(model))
        (branch,) = handle._masked.generation.branches.values()
        each = [sum(tensor.nbytes for tensor in buffer.memory) for buffer in branch.buffers.values()]
        whole = handle.report().cache_bytes
    assert len(each) == 6
    with tokenprune.apply(model, PLANS[plan], cache_device="cpu") as handle:
        for _ in make_steps(model):
            pass
        report = handle.report()
        assert handle._masked.host.nbytes == AHEAD * each[0]
        assert report.host_cache_bytes == sum(each)
        assert report.cache_bytes == whole - sum(each) + AHEAD * each[0]
        assert f"caches {memory_in_words(report.cache_bytes)} and {memory_in_words(sum(each))} in host memory" in str(
            report
        )
        handle.reset()
        assert handle._timeline.nbytes == handle._timeline.host_bytes == 0


@pytest.mark.parametrize("plan", PLANS)
def test_what_a_step_copies_and_in_which_order(
    plan: str, make_model: Callable[..., nn.Module], make_steps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next module's keys are on their way before a module runs; they are fetched once, and only where read."""
    monkeypatch.setattr(host_caches, "copies_of", lambda _: Noted())
    model, each = make_model("sd3-plain", layers=6), []
    with tokenprune.apply(model, PLANS[plan], cache_device="cpu") as handle:
        steps = iter(make_steps(model))
        next(steps)
        (branch,) = handle._masked.generation.branches.values()
        paths = {buffer.home.memory[0].data_ptr(): key.path for key, buffer in branch.buffers.items()}
        (copies,) = handle._masked.host._copies.values()
        for path in branch.order:
            note = partial(copies.log.append, ("run", path))
            model.get_submodule(path).register_forward_pre_hook(lambda *_, note=note: note())
        copies.log.clear()
        for _ in steps:
            each.append([(what, paths.get(place, place)) for what, place in copies.log])
            copies.log.clear()
    names = [site.path for site in handle._masked.map.attentions]
    brought = [("fetch", name) for name in names]
    pruned = brought[:2]
    for place, name in enumerate(names):
        pruned += [("run", name), ("give back", name), *brought[place + 2 : place + 3]]
    full = pruned if plan == "forecast" else [entry for entry in pruned if entry[0] != "fetch"]
    assert each == [full] * 2 + [pruned] * 6


class Modules:
    """Five attention modules, by letter, each of which adds 1 to its keys when it runs; nested ones run in brackets."""

    def __init__(self) -> None:
        self.branch = BranchCache(Hold())
        self.buffers = {path: self.branch.buffer(BufferKey(path)) for path in "abcde"}
        self.caches = HostCaches(nn.ModuleDict({path: nn.Identity() for path in self.buffers}))
        self.plans = {path: SimpleNamespace(keys=[], pruned=True) for path in self.buffers}
        for path, buffer in self.buffers.items():
            self.plans[path].keys.append(SimpleNamespace(buffer=buffer))

    def begin(self) -> None:
        states: Any = [SimpleNamespace(site=SimpleNamespace(path=path), plan=plan) for path, plan in self.plans.items()]
        self.caches.begin(states, self.branch)

    def record(self) -> None:
        """A full call, in which each records its own number."""
        self.begin()
        for number, (path, buffer) in enumerate(self.buffers.items()):
            key = torch.full((1, 2, 3, 4), float(number))
            self.caches.arrive(path)
            buffer.record(key, -key, (0, 3))
            self.caches.leave(path)
        self.caches.end()

    def call(self, order: str) -> None:
        self.begin()
        running: list[str] = []
        for path in order:
            if path == ")":
                self.caches.leave(running.pop())
            else:
                self.caches.arrive(path)
                self.buffers[path].key.add_(1)  # type: ignore[union-attr]
                running.append(path)
        self.caches.end()

    @property
    def kept(self) -> list[float]:
        return [float(buffer.home.memory[0].unique()) for buffer in self.buffers.values()]  # type: ignore[union-attr]


@pytest.mark.usefixtures("copies")
def test_modules_that_run_out_of_order() -> None:
    """A buffer gets its own whatever runs, twice or not at all, and in whichever order."""
    modules, expected = Modules(), dict(zip("abcde", range(5), strict=True))
    modules.record()
    for order in ("abcde", "acbed", "e", "", "aabbe", "cde", "edcba", "abcde"):
        modules.call("".join(f"{path})" for path in order))
        for path in order:
            expected[path] += 1
    for copies in modules.caches._copies.values():
        copies.finish()
    assert modules.kept == list(expected.values())
    assert modules.caches.nbytes == AHEAD * 2 * 24 * 4


def test_modules_within_others() -> None:
    modules = Modules()
    modules.record()
    for order in ("abc)))d)e)", "a)bcd)))e)", "edcba)))))"):
        modules.call(order)
    assert modules.kept == [3.0, 4.0, 5.0, 6.0, 7.0]


def test_a_buffer_that_a_call_gives_up_does_not_keep_what_is_shared() -> None:
    """As where a module attends to other keys than at the last full call."""
    modules = Modules()
    modules.record()
    former, other = modules.buffers["a"], Hold().start_keys()
    modules.begin()
    modules.caches.arrive("a")
    modules.plans["a"].keys = [SimpleNamespace(buffer=other)]
    other.record(torch.ones(1, 2, 7, 4), torch.ones(1, 2, 7, 4), (0, 7))
    modules.caches.leave("a")
    assert other.home is not None
    assert former.home is not None
    assert former.memory == former.home.memory
    assert other.memory == other.home.memory


def test_numbers_that_are_none_stay_in_their_generation(
    sd3: nn.Module, make_steps: Callable[..., Any], generate: Generate
) -> None:
    """What forecasts went by in the last generation plays no part in the next."""
    with tokenprune.apply(sd3, PLANS["forecast"], cache_device="cpu") as handle:
        expected = list(make_steps(sd3))
        handle.reset()
        steps = make_steps(sd3)
        for latents in steps.latents:
            latents.fill_(torch.nan)
        assert all(step.isnan().all() for step in steps)
        assert same(expected, list(make_steps(sd3)))


@contextmanager
def waiting_refused(refuse: bool) -> Iterator[None]:
    if refuse:
        with no_waiting():
            yield
    else:
        yield


@pytest.mark.parametrize("plan", PLANS)
def test_pruned_steps_do_not_wait(
    model: nn.Module, plan: str, make_steps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by an operator nor by waiting for copies; memory is made at the first step alone."""
    waits: list[int] = []

    class Watched(Copies):
        def finish(self) -> None:
            waits.append(step)

    monkeypatch.setattr(host_caches, "copies_of", lambda _: Watched())
    steps, step = make_steps(model), 0
    with tokenprune.apply(model, PLANS[plan], cache_device="cpu"):
        for step in range(9):
            with waiting_refused(step > 3):
                steps.call(step)
    assert set(waits) == {0}


@pytest.mark.parametrize("plan", PLANS)
def test_a_limit_is_for_the_device(
    plan: str, make_model: Callable[..., nn.Module], make_steps: Callable[..., Any]
) -> None:
    model = make_model("sd3-plain", layers=6)
    with tokenprune.apply(model, PLANS[plan], cache_device="cpu") as handle:
        list(make_steps(model))
        report = handle.report()
    assert report.cache_bytes < report.host_cache_bytes
    with tokenprune.apply(model, PLANS[plan], cache_device="cpu", cache_limit=report.cache_bytes):
        list(make_steps(model))
    with (
        tokenprune.apply(model, PLANS[plan], cache_device="cpu", cache_limit=report.cache_bytes - 1),
        pytest.raises(CacheLimitError, match="the caches would hold "),
    ):
        list(make_steps(model))
    with (
        tokenprune.apply(model, PLANS[plan], cache_limit=report.cache_bytes),
        pytest.raises(CacheLimitError, match=r'keys and values in host memory with apply.*cache_device="cpu"'),
    ):
        list(make_steps(model))


def test_plans_that_keep_no_keys_are_as_ever(sd3: nn.Module, generate: Generate) -> None:
    plan = Plan(NoisePolicy(), ListSchedule([1.0, 1.0, 0.0, 1.0, 0.0, 1.0]), Taylor())
    expected, found, handle = both(sd3, lambda _: [generate(sd3)], plan)
    assert same(expected, found)
    assert handle.report().host_cache_bytes == 0
    sd3.transformer_blocks[0].compile(backend="eager")
    tokenprune.apply(sd3, plan, cache_device="cpu").remove()


@pytest.mark.parametrize("device", ["cuda", "cpu:0", "disk", "", torch.device("cuda:0")])
def test_other_places_are_refused(sd3: nn.Module, device: Any) -> None:
    with pytest.raises(
        ValueError, match='apply: cache_device: expected "cpu", or None for the device of the model, got'
    ):
        tokenprune.apply(sd3, POLICY, cache_device=device)
    assert not sd3._forward_hooks


@pytest.mark.parametrize("device", [0, True, torch.ones(1)])
def test_what_is_no_device_is_refused(sd3: nn.Module, device: Any) -> None:
    with pytest.raises(TypeError, match=r"apply: cache_device: expected .*cpu"):
        tokenprune.apply(sd3, POLICY, cache_device=device)
    assert not sd3._forward_hooks
