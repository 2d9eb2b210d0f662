"""How often each token was selected of late, and choosing by it; shared by the policies that balance."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.ranking import ranks
from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Memory, Observation


def update_frequency(seen: Observation, memory: Memory, decay: float) -> Tensor:
    """Selection frequency f_i [B, N], an exponentially weighted count.

    f_i = decay * f_(i-1) + I_i, where I_i is 1 for the tokens of the latest selection (CAT Pruning, section 3.3);
    f = 0 before the first selection and after a full step, which refreshes every token alike.
    """
    if seen.previous is None or seen.pruned_steps == 0:
        memory["frequency"] = seen.prediction.new_zeros(seen.prediction.shape[:2], dtype=torch.float32)
    else:
        memory["frequency"] = decay * memory["frequency"] + seen.previous.mask()
    return memory["frequency"]


def choose(preferred: Tensor, share: int, rest: Tensor, count: int) -> Selection:
    """`share` tokens by the scores `preferred` [B, N], then others by the scores `rest` until there are `count`."""
    chosen = ranks(preferred) < share
    return Selection.top((-ranks(rest)).masked_fill(chosen, 1), count)


def check_balance(decay: float, exploit_share: float) -> None:
    """Raise ValueError unless both settings are in their ranges."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
    if not 0 <= exploit_share <= 1:
        raise ValueError(f"exploit_share: expected a fraction in [0, 1], got {exploit_share}")
