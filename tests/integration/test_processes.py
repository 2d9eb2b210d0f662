"""Other processes, copies for each thread, and a DataLoader beside a pruned pipeline."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.multiprocessing
from diffusers import DiffusionPipeline
from noise import Noise
from torch import Tensor
from torch.utils.data import DataLoader
from workers import draw_here, draw_with, draw_with_model, ignore, leftovers

import tokenprune
from tokenprune import CATPolicy, SelectionPolicy

PATIENCE = 120.0
"""Seconds after which whoever waits for another gives up."""

MAKERS = {"StableDiffusion3Pipeline": "make_sd3", "PixArtSigmaPipeline": "make_pixart"}


@pytest.fixture(scope="module")
def spawned() -> Iterator[ProcessPoolExecutor]:
    """A process that was started afresh."""
    context, threads = torch.multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        yield pool


@pytest.fixture
def one_thread() -> Iterator[None]:
    """OpenMP's threads do not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_fork(work: Callable[[], Tensor]) -> Tensor:
    """What a copy of this process makes."""
    context = torch.multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work().numpy()))
    process.start()
    sender.close()
    try:
        assert receiver.poll(PATIENCE)
        made = torch.from_numpy(receiver.recv())
        process.join(PATIENCE)
        assert process.exitcode == 0
        return made
    finally:
        process.kill()
        receiver.close()


@pytest.mark.parametrize("planned", [False, True], ids=["policy", "plan"])
def test_a_pipeline_in_a_spawned_process(
    pipe: DiffusionPipeline,
    planned: bool,
    spawned: ProcessPoolExecutor,
    draw: Callable[..., Tensor],
    guest_policy: CATPolicy,
) -> None:
    policy: Any = tokenprune.plan(pipe, 0.5) if planned else guest_policy
    there = spawned.submit(draw_here, MAKERS[type(pipe).__name__], policy)
    with tokenprune.apply(pipe, policy) as handle:
        expected, report = draw(pipe), handle.report()
    picture, reported = there.result(PATIENCE)
    assert torch.equal(picture, expected)
    assert [step.tokens for step in reported.steps] == [step.tokens for step in report.steps]
    assert (reported.macs, reported.dense_macs) == (report.macs, report.dense_macs)
    assert report.tokens < report.dense_tokens


