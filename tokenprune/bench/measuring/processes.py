"""A bench run in several processes, as `accelerate launch` starts them: each prompt is drawn in one of them."""

from __future__ import annotations

import atexit
import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.measuring.measure import Samples, Task, batches, draw

T = TypeVar("T")


LONGEST_WAIT = timedelta(days=1)
"""For the main process, while it times a configuration."""


class ProcessError(RuntimeError):
    """What another process failed with, where its own error cannot be sent over."""


def state() -> PartialState:
    """The processes that were started together: on CPUs where there is no GPU, or where `accelerate` was told so."""
    on_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    found = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    if found.num_processes > 1:
        _part_at_exit()
    return found


@cache
def _part_at_exit() -> None:
    """End the group before the interpreter: a thread of gloo that outlives it aborts the process, its work all done."""
    atexit.register(PartialState().destroy_process_group)


def is_main() -> bool:
    """Whether this is the process that writes files and the screen: true where there is only one."""
    return bool(state().is_main_process)


def together(work: Callable[[], T]) -> list[T]:
    """Do the work in every process; all get the results of all, in the processes' order, or the first one's error."""
    if state().num_processes == 1:
        return [work()]
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = _sendable(error)
    results, failures = zip(*gather_object([(result, failure)]), strict=True)
    for failure in filter(None, failures):
        raise failure
    return list(results)


def on_main(work: Callable[[], T]) -> T:
    """Do the work in the main process while the others wait; all get its result, or its error."""
    result: T | None = together(lambda: work() if is_main() else None)[0]
    return result  # type: ignore[return-value]


def draw_together(pipe: Any, configuration: Configuration, task: Task) -> Samples:
    """Draw the task's prompts, whole batches in each process; all get all pictures.

    A batch holds the same prompts however many processes there are, so that its pictures are the same to the last bit.
    """
    with state().split_between_processes(batches(task)) as mine:
        parts = [part for part in together(lambda: draw(pipe, configuration, task, mine) if mine else None) if part]
    last = parts[-1]
    return Samples(
        np.concatenate([part.pictures for part in parts]),
        last.tokens_ratio,
        last.mac_ratio,
        last.linear_mac_ratio,
        None if last.cache_bytes is None else max(part.cache_bytes or 0 for part in parts),
    )


def _sendable(error: Exception) -> Exception:
    """The error without its traceback's frames, or what can be said of it."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return copy if type(copy) is type(error) else ProcessError(f"{type(error).__name__}: {error}")
