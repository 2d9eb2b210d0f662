"""The selection policies, one file each."""

from tokenprune.policies.at_edm import AttentionRankPolicy
from tokenprune.policies.cat import CATPolicy
from tokenprune.policies.cluster_random import ClusterRandomPolicy
from tokenprune.policies.dense import DensePolicy
from tokenprune.policies.error_controlled import ErrorControlledPolicy
from tokenprune.policies.mixture import MixturePolicy
from tokenprune.policies.noise import NoisePolicy
from tokenprune.policies.noise_staleness import NoiseStalenessPolicy
from tokenprune.policies.random import RandomPolicy
from tokenprune.policies.ras import RegionAdaptivePolicy
from tokenprune.policies.region import RegionPolicy
from tokenprune.policies.sequential import SequentialPolicy
from tokenprune.policies.toca import TocaPolicy

__all__ = [
    "AttentionRankPolicy",
    "CATPolicy",
    "ClusterRandomPolicy",
    "DensePolicy",
    "ErrorControlledPolicy",
    "MixturePolicy",
    "NoisePolicy",
    "NoiseStalenessPolicy",
    "RandomPolicy",
    "RegionAdaptivePolicy",
    "RegionPolicy",
    "SequentialPolicy",
    "TocaPolicy",
]
