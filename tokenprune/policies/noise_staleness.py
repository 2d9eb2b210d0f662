"""Selection by relative noise, balanced by staleness; no clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.ops.ranking import places_in, staleness_order
from tokenprune.ops.selection import Selection
from tokenprune.policies._balance import check_balance, fill_up, update_frequency
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.policies.description import Between, Description, Variant


@dataclass(frozen=True)
class NoiseStalenessPolicy(SelectionPolicy):
    """A share of the tokens by relative noise, the others by how long they were not selected.

    CAT Pruning (arXiv 2502.00433), section 3.3 and Fig. 5. The first selection is by noise alone.

    Args:
        decay: a in f_i = a f_(i-1) + I_i, from 0 up to below 1.
        exploit_share: fraction of the selected tokens taken by noise, 0 to 1; the published code's is 0.25.
    """

    description: ClassVar[Description] = Description(
        "a share by noise, the rest by staleness",
        "CAT Pruning, Fig. 5",
        "one norm, some sorts",
        variants=(
            Variant(
                "noise and staleness",
                "arXiv 2502.00433, Fig. 5",
                suites={"ablations": (8, 4), "rivals": (4,), "paper": (8,)},
                searched={"exploit_share": Between(0.0, 1.0)},
            ),
        ),
    )

    decay: float = 0.5
    exploit_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_balance(self.decay, self.exploit_share)

    def select(self, seen: Observation, memory: Memory) -> Selection:
        """Tokens by ||RN_i||, then tokens with the lowest frequency."""
        by_noise = seen.relative_noise.norm(dim=-1).argsort(dim=1, descending=True, stable=True)
        frequency = update_frequency(seen, memory, self.decay)
        share = seen.count if seen.pruned_steps == 0 else int(self.exploit_share * seen.count)
        return fill_up(by_noise[:, :share], places_in(staleness_order(frequency, by_noise)), seen.count)
