"""The selection policies, one file each.

One line here makes a policy known to plans, suites, figures, benchmarks, the search for plans and the table in
docs/policies.md, in this order; what they should know of it, the class says in its `description`.
"""
# ruff: noqa: I001 (the order is that of tables)

from tokenprune.policies.base import SelectionPolicy as _Policy
from tokenprune.policies.cat import CATPolicy as CATPolicy
from tokenprune.policies.noise import NoisePolicy as NoisePolicy
from tokenprune.policies.noise_staleness import NoiseStalenessPolicy as NoiseStalenessPolicy
from tokenprune.policies.sequential import SequentialPolicy as SequentialPolicy
from tokenprune.policies.random import RandomPolicy as RandomPolicy
from tokenprune.policies.dense import DensePolicy as DensePolicy
from tokenprune.policies.at_edm import AttentionRankPolicy as AttentionRankPolicy
from tokenprune.policies.ras import RegionAdaptivePolicy as RegionAdaptivePolicy
from tokenprune.policies.toca import TocaPolicy as TocaPolicy
from tokenprune.policies.cluster_random import ClusterRandomPolicy as ClusterRandomPolicy
from tokenprune.policies.error_controlled import ErrorControlledPolicy as ErrorControlledPolicy
from tokenprune.policies.region import RegionPolicy as RegionPolicy
from tokenprune.policies.mixture import MixturePolicy as MixturePolicy

ALL: tuple[type[_Policy], ...] = tuple(
    found
    for found in tuple(globals().values())
    if isinstance(found, type) and issubclass(found, _Policy) and found is not _Policy
)
"""Their classes."""

__all__ = [policy.__name__ for policy in ALL]
