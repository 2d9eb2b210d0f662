"""Forecasting the predictions of tokens that are not computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenprune.ops.damping import Damping, damped
from tokenprune.ops.guidance import PARTS, Guidance
from tokenprune.ops.selection import Selection
from tokenprune.reuse.base import Reuse, ReuseState
from tokenprune.reuse.key_value import KeyValueBuffer
from tokenprune.reuse.linear_key_value import LinearBuffer


@dataclass(frozen=True)
class Taylor(Reuse):
    """Extrapolate each token from its own last computed predictions, as a polynomial in the timestep.

    Order 1 is v_1 + d_1 (t - t_1) v[t_1, t_0], order 2 adds d_2 (t - t_1)(t - t_0) v[t_1, t_0, t_-1], with Newton's
    divided differences over the times at which that very token was computed. It is the forecast of TaylorSeer
    (Liu et al., arXiv 2503.06923), made for every token and on the model's prediction.

    The damping factors d adapt: whenever a token is computed, the fresh prediction shows by how much of each term
    the forecast should have moved (least squares over the tokens of an image), and d follows, within [0, 1]. A
    forecast whose terms were of no use, or that was not yet compared with anything, falls back to holding. Where both
    halves of classifier-free guidance share a batch, they share d, fitted to the guided prediction: guidance
    multiplies their difference, and two dampings would make one of their own.

    Args:
        order: 1 or 2.
        damped: False keeps d at 1.
        keys: forecast stale keys and values, too (order 1, always damped), which takes twice their memory. A number is
            the share of attention modules in which that is done, the first ones, 0 to 1; in the others they are held.

    Raises:
        ValueError: the order is neither 1 nor 2, or the share is not from 0 to 1.
    """

    order: int = 1
    damped: bool = True
    keys: bool | float = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order: expected 1 or 2, got {self.order!r}")
        if not 0 <= self.keys <= 1:
            raise ValueError(
                f"keys: expected True, False, or the share of attention modules whose keys are forecast, 0 to 1, got "
                f"{self.keys!r}"
            )

    def start(self, guidance: Guidance = "none") -> ReuseState:
        """Fresh memory: `order + 1` predictions and the times they were computed at."""
        return _TaylorState(self, guidance)

    def start_keys(self, guidance: Guidance = "none", depth: float = 0.0) -> KeyValueBuffer:
        """Memory for held keys and values, or for forecast ones."""
        return LinearBuffer(halves=PARTS[guidance]) if depth < self.keys else KeyValueBuffer()


class _TaylorState(ReuseState):
    """Newest first: `values` [B, N, C] of each token's last computations, and their `times`.

    A time is one number where all tokens have the same, else one for each [B, N, 1]. Where a token was computed less
    often than there are places, its oldest prediction is in the rest, as of an infinite time: its slope is then 0.
    """

    def __init__(self, rule: Taylor, guidance: Guidance) -> None:
        self._rule = rule
        self._values: list[Tensor] = []
        self._times: list[Tensor | float] = []
        self._expected: tuple[float, list[Tensor]] | None = None  # terms at the time that `expect` was asked for
        self._dampings = [Damping(guidance, unknown=0.0) for _ in range(rule.order)]

    def record(self, prediction: Tensor, time: float) -> None:
        if self._values and self._rule.damped:
            self._learn(self._expected_terms(time), prediction.float() - self._values[0].float())
        self._push(prediction.clone(), time)

    def complete(self, fresh: Tensor, selection: Selection, time: float) -> Tensor:
        terms = self._expected_terms(time)
        forecast = self._sum(terms)
        if self._rule.damped:
            forecast_error = fresh.float() - selection.gather(self._values[0]).float()
            self._learn([selection.gather(term) for term in terms], forecast_error)
        known = self._times[0]
        if not isinstance(known, Tensor):
            known = self._times[0] = torch.full_like(forecast[..., :1], known)
        self._push(selection.scatter(fresh, self._values[0]), known.scatter(1, selection.index.unsqueeze(-1), time))
        return selection.scatter(fresh, forecast.to(fresh.dtype))

    def forecast(self, time: float) -> Tensor:
        return self._forecast(self._terms(time))

    def expect(self, time: float) -> Tensor:
        self._expected = time, self._terms(time)
        return self._forecast(self._expected[1])

    @property
    def nbytes(self) -> int:
        kept = (*self._values, *self._times)
        return sum(tensor.nbytes for tensor in kept if isinstance(tensor, Tensor))

    def _push(self, newest: Tensor, times: Tensor | float) -> None:
        """Take in the tokens' newest predictions and times; one at the time of a token's newest replaces that."""
        self._expected = None
        if not self._values:
            self._values, self._times = [newest], [times]
            return
        if len(self._values) <= self._rule.order:
            self._values.append(self._values[-1])
            self._times.append(math.inf)
        later = times != self._times[0]
        for places in (self._values, self._times):
            for place in range(len(places) - 1, 0, -1):
                places[place] = _either(later, places[place - 1], places[place])
        self._values[0], self._times[0] = newest, times

    def _terms(self, time: float) -> list[Tensor]:
        """The undamped terms [B, N, C] of each order at a time, in float32."""
        values, times = [value.float() for value in self._values], self._times
        terms: list[Tensor] = []
        if len(values) > 1:
            change, since = values[0] - values[1], times[0] - times[1]
            terms.append(change * ((time - times[0]) / since))
        if len(values) > 2:
            known = (times[2] != math.inf) & (times[0] != times[2])
            if known is not False:
                older = (values[1] - values[2]) / (times[1] - times[2])
                curvature = (change / since - older) / (times[0] - times[2])
                terms.append(_either(known, curvature * ((time - times[0]) * (time - times[1])), 0.0))
        return terms

    def _expected_terms(self, time: float) -> list[Tensor]:
        """The terms at a time, from `expect` where it was asked for that."""
        known = self._expected
        return known[1] if known is not None and known[0] == time else self._terms(time)

    def _forecast(self, terms: list[Tensor]) -> Tensor:
        """The sum in the predictions' type, in memory of its own."""
        found = self._sum(terms).to(self._values[0].dtype)
        return found.clone() if found is self._values[0] else found

    def _sum(self, terms: list[Tensor]) -> Tensor:
        total = self._values[0].float()
        for term, factor in zip(terms, self._factors, strict=False):
            total = damped(total, term, factor)
        return total

    @property
    def _factors(self) -> list[Tensor | float]:
        """Damping factors of the terms [G * B, 1, 1], within [0, 1]; 0 before anything was learnt, 1 if not damped."""
        return [damping.factor if self._rule.damped else 1.0 for damping in self._dampings]

    def _learn(self, terms: list[Tensor], forecast_error: Tensor) -> None:
        """Fit each damping to what was left over by the terms before it."""
        left = forecast_error
        for damping, term in zip(self._dampings, terms, strict=False):
            damping.learn(left, term)
            if term is not terms[-1]:
                left = damped(left, term, -damping.factor)


def _either(chosen: Tensor | bool, one: Any, other: Any) -> Any:
    """The one where it is chosen, everywhere or for each token, else the other."""
    if isinstance(chosen, bool):
        return one if chosen else other
    return torch.where(chosen, one, other)
