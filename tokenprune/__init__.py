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
    ClusterRandomPolicy,
    DensePolicy,
    ErrorControlledPolicy,
    MixturePolicy,
    NoisePolicy,
    NoiseStalenessPolicy,
    RandomPolicy,
    RegionAdaptivePolicy,
    RegionPolicy,
    SequentialPolicy,
)
from tokenprune.policy import Memory, Observation, ScorePolicy, SelectionPolicy
from tokenprune.report import Macs, Report, StepReport
from tokenprune.reuse import Hold, Reuse, ReuseState
from tokenprune.schedule import LevelSchedule, ListSchedule, RefreshSchedule, Schedule, Step, WarmupSchedule
from tokenprune.selection import Selection
from tokenprune.taylor import Taylor

__all__ = [
    "AlreadyPrunedError",
    "AttentionError",
    "AttentionSite",
    "CATPolicy",
    "ClusterRandomPolicy",
    "DensePolicy",
    "ErrorControlledPolicy",
    "Handle",
    "Hold",
    "LevelSchedule",
    "ListSchedule",
    "Macs",
    "Memory",
    "MixturePolicy",
    "ModuleMap",
    "ModuleMapError",
    "NoisePolicy",
    "NoiseStalenessPolicy",
    "Observation",
    "RandomPolicy",
    "RefreshSchedule",
    "RegionAdaptivePolicy",
    "RegionPolicy",
    "Report",
    "Reuse",
    "ReuseState",
    "Schedule",
    "ScorePolicy",
    "Selection",
    "SelectionError",
    "SelectionPolicy",
    "SequentialPolicy",
    "Step",
    "StepReport",
    "Taylor",
    "TokenPruneError",
    "UnknownModelError",
    "UnsupportedCallError",
    "WarmupSchedule",
    "apply",
    "latent_grid",
]