def test_a_pipeline_that_is_sent_arrives_plain(
    pipe: DiffusionPipeline, spawned: ProcessPoolExecutor, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    """Before its first generation: transformers' CLIP encoders, once called, cannot be pickled by anybody."""
    with tokenprune.apply(pipe, guest_policy):
        found, plain, pruned = spawned.submit(draw_with, pipe, guest_policy).result(PATIENCE)
        assert torch.equal(draw(pipe), pruned)
    assert found == []
    assert torch.equal(draw(pipe), plain)


def test_a_model_that_is_sent_arrives_plain(
    pipe: DiffusionPipeline, spawned: ProcessPoolExecutor, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    """Its tensors lie in memory that both processes share from then on, and this one goes on with its pruned model."""
    make, model = MAKERS[type(pipe).__name__], pipe.transformer
    with tokenprune.apply(pipe, guest_policy):
        before = draw(pipe)
        found, plain, pruned = spawned.submit(draw_with_model, make, model, guest_policy).result(PATIENCE)
        assert leftovers(model)
        assert all(tensor.is_shared() for tensor in model.parameters())
        assert torch.equal(draw(pipe), before)
    assert found == leftovers(model) == []
    assert torch.equal(pruned, before)
    assert torch.equal(draw(pipe), plain)


REFUSAL = (
    r"Handle\(.*\): expected to stay with its model, got copied or pickled; copy or send the model or pipeline, "
    r"which arrives plain, and apply a policy to it there"
)


@pytest.mark.parametrize("send", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_handle_stays_where_its_model_is(
    send: Callable[[Any], Any], pipe: DiffusionPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    with tokenprune.apply(pipe, guest_policy) as handle:
        pruned = draw(pipe)
        with pytest.raises(TypeError, match=REFUSAL):
            send(handle)
        assert torch.equal(draw(pipe), pruned)


@pytest.mark.parametrize("with_pipe", [False, True])
def test_a_handle_is_not_sent(
    with_pipe: bool, sd3: DiffusionPipeline, spawned: ProcessPoolExecutor, guest_policy: CATPolicy
) -> None:
    with tokenprune.apply(sd3, guest_policy) as handle:
        future = spawned.submit(ignore, (sd3, handle) if with_pipe else handle)
        with pytest.raises(TypeError, match=REFUSAL):
            future.result(PATIENCE)


@pytest.mark.parametrize("when", ["before the first call", "in mid-generation", "after a generation"])
@pytest.mark.usefixtures("one_thread")
def test_a_forked_process_has_a_pruned_model_of_its_own(
    pipe: DiffusionPipeline, when: str, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    with tokenprune.apply(pipe, guest_policy):
        pruned = draw(pipe)
    there: dict[str, Tensor] = {}

    def fork_if(now: str) -> None:
        if now == when:
            there[now] = in_fork(lambda: draw(pipe))

    def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            fork_if("in mid-generation")
        return tensors

    if type(pipe).__name__ == "PixArtSigmaPipeline":
        callbacks: dict[str, Any] = {"callback": lambda step, *_: callback(None, step, None, {}), "callback_steps": 1}
    else:
        callbacks = {"callback_on_step_end": callback}
    with tokenprune.apply(pipe, guest_policy):
        fork_if("before the first call")
        assert torch.equal(draw(pipe, **callbacks), pruned)
        fork_if("after a generation")
        assert torch.equal(draw(pipe), pruned)
    assert torch.equal(there[when], pruned)


@pytest.mark.usefixtures("one_thread")
def test_a_process_forked_while_another_thread_draws(
    pipe: DiffusionPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    """That thread, in the midst of a call of the model, does not exist in the new process."""
    reached, go_on, calls = threading.Event(), threading.Event(), []

    def hold(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 5:
            reached.set()
            assert go_on.wait(PATIENCE)

    with tokenprune.apply(pipe, guest_policy), ThreadPoolExecutor(1) as pool:
        pruned = draw(pipe)
        with pipe.transformer.transformer_blocks[1].register_forward_pre_hook(hold):
            held = pool.submit(draw, pipe)
            try:
                assert reached.wait(PATIENCE)
                assert torch.equal(in_fork(lambda: draw(pipe)), pruned)
            finally:
                go_on.set()
            assert torch.equal(held.result(PATIENCE), pruned)


@pytest.mark.parametrize("copied", ["before", "from a pruned one that draws"])
def test_a_copy_for_each_thread(
    pipe: DiffusionPipeline, copied: str, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    policies: list[SelectionPolicy] = [guest_policy, tokenprune.SequentialPolicy(0.5, 2), guest_policy]
    alone = []
    for seed, policy in enumerate(policies):
        with tokenprune.apply(pipe, policy):
            alone.append(draw(pipe, seed))
    copies = [copy.deepcopy(pipe) for _ in policies] if copied == "before" else []
    start = threading.Barrier(len(policies) + 1)

    def work(seed: int) -> list[Tensor]:
        start.wait(PATIENCE)
        own = copies[seed] if copies else copy.deepcopy(pipe)
        with tokenprune.apply(own, policies[seed]):
            return [draw(own, seed) for _ in range(3)]

    with tokenprune.apply(pipe, guest_policy), ThreadPoolExecutor(len(policies)) as pool:
        futures = [pool.submit(work, seed) for seed in range(len(policies))]
        start.wait(PATIENCE)
        here = [draw(pipe) for _ in range(3)]
        pictures = [future.result(PATIENCE) for future in futures]
    assert all(torch.equal(picture, alone[0]) for picture in here)
    for drawn, expected in zip(pictures, alone, strict=True):
        assert all(torch.equal(picture, expected) for picture in drawn)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_data_loader_whose_worker_lives_meanwhile(
    start: str, sd3: DiffusionPipeline, draw: Callable[..., Tensor], guest_policy: CATPolicy
) -> None:
    noise = Noise(3)
    with tokenprune.apply(sd3, guest_policy):
        expected = [draw(sd3, latents=noise[place].unsqueeze(0)) for place in range(3)]
        loader = DataLoader(noise, num_workers=1, persistent_workers=True, multiprocessing_context=start)
        for _ in range(2):
            pictures = [draw(sd3, latents=latents) for latents in loader]
            assert len(pictures) == 3
            assert all(map(torch.equal, pictures, expected))
    assert not torch.equal(draw(sd3, latents=noise[0].unsqueeze(0)), expected[0])
