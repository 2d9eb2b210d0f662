"""Forecasting the predictions of tokens that are not computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.ops.damping import Damping
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
    """Newest first: `values` [B, N, C] and `times` [B, N, 1] of each token's last computations."""

    def __init__(self, rule: Taylor, guidance: Guidance) -> None:
        self._rule = rule
        self._values: list[Tensor] = []
        self._times: list[Tensor] = []
        self._dampings = [Damping(guidance, unknown=0.0) for _ in range(rule.order)]

    def record(self, prediction: Tensor, time: float) -> None:
        if self._values and self._rule.damped:
            self._learn(self._terms(time), prediction.float() - self._values[0].float())
        self._push(prediction, torch.ones_like(prediction[..., :1], dtype=torch.bool), time)

    def complete(self, fresh: Tensor, selection: Selection, time: float) -> Tensor:
        terms = self._terms(time)
        forecast = self._sum(terms)
        if self._rule.damped:
            forecast_error = fresh.float() - selection.gather(self._values[0]).float()
            self._learn([selection.gather(term) for term in terms], forecast_error)
        whole = selection.scatter(fresh, forecast.to(fresh.dtype))
        self._push(whole, selection.mask().unsqueeze(-1), time)
        return whole

    def forecast(self, time: float) -> Tensor:
        return self._sum(self._terms(time)).to(self._values[0].dtype, copy=True)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._values, *self._times))

    def _push(self, value: Tensor, chosen: Tensor, time: float) -> None:
        """Take in the chosen tokens' predictions; one at the time of its token's newest replaces that.

        A token computed less often than there are places repeats its oldest prediction, at the same time, in the rest.
        """
        now = torch.full_like(chosen, time, dtype=torch.float32)
        if not self._values:
            self._values, self._times = [value.clone()], [now]
            return
        if len(self._values) <= self._rule.order:
            self._values.append(self._values[-1])
            self._times.append(self._times[-1])
        later = chosen & (self._times[0] != now)
        for place in range(len(self._values) - 1, 0, -1):
            self._values[place] = torch.where(later, self._values[place - 1], self._values[place])
            self._times[place] = torch.where(later, self._times[place - 1], self._times[place])
        self._values[0] = torch.where(chosen, value, self._values[0])
        self._times[0] = torch.where(chosen, now, self._times[0])

    def _terms(self, time: float) -> list[Tensor]:
        """The undamped terms [B, N, C] of each order at a time, in float32."""
        values, times = [value.float() for value in self._values], self._times
        terms: list[Tensor] = []
        if len(values) > 1:
            slope = _divide(values[0] - values[1], times[0] - times[1])
            terms.append(slope * (time - times[0]))
        if len(values) > 2:
            older = _divide(values[1] - values[2], times[1] - times[2])
            curvature = _divide(slope - older, times[0] - times[2]).where(times[1] != times[2], 0.0)
            terms.append(curvature * (time - times[0]) * (time - times[1]))
        return terms

    def _sum(self, terms: list[Tensor]) -> Tensor:
        total = self._values[0].float()
        for place, term in enumerate(terms):
            total = total + self._factor(place) * term
        return total

    def _factor(self, place: int) -> Tensor | float:
        """Damping factor of one term [G * B, 1, 1], within [0, 1]; 0 before anything was learnt, 1 if not damped."""
        return self._dampings[place].factor if self._rule.damped else 1.0

    def _learn(self, terms: list[Tensor], forecast_error: Tensor) -> None:
        """Fit each damping to what was left over by the terms before it."""
        left = forecast_error
        for place, term in enumerate(terms):
            self._dampings[place].learn(left, term)
            left = left - self._factor(place) * term


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient of both, 0 where a token was computed only once."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / safe)
