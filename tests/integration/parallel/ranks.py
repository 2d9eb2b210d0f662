"""Processes that make up a group, one for each rank: they run one program, and what they give comes back."""

from __future__ import annotations

import contextlib
import datetime as dt
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds after which a program, or a rank that waits for another, is given up."""

# what processes would import else, one by one
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch.distributed.tensor.parallel",
        "diffusers.hooks",
        "diffusers.pipelines.flux.pipeline_flux",
        *(f"diffusers.models.transformers.transformer_{name}" for name in ("flux", "qwenimage", "wan")),
        "tokenprune",
        "torch_geometric.nn",
        "torch_geometric.utils",
    ]
)


Ranks = Callable[..., list[Any]]
"""Runs a program on each of so many ranks."""


class RankFailedError(AssertionError):
    """A rank raised an error, died, or took too long."""


def on_ranks(world: int, store: Path, program: Callable[..., Any], *args: Any) -> list[Any]:
    """What a program gives on each rank of a group of processes.

    Args:
        world: how many ranks.
        store: a file that does not exist, by which they find each other.
        program: a function that processes can import, and that gives something that can be pickled.
        args: its arguments.

    Raises:
        RankFailedError: with the traceback of the first rank that failed; the others are ended.
    """
    receivers, processes = [], []
    for rank in range(world):
        receiver, sender = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_run, args=(rank, world, store, sender, program, args), daemon=True)
        process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    try:
        return _collect(receivers)
    finally:
        for receiver in receivers:
            receiver.close()  # ranks that gave something wait for that
        for process in processes:
            process.join(1)
            process.kill()
            process.join(PATIENCE)


def _collect(receivers: list[Connection]) -> list[Any]:
    deadline, given = time.monotonic() + PATIENCE, {}
    while len(given) < len(receivers):
        open_ones = [receiver for rank, receiver in enumerate(receivers) if rank not in given]
        ready = wait(open_ones, max(0.0, deadline - time.monotonic()))
        if not ready:
            late = [rank for rank in range(len(receivers)) if rank not in given]
            raise RankFailedError(f"ranks {late} gave nothing within {PATIENCE:.0f} s")
        for receiver in ready:
            rank = receivers.index(receiver)
            try:
                made, result = pickle.loads(receiver.recv_bytes())
            except EOFError:
                raise RankFailedError(f"rank {rank} died") from None
            if not made:
                raise RankFailedError(f"rank {rank} raised\n{result}")
            given[rank] = result
    return [given[rank] for rank in range(len(receivers))]


def _run(
    rank: int, world: int, store: Path, sender: Connection, program: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """The life of one rank."""
    import torch
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: world  # diffusers takes ranks modulo the number of accelerators
    try:
        dist.init_process_group(
            "cpu:gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=dt.timedelta(seconds=PATIENCE),
        )
        sender.send_bytes(pickle.dumps((True, program(*args))))
        with contextlib.suppress(EOFError, OSError):
            sender.recv_bytes()  # until all are done: others may still be connecting to this one
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        sender.close()
