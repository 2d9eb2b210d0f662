"""Forecasts of keys and values in some attention modules only, whichever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tokenprune.ops.guidance import Guidance
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import token_plan
from tokenprune.reuse.key_value import KeyValueBuffer
from tokenprune.reuse.taylor import Taylor

PARTS = 8
"""Into how many equal parts `KeysIn` divides a model's attention modules."""


@dataclass(frozen=True)
class KeysIn(Taylor):
    """`Taylor` that forecasts keys and values in some parts of the model.

    Args:
        parts: which of the `PARTS`, the first is 0.
    """

    parts: tuple[int, ...] = ()
    keys: bool | float = True

    def start_keys(self, guidance: Guidance = "none", depth: float = 0.0) -> KeyValueBuffer:
        """Memory for forecast keys and values, or for held ones."""
        return super().start_keys(guidance, depth) if int(depth * PARTS) in self.parts else KeyValueBuffer()


def variants(budget: float) -> Iterator[tuple[str, Plan]]:
    """The plan without skipped steps, by where it forecasts keys and values."""
    rules: dict[str, Taylor] = {
        "nowhere": Taylor(keys=False),
        "in the first quarter": Taylor(keys=0.25),
        "in the first half": Taylor(keys=0.5),
        "in the first three quarters": Taylor(keys=0.75),
        "everywhere": Taylor(keys=True),
        "in the second half": KeysIn(parts=(4, 5, 6, 7)),
        "in every second, from the first": KeysIn(parts=(0, 2, 4, 6)),
        "in every second, from the second": KeysIn(parts=(1, 3, 5, 7)),
    }
    return ((name, replace(token_plan(budget), reuse=rule)) for name, rule in rules.items())
