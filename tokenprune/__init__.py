"""Token pruning for diffusion transformers, as a plug-in through module hooks."""

from tokenprune.api import Handle, apply
from tokenprune.cluster_correction import ClusterCorrection
from tokenprune.errors import (
    AlreadyPrunedError,
    AttentionError,
    CacheConflictError,
    ConcurrentUseError,
    ConfigurationError,
    ModuleMapError,
    SelectionError,
    TokenPruneError,
    TraceError,
    UnknownModelError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from tokenprune.modulemap import AttentionSite, BlockSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune.plan_files import load_plan, save_plan
from tokenprune.plans import Plan
from tokenprune.policies import (
    AttentionRankPolicy,
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
    TocaPolicy,
)
from tokenprune.policy import Memory, Observation, ScorePolicy, SelectionPolicy
from tokenprune.presets import plan
from tokenprune.report import Macs, Report, StepReport
from tokenprune.reuse import Hold, Reuse, ReuseState
from tokenprune.schedule import (
    BudgetSchedule,
    LevelSchedule,
    ListSchedule,
    RefreshSchedule,
    Schedule,
    Step,
    WarmupSchedule,
)
from tokenprune.selection import Selection
from tokenprune.taylor import Taylor
from tokenprune.trace import Trace, TraceStep

__all__ = [
    "AlreadyPrunedError",
    "AttentionError",
    "AttentionRankPolicy",
    "AttentionSite",
    "BlockSite",
    "BudgetSchedule",
    "CATPolicy",
    "CacheConflictError",
    "ClusterCorrection",
    "ClusterRandomPolicy",
    "ConcurrentUseError",
    "ConfigurationError",
    "DensePolicy",
    "ErrorControlledPolicy",
    "ExitSite",
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
    "Plan",
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
    "TocaPolicy",
    "TokenArgument",
    "TokenPruneError",
    "Trace",
    "TraceError",
    "TraceStep",
    "UnknownModelError",
    "UnsupportedCallError",
    "UnsupportedModelError",
    "WarmupSchedule",
    "apply",
    "latent_grid",
    "load_plan",
    "plan",
    "save_plan",
]
