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
        faded = decay * memory["frequency"]
        memory["frequency"] = faded.scatter_(1, seen.previous.index, 1.0, reduce="add")
    return memory["frequency"]


def fill_up(chosen: Tensor, places: Tensor, count: int) -> Selection:
    """The chosen tokens [B, m], at most `count`, and of the others those that come first, until there are `count`.

    Args:
        chosen: tokens, each once.
        places: of all tokens in an order [B, N], at least 0; overwritten.
        count: n.
    """
    first = places.scatter_(1, chosen, -1).topk(count, largest=False, sorted=False).indices
    return Selection(first.sort(dim=1).values, places.shape[1])


def check_balance(decay: float, exploit_share: float) -> None:
    """Raise ValueError unless both settings are in their ranges."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
    if not 0 <= exploit_share <= 1:
        raise ValueError(f"exploit_share: expected a fraction in [0, 1], got {exploit_share}")
