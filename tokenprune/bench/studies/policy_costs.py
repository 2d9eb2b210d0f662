"""What a selection costs at full size: `python -m tokenprune.bench.studies.policy_costs`.

Times every policy on random predictions of one image of 64 x 64 tokens, the attention statistics of one module, the
forecasts of both guidance halves, and, to compare with, one transformer block of SD3-medium's width. On a CPU the
times are processor times. Nothing of a trained model is needed; the first selection of a generation is apart, as some
policies cluster there.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenprune.bench.commands import run
from tokenprune.ops.selection import Selection
from tokenprune.policies import ALL
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.reuse.base import Hold, Reuse
from tokenprune.reuse.cluster_correction import ClusterCorrection
from tokenprune.reuse.taylor import Taylor

GRID, CHANNELS, COUNT = (64, 64), 64, 1228


TOKENS, TEXT = GRID[0] * GRID[1], 333


HALVES, BLOCKS, HEADS, WIDTH = 2, 24, 24, 1536


REPEATS = 7


def policies() -> dict[str, SelectionPolicy]:
    """Every policy by the code that makes it."""
    return {name: example for policy in ALL for name, example in policy.examples(GRID).items()}


def selections(policy: SelectionPolicy, device: torch.device) -> list[float]:
    """Seconds of each selection of a generation, the first one included."""
    memory: Memory = {}
    previous: Selection | None = None
    seconds = []
    for step in range(REPEATS):
        prediction, reference = _random(2, 1, TOKENS, CHANNELS, device=device)
        seen = Observation(
            prediction=prediction,
            reference=reference,
            count=COUNT,
            grid=GRID,
            step=8 + step,
            pruned_steps=step,
            time=900.0 - step,
            previous=previous,
            age=torch.arange(TOKENS, device=device, dtype=torch.int32).unsqueeze(0) % 7 + 1,
            forecast_error=_random(1, TOKENS, device=device).abs(),
            gap=torch.ones(1, TOKENS, dtype=torch.int32, device=device),
            attention=_random(1, TOKENS, device=device).softmax(-1),
        )
        took, previous = _timed(partial(policy.select, seen, memory), device)
        seconds.append(took)
    return seconds


def weighing(policy: SelectionPolicy, device: torch.device) -> float:
    """Seconds of a policy's look at one attention module, at the conditional half."""
    query, key = _random(2, 1, HEADS, TOKENS, WIDTH // HEADS, device=device)
    return _timed(lambda: policy.weigh_attention(query, key, (WIDTH // HEADS) ** -0.5), device)[0]


def completions(reuse: Reuse, device: torch.device) -> list[float]:
    """Seconds of each pruned step's forecast for both guidance halves."""
    state = reuse.start()
    for time_ in (1000.0, 960.0, 920.0):
        state.record(_random(HALVES, TOKENS, CHANNELS, device=device), time_)
    seconds = []
    for step in range(REPEATS):
        fresh = _random(HALVES, COUNT, CHANNELS, device=device)
        selection = Selection.top(_random(HALVES, TOKENS, device=device), COUNT)
        seconds.append(_timed(partial(state.complete, fresh, selection, 880.0 - step), device)[0])
    return seconds


def block(tokens: int, device: torch.device) -> float:
    """Seconds of one block's large products, both streams: `tokens` of the image and all of the text, over all keys."""
    attention, inner = _random(WIDTH, 4 * WIDTH, device=device), _random(4 * WIDTH, WIDTH, device=device)
    lengths = (tokens, TEXT)
    streams = [_random(HALVES, length, WIDTH, device=device) for length in lengths]
    keys, values = _random(2, HALVES, HEADS, TOKENS + TEXT, WIDTH // HEADS, device=device)

    def run() -> list[Tensor]:
        projected = [stream @ attention[:, : 3 * WIDTH] for stream in streams]
        query = torch.cat([part[..., :WIDTH] for part in projected], dim=1).unflatten(2, (HEADS, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        outputs = [part @ attention[:, -WIDTH:] for part in attended.split(lengths, dim=1)]
        return [F.gelu(part @ attention, approximate="tanh") @ inner for part in outputs]

    streams[1] @ attention  # wakes the library that multiplies
    return _timed(run, device)[0]


def rows(device: torch.device) -> Iterator[str]:
    """The tables, line by line."""
    pruned, full = block(COUNT, device), block(TOKENS, device)
    step = BLOCKS * pruned
    yield f"one block of SD3-medium's width, batch {HALVES}: full {_ms(full)}, {COUNT} + {TEXT} tokens {_ms(pruned)}"
    yield f"{BLOCKS} such pruned blocks: {_ms(step)}"
    yield f"\n| selection | first | later, median | of {BLOCKS} blocks |\n|---|---|---|---|"
    for name, policy in policies().items():
        first, *later = selections(policy, device)
        yield f"| {name} | {_ms(first)} | {_ms(median(later))} | {median(later) / step:.3%} |"
    yield "\n| attention statistics, once before pruned steps | a module | of a full block |\n|---|---|---|"
    for policy in {type(example): example for example in policies().values()}.values():
        if "attention" in policy.needs:
            took = weighing(policy, device)
            yield f"| {type(policy).__name__} | {_ms(took)} | {took / full:.0%} |"
    yield f"\n| forecast, both guidance halves | first | later, median | of {BLOCKS} blocks |\n|---|---|---|---|"
    for reuse in (Hold(), Taylor(1), ClusterCorrection(Hold())):
        first, *later = completions(reuse, device)
        yield f"| {type(reuse).__name__} | {_ms(first)} | {_ms(median(later))} | {median(later) / step:.3%} |"


def _random(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device)


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds and result of a call; on the CPU processor time of all threads, which other work disturbs least."""
    if device.type != "cuda":
        began = time.process_time()
        result = call()
        return time.process_time() - began, result
    torch.cuda.synchronize()
    began = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return time.perf_counter() - began, result


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def main() -> None:
    """Print the tables for the GPU, or for the CPU where there is none."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; {TOKENS} tokens")
    with torch.no_grad():
        for row in rows(device):
            print(row, flush=True)


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.policy_costs")
