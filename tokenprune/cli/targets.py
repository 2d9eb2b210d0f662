"""The model that a command is asked about, how its pipeline calls it, and the plan to prune it with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tokenprune.api import plan as best_plan
from tokenprune.bench.commands import check_known
from tokenprune.bench.subjects.transformers import Loaded
from tokenprune.cli import options
from tokenprune.discovery import discover
from tokenprune.errors import ConfigurationError, UnknownModelError
from tokenprune.macs.example_calls import ResolvedCall, Wanted, example_call, pattern_of
from tokenprune.modulemap import ModuleMap
from tokenprune.plans.files import load_plan
from tokenprune.plans.plan import Plan
from tokenprune.policies import CATPolicy
from tokenprune.registry import find_adapter

GUIDANCE = {
    "batched": "both halves in one call",
    "separate": "a call for each branch, with caches of its own",
    "none": "one call without halves",
}
"""How a pipeline guides, in words."""


BYPASSING = ("Sliced", "XFormers")
"""What attention processors are called that have kernels of their own."""


@dataclass(frozen=True)
class Mapped:
    """A model's map, where it comes from, and what was noted on the way."""

    map: ModuleMap
    origin: str
    notes: list[str]


def find_map(loaded: Loaded) -> Mapped:
    """The map that an adapter writes, or one that is discovered with the factory's arguments.

    Raises:
        TokenPruneError: there is none; of models that cannot be pruned, with the reason.
    """
    try:
        adapter = find_adapter(loaded.model)
    except UnknownModelError as error:
        if loaded.inputs is None:
            raise ConfigurationError(
                f"{type(loaded.model).__name__}: no adapter describes this model; to have it discovered, name a "
                f"factory that gives (model, arguments of a call by name)"
            ) from error
        found = discover(loaded.model, (), dict(loaded.inputs))
        return Mapped(found.map, "discovered", list(found.notes))
    found_map = adapter(loaded.model)
    found_map.check(loaded.model)
    return Mapped(found_map, "from its adapter", [])


def call_of(loaded: Loaded, wanted: Wanted) -> ResolvedCall | None:
    """How the model is called; None where neither a factory nor the package's examples say.

    Raises:
        ConfigurationError: a size or guidance that the model cannot have.
    """
    check_known("guidance", [wanted.guidance] if wanted.guidance else [], GUIDANCE)
    if loaded.inputs is not None:
        if wanted.given():
            raise ConfigurationError(f"{', '.join(wanted.given())}: the factory's arguments say that already")
        guidance = wanted.guidance or "none"
        return ResolvedCall(pattern_of(loaded.inputs, guidance), "as the factory gives it", None, guidance)
    with options.refusing_values():
        return example_call(loaded.model, find_adapter(loaded.model), wanted.over(loaded.usual), loaded.scale)


def plan_of(
    model: nn.Module, file: Path | None, budget: str | None, alpha: float | None, warmup_steps: int | None
) -> Plan:
    """The plan that the user means: of a file, for a budget or preset, or CAT Pruning.

    Raises:
        ConfigurationError: several of these, or a file or number that means nothing.
    """
    of_cat = {"alpha": alpha, "warmup_steps": warmup_steps}
    given = {name: value for name, value in {"plan": file, "budget": budget, **of_cat}.items() if value is not None}
    if len(given) > 1 and not set(given) <= set(of_cat):
        raise ConfigurationError(f"{', '.join(given)}: expected only one of plan, budget, or alpha with warmup_steps")
    with options.refusing_values():
        if file is not None:
            return load_plan(file)
        if budget is not None:
            return best_plan(model, number_or_name(budget))
        return Plan(CATPolicy(**given))  # type: ignore[arg-type]


def notes_of(model: nn.Module, found: ModuleMap) -> list[str]:
    """What a user of pruning should know of a model beforehand."""
    notes = []
    processors = [getattr(model.get_submodule(site.path), "processor", None) for site in found.attentions]
    backends = [os.environ.get("DIFFUSERS_ATTN_BACKEND"), *(getattr(p, "_attention_backend", None) for p in processors)]
    bypass = {str(getattr(name, "value", name)) for name in backends if name is not None}
    bypass = {name for name in bypass if "native" not in name}
    bypass |= {name for p in processors if (name := type(p).__name__).startswith(BYPASSING) or name == "AttnProcessor"}
    if bypass:
        notes.append(
            f"attention through {', '.join(sorted(bypass))} does not reach torch's scaled_dot_product_attention: "
            f"pruning will refuse it at the first step; call model.set_attention_backend('native')"
        )
    config: Any = getattr(model, "config", None) or {}
    if "quantization_config" in config:
        notes.append("the checkpoint is quantised: operations and caches are reckoned as if it were not")
    if model._compiled_call_impl is not None or hasattr(model, "_orig_mod"):
        notes.append("the whole model is compiled; compile its blocks instead, block.compile(fullgraph=True)")
    return notes


def number_or_name(budget: str) -> float | str:
    """A budget as it was typed: a share, or the name of a preset."""
    try:
        return float(budget)
    except ValueError:
        return budget
