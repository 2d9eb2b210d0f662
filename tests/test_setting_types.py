"""Settings of other types are named: every setting of every policy, schedule, rule for reuse, and plan."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

import tokenprune
from tokenprune import (
    BudgetSchedule,
    CATPolicy,
    Hold,
    LevelSchedule,
    ListSchedule,
    MixturePolicy,
    NoisePolicy,
    Plan,
    RandomPolicy,
    RegionAdaptivePolicy,
    RegionPolicy,
    ScorePolicy,
    Taylor,
    WarmupSchedule,
)
from tokenprune.plans.data import OWN
from tokenprune.setting_types import SettingTypeError, check, described

if TYPE_CHECKING:
    from somewhere import Elsewhere

CLASSES = [*(kind for group in OWN.values() for kind in group.values()), Plan]
SETTINGS = [(kind, field.name) for kind in CLASSES for field in fields(kind) if field.init]


class Wrong:
    def __repr__(self) -> str:
        return "something wrong"


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=lambda value: getattr(value, "__name__", value))
def test_every_setting(kind: type, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: expected .+, got something wrong$"):
        kind(**{name: Wrong()})


def test_there_are_many_settings() -> None:
    assert len(CLASSES) > 20
    assert len(SETTINGS) > 60


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CATPolicy(alpha="0.3"), "alpha: expected a number, got '0.3'"),
        (lambda: CATPolicy("0.3"), "alpha: expected a number, got '0.3'"),
        (lambda: CATPolicy.published(alpha="0.3"), "alpha: expected a number, got '0.3'"),
        (lambda: CATPolicy(quota_weights=3.0), "quota_weights: expected a tuple with a number in each place, got 3.0"),
        (lambda: CATPolicy(quota_weights=(3.0, "2")), "quota_weights[1]: expected a number, got '2'"),
        (lambda: CATPolicy(feature_scale="x"), "feature_scale: expected a number or None, got 'x'"),
        (lambda: CATPolicy(balance_top=1), "balance_top: expected True or False, got 1"),
        (lambda: NoisePolicy(True), "alpha: expected a number, got True"),
        (lambda: NoisePolicy(0.3, 8.0), "warmup_steps: expected a whole number, got 8.0"),
        (lambda: RandomPolicy(seed=1.5), "seed: expected a whole number, got 1.5"),
        (lambda: NoisePolicy(torch.tensor(0.3)), "alpha: expected a number, got tensor(0.3000)"),
        (lambda: RegionAdaptivePolicy(metric=2), "metric: expected one of std, norm, got 2"),
        (lambda: RegionPolicy("cat"), "inner: expected a SelectionPolicy, got 'cat'"),
        (lambda: RegionPolicy(NoisePolicy(), [[True]]), "mask: expected a Tensor or None, got [[True]]"),
        (
            lambda: MixturePolicy(parts=NoisePolicy()),
            "parts: expected a tuple with a tuple of a SelectionPolicy",
        ),
        (lambda: MixturePolicy(parts=((NoisePolicy(), "1"),)), "parts[0][1]: expected a number, got '1'"),
        (
            lambda: MixturePolicy(parts=(NoisePolicy(), 1.0)),
            "parts[0]: expected a tuple of a SelectionPolicy, a n",
        ),
        (lambda: WarmupSchedule(0.3, "8"), "warmup_steps: expected a whole number, got '8'"),
        (lambda: ListSchedule(1.0), "fractions: expected a tuple with a number in each place, got 1.0"),
        (lambda: LevelSchedule(((1, 1), (0, None))), "points[1][1]: expected a number, got None"),
        (lambda: BudgetSchedule([0.5]), "budget: expected a number, got [0.5]"),
        (lambda: BudgetSchedule(0.5, every="3"), "every: expected a whole number or None, got '3'"),
        (lambda: Taylor(keys="yes"), "keys: expected True or False or a number, got 'yes'"),
        (lambda: Plan(CATPolicy), "policy: expected a SelectionPolicy, got <class"),
        (lambda: Plan(NoisePolicy(), reuse=None), "reuse: expected a Reuse, got None"),
    ],
)
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(SettingTypeError) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"guidance": "both"}, "apply: guidance: expected one of .* or None, got 'both'"),
        ({"guidance_scale": "4"}, "apply: guidance_scale: expected a number or a Mapping or None, got '4'"),
        (
            {"guidance_scale": {"transformer": "4"}},
            r"apply: guidance_scale\['transformer'\]: expected a number or N",
        ),
        ({"discover": "yes"}, "apply: discover: expected True or False, got 'yes'"),
        ({"adapter": "sd3"}, "apply: adapter: expected a Callable or None, got 'sd3'"),
        ({"transformers": 2}, "apply: transformers: expected text or a Sequence or None, got 2"),
        ({"trace": 1}, "apply: trace: expected True or False, got 1"),
    ],
)
def test_arguments_of_apply(sd3: torch.nn.Module, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tokenprune.apply(sd3, NoisePolicy(), **wanted)
    assert tokenprune.handle_of(sd3) is None
    with pytest.raises(TypeError, match=r"plan: budget: expected a number or text, got \[\]"):
        tokenprune.plan(sd3, [])


def test_what_fits() -> None:
    assert CATPolicy(alpha=1, quota_weights=[3, 2]).quota_weights == [3, 2]
    assert NoisePolicy(np.float32(0.5), np.int64(2)).schedule().fraction(tokenprune.Step(2, 0.0, 1.0, None)) == 0.5
    assert LevelSchedule([(1, 1), [0, 0.5]]).warmup_steps == 1


@dataclass(frozen=True)
class Own(ScorePolicy):
    """A policy of another package, whose settings are annotated with what is there for type checkers alone."""

    weight: float = 1.0
    table: dict[str, int] | None = None
    far: Elsewhere | None = None
    way: Literal["up", "down"] = "up"

    def score(self, seen: Any, memory: Any) -> Any:
        return None


def test_policies_of_others_are_checked_as_far_as_their_types_are_known() -> None:
    made = Own(0.3, 8, 2, {"a": "no whole number"}, object())  # type: ignore[arg-type,dict-item]
    assert made.weight == 2
    for wrong in ({"weight": "2"}, {"way": "left"}, {"alpha": None}):
        with pytest.raises(TypeError, match=f"^{next(iter(wrong))}: expected"):
            Own(**wrong)  # type: ignore[arg-type]


def test_wrong_arguments_are_pythons_own_errors() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'alfa'"):
        NoisePolicy(alfa="0.3")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional arguments"):
        NoisePolicy(0.3, 8, 9)  # type: ignore[call-arg]


def test_copies() -> None:
    plan = Plan(CATPolicy(0.4), BudgetSchedule(0.5), Taylor())
    assert copy.deepcopy(plan) == pickle.loads(pickle.dumps(plan)) == copy.copy(plan) == plan
    assert Plan(NoisePolicy()).reuse == Hold()


def test_described() -> None:
    assert described(tuple[int, ...] | None) == "a tuple with a whole number in each place or None"
    check("anything", object(), Any)
    check("unknown", object(), list[Elsewhere] if TYPE_CHECKING else list[int])
