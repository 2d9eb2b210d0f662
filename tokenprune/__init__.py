"""Token pruning for diffusion transformers, as a plug-in through module hooks."""

from tokenprune.api import apply, plan
from tokenprune.errors import (
    AlreadyPrunedError,
    AttentionError,
    CacheConflictError,
    CacheLimitError,
    ConcurrentUseError,
    ConfigurationError,
    HookConflictError,
    ModuleMapError,
    SelectionError,
    TokenPruneError,
    TraceError,
    UnknownModelError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from tokenprune.expectation import Expectation, expect
from tokenprune.handles import Handle, handle_of, remove
from tokenprune.held_text import HeldText
from tokenprune.modulemap import Arguments, AttentionSite, BlockSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune.ops.grid import TokenGrid, num_tokens
from tokenprune.ops.selection import Selection
from tokenprune.placement import EvenSchedule, FixedSchedule, PlacedSchedule
from tokenprune.plans.files import load_plan, save_plan
from tokenprune.plans.plan import Plan
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
from tokenprune.policies.base import Memory, Observation, ScorePolicy, SelectionPolicy
from tokenprune.reports.report import Macs, Report, StepReport
from tokenprune.reports.trace import Trace, TraceStep
from tokenprune.reuse.base import Hold, Reuse, ReuseState
from tokenprune.reuse.cluster_correction import ClusterCorrection
from tokenprune.reuse.corrector import Corrector
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import (
    BudgetSchedule,
    LevelSchedule,
    ListSchedule,
    RefreshSchedule,
    Schedule,
    Step,
    WarmupSchedule,
)

__version__ = "0.1.0"

__all__ = [
    "AlreadyPrunedError",
    "Arguments",
    "AttentionError",
    "AttentionRankPolicy",
    "AttentionSite",
    "BlockSite",
    "BudgetSchedule",
    "CATPolicy",
    "CacheConflictError",
    "CacheLimitError",
    "ClusterCorrection",
    "ClusterRandomPolicy",
    "ConcurrentUseError",
    "ConfigurationError",
    "Corrector",
    "DensePolicy",
    "ErrorControlledPolicy",
    "EvenSchedule",
    "ExitSite",
    "Expectation",
    "FixedSchedule",
    "Handle",
    "HeldText",
    "Hold",
    "HookConflictError",
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
    "PlacedSchedule",
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
    "TokenGrid",
    "TokenPruneError",
    "Trace",
    "TraceError",
    "TraceStep",
    "UnknownModelError",
    "UnsupportedCallError",
    "UnsupportedModelError",
    "WarmupSchedule",
    "apply",
    "expect",
    "handle_of",
    "latent_grid",
    "load_plan",
    "num_tokens",
    "plan",
    "remove",
    "save_plan",
]
