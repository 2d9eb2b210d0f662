"""Token pruning for diffusion transformers, as a plug-in through module hooks."""

from tokenprune.api import Handle, apply
from tokenprune.errors import (
    AlreadyPrunedError,
    AttentionError,
    ModuleMapError,
    SelectionError,
    TokenPruneError,
    UnknownModelError,
    UnsupportedCallError,
)
from tokenprune.modulemap import AttentionSite, ModuleMap, latent_grid
from tokenprune.policies import (
    CATPolicy,
    DensePolicy,
    NoisePolicy,
    NoiseStalenessPolicy,
    RandomPolicy,
    SequentialPolicy,
)
from tokenprune.policy import Memory, Observation, ScorePolicy, SelectionPolicy
from tokenprune.report import Macs, Report, StepReport
from tokenprune.reuse import Hold, Reuse, ReuseState
from tokenprune.schedule import Schedule, WarmupSchedule
from tokenprune.selection import Selection

__all__ = [
    "AlreadyPrunedError",
    "AttentionError",
    "AttentionSite",
    "CATPolicy",
    "DensePolicy",
    "Handle",
    "Hold",
    "Macs",
    "Memory",
    "ModuleMap",
    "ModuleMapError",
    "NoisePolicy",
    "NoiseStalenessPolicy",
    "Observation",
    "RandomPolicy",
    "Report",
    "Reuse",
    "ReuseState",
    "Schedule",
    "ScorePolicy",
    "Selection",
    "SelectionError",
    "SelectionPolicy",
    "SequentialPolicy",
    "StepReport",
    "TokenPruneError",
    "UnknownModelError",
    "UnsupportedCallError",
    "WarmupSchedule",
    "apply",
    "latent_grid",
]
