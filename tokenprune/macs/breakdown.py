"""What a rehearsed generation computes, in tera operations: over all steps, and module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from tokenprune.macs.counting import Computed, Layers
from tokenprune.macs.rehearsal import Rehearsal
from tokenprune.reports.report import Macs

TERA = 1e12


@dataclass(frozen=True)
class GenerationMacs:
    """One number of steps; `_T` is tera (10^12) multiply-accumulate operations of all calls."""

    steps: int
    full_steps: int
    tokens_ratio: float
    linear_dense_T: float
    linear_pruned_T: float
    attention_dense_T: float
    attention_pruned_T: float
    total_dense_T: float
    total_pruned_T: float
    mac_ratio: float
    ideal_speedup: float


@dataclass(frozen=True)
class Layer:
    """One module, or list of modules, in a call of all tokens and in one of some."""

    module: str
    kind: str
    linear_full_T: float
    attention_full_T: float
    linear_pruned_T: float
    attention_pruned_T: float


def of_generation(run: Rehearsal) -> GenerationMacs:
    """Operations over all steps, dense and pruned."""
    dense, ours = run.dense, run.macs
    return GenerationMacs(
        steps=len(run.counts),
        full_steps=sum(count == run.tokens for count in run.counts),
        tokens_ratio=run.token_ratio,
        linear_dense_T=dense.linear / TERA,
        linear_pruned_T=ours.linear / TERA,
        attention_dense_T=dense.attention / TERA,
        attention_pruned_T=ours.attention / TERA,
        total_dense_T=dense.total / TERA,
        total_pruned_T=ours.total / TERA,
        mac_ratio=ours.total / dense.total,
        ideal_speedup=dense.total / ours.total,
    )


def commonest_call(run: Rehearsal) -> Computed:
    """What the most pruned steps compute; all tokens where no step is pruned."""
    calls = Counter(each for each in run.computed if 0 < each.tokens < run.tokens)
    return calls.most_common(1)[0][0] if calls else Computed(run.tokens)


def of_layers(model: nn.Module, run: Rehearsal, pruned: Computed, depth: int) -> Iterator[Layer]:
    """Every module down to a depth that computes anything, each behind the one it is in.

    Lists of modules, which are not called themselves, count what is in them.

    Args:
        model: the model that was rehearsed.
        run: its rehearsal.
        pruned: what the pruned call computes.
        depth: 1 for the model's own modules.
    """
    full, some = run.layers[Computed(run.tokens)], run.layers[pruned]
    for path, module in model.named_modules():
        if len(path.split(".")) > depth:
            continue
        here, there = (_within(layers, path, module) for layers in (full, some))
        if here.total:
            figures = (here.linear, here.attention, there.linear, there.attention)
            yield Layer(path, type(module).__name__, *(figure / TERA for figure in figures))


def _within(layers: Layers, path: str, module: nn.Module) -> Macs:
    if path in layers:
        return layers[path]
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return Macs(0, 0)
    parts = (_within(layers, f"{path}.{name}", part) for name, part in module.named_children())
    return sum(parts, Macs(0, 0))
