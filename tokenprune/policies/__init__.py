"""The selection policies, one file each."""

from tokenprune.policies.cat import CATPolicy
from tokenprune.policies.dense import DensePolicy
from tokenprune.policies.noise import NoisePolicy
from tokenprune.policies.noise_staleness import NoiseStalenessPolicy
from tokenprune.policies.random import RandomPolicy
from tokenprune.policies.sequential import SequentialPolicy

__all__ = [
    "CATPolicy",
    "DensePolicy",
    "NoisePolicy",
    "NoiseStalenessPolicy",
    "RandomPolicy",
    "SequentialPolicy",
]
