"""What can only be seen on the device that a model is for: waiting, kernels, graphs, and the clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import tokenprune
from tokenprune.bench.measuring.kernels import CallKernels, counting_kernels
from tokenprune.bench.measuring.speed import Speed, speed_of
from tokenprune.errors import TokenPruneError, one_line
from tokenprune.macs.breakdown import commonest_call
from tokenprune.macs.counting import Computed
from tokenprune.macs.rehearsal import CallPattern, counts_of, rehearse
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.grid import num_tokens
from tokenprune.plans.plan import Plan
from tokenprune.reports.checks import Finding
from tokenprune.reports.records import Stopwatch
from tokenprune.testing.waiting import WaitedError, no_waiting

STEPS = 12
"""Of each generation."""


@dataclass(frozen=True)
class Case:
    """A model on its device, and one call of it.

    Attributes:
        name: what it is called.
        model: with random weights.
        map: where its parts are.
        call: how a pipeline calls it; tensors on the device.
        device: where it is.
    """

    name: str
    model: nn.Module
    map: ModuleMap
    call: CallPattern
    device: torch.device

    @property
    def blocks(self) -> tuple[str, ...]:
        """Paths of its blocks."""
        return tuple(site.path for site in self.map.block_sites)

    def steps(self) -> Iterator[Mapping[str, Any]]:
        """The arguments of each call of a generation, with timesteps out of one table, as samplers give them."""
        given = self.call.arguments
        time = given[self.map.time]
        shares = torch.linspace(1, 1 / STEPS, STEPS, device=self.device)
        table = (time.flatten()[0] * (shares.flip(0) if self.map.time_rises else shares)).to(time.dtype)
        for step in range(STEPS):
            for _ in range(self.call.times):
                yield {**given, self.map.time: table[step].expand(time.shape)}

    def play(self, around: Callable[[int], AbstractContextManager[Any]] | None = None) -> list[float]:
        """One generation: seconds of each step, read when all are done.

        Args:
            around: gives what is entered around each step, by its index.
        """
        watches: list[Stopwatch] = []
        with torch.no_grad():
            for place, arguments in enumerate(self.steps()):
                step, first = divmod(place, self.call.times)
                with contextlib.nullcontext() if around is None else around(step):
                    watches += [Stopwatch(self.device)] if first == 0 else []
                    self.model(**arguments)
                    watches[-1].mark()
        return [watch.seconds for watch in watches]

    def pruned(self, plan: Plan) -> tokenprune.Handle:
        """The model with the plan on it."""
        return tokenprune.apply(self.model, plan, guidance=self.map.guidance if self.call.halves else "none")


@dataclass(frozen=True)
class Timed:
    """A pruned step beside a plain one.

    Attributes:
        case: of which model.
        tokens: image tokens.
        plain: seconds of a plain step, median.
        full: of a full step of the plan.
        pruned: of a pruned step of the plan.
        speed: plain over pruned, from pairs of generations, with the reason where it is noise.
        allowed: what the operations allow.
        kernels: operators of a plain and of a pruned call.
        peak_bytes: most memory that a pruned generation took, on CUDA.
        cache_bytes: what the caches held.
    """

    case: str
    tokens: int
    plain: float
    full: float
    pruned: float
    speed: Speed
    allowed: float
    kernels: tuple[CallKernels, CallKernels]
    peak_bytes: int | None
    cache_bytes: int


def timed(case: Case, plan: Plan, turns: int) -> Timed:
    """Generations of the plain model and of the pruned one, in turns."""
    plain: list[list[float]] = []
    pruned: list[list[float]] = []
    case.play()
    with case.pruned(plan):
        case.play()
    for _ in range(turns):
        plain.append(case.play())
        if case.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with case.pruned(plan) as handle:
            case.play()  # makes the caches
            pruned.append(case.play())
            report = handle.report()
    peak = torch.cuda.max_memory_allocated() if case.device.type == "cuda" else None
    with counting_kernels(case.model, case.blocks) as of_plain:
        case.play()
    with case.pruned(plan), counting_kernels(case.model, case.blocks) as of_pruned:
        case.play()
    rehearsal = rehearse(case.model, case.map, case.call, plan, STEPS)
    full, some = (rehearsal.layers[call][""] for call in (Computed(rehearsal.tokens), commonest_call(rehearsal)))
    allowed = full.total / some.total

    def of_kind(times: list[float], full: bool) -> list[float]:
        return [seconds for seconds, step in zip(times, report.steps, strict=True) if step.full is full]

    pairs = [(median(a), median(of_kind(b, full=False))) for a, b in zip(plain, pruned, strict=True)]
    return Timed(
        case=case.name,
        tokens=rehearsal.tokens,
        plain=median([seconds for times in plain for seconds in times]),
        full=median([seconds for times in pruned for seconds in of_kind(times, full=True)][1:]),
        pruned=median([seconds for times in pruned for seconds in of_kind(times, full=False)]),
        speed=speed_of(pairs, allowed),
        allowed=allowed,
        kernels=(of_plain[-1], of_pruned[-1]),
        peak_bytes=peak,
        cache_bytes=report.cache_bytes,
    )


def checks(case: Case, plan: Plan) -> Iterator[Finding]:
    """What must hold on the device, one after the other."""
    found: dict[str, Callable[[Case, Plan], str]] = {
        "waiting": _waits,
        "flash attention": _flash,
        "compiled with CUDA graphs": _graphs,
    }
    for name, check in found.items():
        try:
            yield Finding(name, "passed", check(case, plan))
        except NotHere as reason:
            yield Finding(name, "not checked", str(reason))
        except (TokenPruneError, RuntimeError, AssertionError, WaitedError) as error:
            yield Finding(name, "failed", f"{type(error).__name__}: {one_line(error)}")
        finally:
            torch.compiler.reset()


class NotHere(Exception):  # noqa: N818
    """Why a check says nothing on this device."""


def _pruned_from(plan: Plan, case: Case) -> int:
    """The first step that is pruned, and all after it are; an error where there is none."""
    schedule, tokens = plan.schedule or plan.policy.schedule(), num_tokens(case.map.grid(case.call.arguments))
    counts = counts_of(schedule, tokens, STEPS, case.map.least_tokens)
    full = [step for step, count in enumerate(counts) if count == tokens]
    if full[-1] == STEPS - 1 or schedule.skips:
        raise NotHere(f"{schedule!r} has no pruned steps at the end of {STEPS}")
    return full[-1] + 1


def _waits(case: Case, plan: Plan) -> str:
    first = _pruned_from(plan, case)

    @contextlib.contextmanager
    def watched(step: int) -> Iterator[None]:
        if step <= first:  # the first pruned step of a number of tokens makes its indices
            yield
        elif case.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")
        else:
            with no_waiting():
                yield

    with case.pruned(plan):
        case.play(watched)
    how = "CUDA's sync debug mode" if case.device.type == "cuda" else "modes that forbid such operators"
    return f"{STEPS - first - 1} pruned steps under {how}: none waited for the device"


def _flash(case: Case, plan: Plan) -> str:
    first = _pruned_from(plan, case)

    def only_flash(step: int) -> AbstractContextManager[Any]:
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION]) if step >= first else contextlib.nullcontext()

    try:
        case.play(lambda _: sdpa_kernel([SDPBackend.FLASH_ATTENTION]))
    except RuntimeError as error:
        raise NotHere(f"the plain model cannot do with it either: {one_line(error)}") from error
    with case.pruned(plan):
        case.play(only_flash)
    return "pruned steps attend through torch's flash kernel alone"


def _graphs(case: Case, plan: Plan) -> str:
    if case.device.type != "cuda":
        raise NotHere("CUDA graphs need a CUDA device")
    outputs: dict[Literal["eager", "graphs"], list[Tensor]] = {"eager": [], "graphs": []}

    def run(kind: Literal["eager", "graphs"]) -> None:
        with torch.no_grad():
            for arguments in case.steps():
                made = case.model(**arguments)
                first = made[0] if isinstance(made, tuple) else made.sample
                outputs[kind].append(first.float().cpu())

    with case.pruned(plan):
        run("eager")
    blocks = [case.model.get_submodule(path) for path in case.blocks]
    try:
        for block in blocks:
            block.compile(mode="reduce-overhead", fullgraph=True)
        with case.pruned(plan):
            case.play()
            run("graphs")
    finally:
        for block in blocks:
            block._compiled_call_impl = None
    for own, other in zip(outputs["graphs"], outputs["eager"], strict=True):
        torch.testing.assert_close(own, other, rtol=0.05, atol=0.05 * float(other.abs().max()))
    skipped = dict(torch._dynamo.utils.counters["inductor"]).get("cudagraph_skips", 0)
    return f"{STEPS} steps equal eager ones within 5 %; {skipped} graphs were not captured"
