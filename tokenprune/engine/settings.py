"""How a model is pruned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenprune.ops.guidance import Guidance
from tokenprune.policies.base import SelectionPolicy
from tokenprune.reuse.base import Reuse
from tokenprune.schedule import Schedule


@dataclass(frozen=True)
class PruningSettings:
    """What `apply` was asked for; the same for all generations.

    Attributes:
        policy: chooses the tokens of each step.
        schedule: says how many.
        reuse: says what the other tokens' predictions become.
        guidance: None compares the halves of a batch at the start of each generation to find batched guidance.
        guidance_scale: None shows policies the conditional prediction; a number shows them the guided one.
        trace: whether to record what happens to every token at every step.
        cache_dtype: what keys and values are kept in; None keeps them in the model's type.
        cache_device: where keys and values lie while their modules do not run; None is where these run.
        trusting: whether attention calls are not looked into: what they make does not matter, as only operations are
            counted, of calls that were served before.
        keeps_keys: whether full calls keep keys and values; no call needs them where all are full or skipped.
    """

    policy: SelectionPolicy
    schedule: Schedule
    reuse: Reuse
    guidance: Guidance | None = None
    guidance_scale: float | None = None
    trace: bool = False
    cache_dtype: torch.dtype | None = None
    cache_device: torch.device | None = None
    trusting: bool = False
    keeps_keys: bool = True
