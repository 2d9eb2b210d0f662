"""Generations that a policy is checked with, without a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tokenprune.engine.token_history import TokenHistory
from tokenprune.ops.grid import TokenGrid, num_tokens
from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.reports.checks import CheckResult
from tokenprune.testing.waiting import WaitedError, no_waiting

NOISES = ("normal", "ties", "constant", "zero", "nan")
WARMUP, FULL = 2, 4
"""Full steps at the start of the generations played, and the index of a later one."""

Property = Literal[
    "selects",
    "selection",
    "memory",
    "inputs",
    "random state",
    "determinism",
    "isolation",
    "batch",
    "attention",
    "synchronisation",
]


class PolicyCheckError(AssertionError):
    """A policy breaks a property that the engine relies on; the message names it and the case.

    Attributes:
        broken: the property's name.
        result: all that was found until then.
    """

    def __init__(self, broken: Property, message: str, result: CheckResult | None = None) -> None:
        super().__init__(message)
        self.broken, self.result = broken, result


@dataclass(frozen=True)
class Case:
    """Generations of `images` images: noise of one sort on `grid`, `count` tokens at every pruned step."""

    grid: TokenGrid
    noise: str
    count: int
    images: int
    channels: int
    steps: int
    seed: int
    device: torch.device

    @cached_property
    def predictions(self) -> Tensor:
        """Predictions [steps, images, N, C]."""
        shape = (self.steps, self.images, num_tokens(self.grid), self.channels)
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return {
            "normal": normal,
            "ties": normal.sign(),
            "constant": torch.full_like(normal, 3.0),
            "zero": torch.zeros_like(normal),
            "nan": normal.where(normal < 0.5, math.nan),
        }[self.noise].to(self.device)

    @cached_property
    def attention(self) -> tuple[Tensor, Tensor]:
        """Queries and keys [images, 2, N, channels] of one attention module, made of the first two predictions."""
        return self._heads(0), self._heads(1)

    def _heads(self, step: int) -> Tensor:
        return torch.stack([self.predictions[step], self.predictions[step].flip(-1)], dim=1)

    def __str__(self) -> str:
        return f"on grid {self.grid}, {self.noise} noise, {self.count} of {num_tokens(self.grid)} tokens"


class Player:
    """One generation with a policy, of some of a case's images; `made` has the indices of every pruned step.

    What is seen to hold is counted in `held`.
    """

    def __init__(
        self,
        policy: SelectionPolicy,
        case: Case,
        rows: Sequence[int],
        held: Counter[Property],
        watched: bool = False,
    ) -> None:
        self.made: list[Tensor] = []
        self._held = held
        self._policy, self._case, self._rows, self._watched = policy, case, rows, watched
        self._predictions = case.predictions[:, list(rows)]
        self._memory: Memory = {}
        self._previous: Selection | None = None
        self._pruned_steps = 0
        self._history = TokenHistory(len(rows), num_tokens(case.grid), case.device)
        self._attention = self._weigh() if "attention" in policy.needs else None

    def play(self) -> list[Tensor]:
        """Play all steps; what was selected."""
        for step in range(self._case.steps):
            self.step(step)
        return self.made

    def step(self, step: int) -> None:
        """Play one step."""
        if step < WARMUP or step == FULL:
            self._previous, self._pruned_steps = None, 0
        else:
            self._previous = self._select(self._observation(step))
            self._pruned_steps += 1
            self.made.append(self._previous.index.clone())
        forecast_error = self._predictions[step].norm(dim=-1) if step else None
        if forecast_error is not None and self._previous is not None:
            forecast_error = forecast_error.gather(1, self._previous.index)
        self._history.note(step, self._previous, forecast_error)

    def _observation(self, step: int) -> Observation:
        return Observation(
            prediction=self._predictions[step - 1],
            reference=0.5 * self._predictions[0],
            count=self._case.count,
            grid=self._case.grid,
            step=step,
            pruned_steps=self._pruned_steps,
            time=1000.0 - step,
            previous=self._previous,
            age=self._history.age(step),
            forecast_error=self._history.forecast_error,
            gap=self._history.gap,
            attention=self._attention,
        )

    def _weigh(self) -> Tensor:
        """What the policy makes of the attention, of its images [B, N]."""
        query, key = (tensor.clone() for tensor in self._case.attention)
        with self._calling("weigh_attention"):
            weights = self._policy.weigh_attention(query, key, scale=0.5)
        for given, before in zip((query, key), self._case.attention, strict=True):
            if not torch.equal(given.nan_to_num(), before.nan_to_num()):
                raise self._error("inputs", "weigh_attention changed its queries or keys")
        expected, came = [self._case.images, num_tokens(self._case.grid)], list(weights.shape)
        if came != expected or weights.dtype != torch.float32:
            detail = f"expected torch.float32 weights {expected}, got {weights.dtype} {came}"
            raise self._error("attention", f"weigh_attention: {detail}")
        self._held["attention"] += 1
        return weights[list(self._rows)]

    @contextmanager
    def _calling(self, method: str) -> Iterator[None]:
        """What the policy raises, and a watched one's waiting, as the properties that they break."""
        try:
            with no_waiting() if self._watched else nullcontext():
                yield
        except WaitedError as error:
            raise self._error("synchronisation", str(error)) from None
        except Exception as error:
            raise self._error("selects", f"{method} raised {type(error).__name__}: {error}") from error

    def _select(self, seen: Observation) -> Selection:
        before, random_state = _tensors(seen), torch.get_rng_state()
        with self._calling("select"):
            selection = self._policy.select(seen, self._memory)
        for name, tensor in _tensors(seen).items():
            if not torch.equal(tensor.nan_to_num(), before[name].nan_to_num()):
                raise self._error("inputs", f"select changed the observation's {name}")
        if not torch.equal(random_state, torch.get_rng_state()):
            raise self._error("random state", "select drew from torch's global generator, or seeded it")
        self._check_selection(selection)
        self._check_memory()
        self._held.update(("selects", "selection", "inputs", "random state"))
        self._held["memory"] += len(self._memory)
        self._held["synchronisation"] += self._watched
        return selection

    def _check_selection(self, selection: object) -> None:
        images, count, tokens = len(self._rows), self._case.count, num_tokens(self._case.grid)
        if not isinstance(selection, Selection):
            raise self._error("selection", f"expected a Selection, got {type(selection).__name__}")
        index = selection.index
        expected, came = ([images, count], torch.int64, tokens), (list(index.shape), index.dtype, selection.num_tokens)
        if came != expected:
            raise self._error("selection", f"expected indices, dtype and tokens {expected}, got {came}")
        for row in index.tolist():
            if row != sorted(set(row)) or row[0] < 0 or row[-1] >= tokens:
                raise self._error("selection", f"expected sorted unique indices in 0..{tokens - 1}, got {row}")

    def _check_memory(self) -> None:
        for key, tensor in self._memory.items():
            if not isinstance(tensor, Tensor) or tensor.ndim == 0 or len(tensor) != len(self._rows):
                came = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise self._error("memory", f"{key!r}: expected a tensor with {len(self._rows)} rows, got {came}")

    def _error(self, broken: Property, detail: str) -> PolicyCheckError:
        return error_of(self._policy, self._case, broken, detail)


def error_of(policy: SelectionPolicy, case: Case, broken: Property, detail: str) -> PolicyCheckError:
    """The error of a property that does not hold in a case."""
    return PolicyCheckError(broken, f"{type(policy).__name__} breaks {broken!r} {case}: {detail}")


def _tensors(seen: Observation) -> dict[str, Tensor]:
    """Copies of all tensors in an observation."""
    found = {field.name: getattr(seen, field.name) for field in fields(seen)}
    found["previous"] = None if seen.previous is None else seen.previous.index
    return {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}
