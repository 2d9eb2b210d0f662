"""How often each token was selected of late, and choosing by it; shared by the policies that balance."""

from __future__ import annotations

import torch
from torch import Tensor

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


def fill_up(chosen: Tensor, order: Tensor, count: int) -> Selection:
    """The chosen tokens [B, N], at most `count`, and of the others the first in an order [B, N] until `count`.

    Args:
        chosen: which tokens are selected already, bool.
        order: every row a permutation of the tokens.
        count: n.
    """
    taken = chosen.gather(1, order)
    room = count - taken.sum(1, keepdim=True)
    taken = taken | ((~taken).cumsum(1) <= room)
    return Selection.from_mask(torch.empty_like(taken).scatter_(1, order, taken), count)


def check_balance(decay: float, exploit_share: float) -> None:
    """Raise ValueError unless both settings are in their ranges."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
    if not 0 <= exploit_share <= 1:
        raise ValueError(f"exploit_share: expected a fraction in [0, 1], got {exploit_share}")
