"""Strategies of choosing the tokens, side by side (the paper's Fig. 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from matplotlib.colors import PowerNorm

from tokenprune.bench.configurations.suites import described
from tokenprune.bench.figures.canvas import Plot, colour_bar, decibels, difference, new_figure, rounded, show
from tokenprune.bench.figures.runs import Runs, Settings
from tokenprune.errors import ConfigurationError, one_line
from tokenprune.policies.base import SelectionPolicy

STRATEGIES: dict[str, Callable[..., SelectionPolicy]] = {
    variant.name: partial(variant.make, policy) for policy, variant in described()
}
"""By name, what makes each of alpha and warm-up steps: all that the policies say of themselves."""


def strategies(runs: Runs) -> dict[str, SelectionPolicy]:
    """All of them by name, with the alpha and warm-up steps of the settings, and the user's own after them."""
    settings = runs.settings
    made = {name: make(alpha=settings.alpha, warmup_steps=settings.warmup_steps) for name, make in STRATEGIES.items()}
    return {**made, **runs.own}


def own_strategies(policies: Iterable[type[SelectionPolicy]], settings: Settings) -> dict[str, SelectionPolicy]:
    """Policies of a user's own as strategies: their variants if they describe themselves, else under their own name.

    Raises:
        ConfigurationError: a name is taken, or a policy cannot be made of alpha and warm-up steps alone.
    """
    found: dict[str, SelectionPolicy] = {}
    for policy in policies:
        variants = () if policy.description is None else policy.description.variants
        named: dict[str, Callable[..., SelectionPolicy]] = {
            variant.name: partial(variant.make, policy) for variant in variants
        }
        for name, make in (named or {policy.__name__: policy}).items():
            if name in STRATEGIES or name in found:
                raise ConfigurationError(f"policy: {policy.__name__}: expected a name that is not taken, got {name!r}")
            try:
                found[name] = make(alpha=settings.alpha, warmup_steps=settings.warmup_steps)
                hash(found[name])  # drawn once for all figures
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"policy: {policy.__name__}: {one_line(error)}") from error
    return found


PER_ROW = 7


def draw(runs: Runs) -> Plot:
    """Pictures above, their differences to the plain model's below."""
    settings, dense = runs.settings, runs.dense
    pictures = {"plain": dense}
    for name, policy in strategies(runs).items():
        pictures[name] = runs.draw(policy)
    fewer, steps = runs.fewer_steps(pictures["CAT"])
    pictures[f"plain, {steps} steps"] = fewer
    bands = -(-len(pictures) // PER_ROW)
    figure = new_figure(
        2.1 * PER_ROW, 4.35 * bands, f"{settings.prompt}; {settings.steps} steps, alpha {settings.alpha:g}", dpi=70
    )
    axes = figure.subplots(2 * bands, PER_ROW, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    differences = {name: difference(drawn.picture, dense.picture) for name, drawn in pictures.items()}
    largest = max(1.0, *(float(found.max()) for found in differences.values()))
    numbers: dict[str, Any] = {}
    shown = None
    for place, (name, drawn) in enumerate(pictures.items()):
        band, column = divmod(place, PER_ROW)
        above, below = axes[2 * band, column], axes[2 * band + 1, column]
        psnr = runs.psnr(drawn)
        show(above, drawn.picture, name if drawn is dense else f"{name}\n{decibels(psnr)}")
        if drawn is not dense:
            shown = show(below, differences[name], cmap="magma", norm=PowerNorm(0.5, 0, largest))
            share = float(drawn.trace.computed.sum() / dense.trace.computed.sum())
            numbers[name] = {"psnr": rounded(psnr, 1), "tokens_ratio": rounded(share)}
    colour_bar(figure, shown, axes, "absolute difference to the plain model, of 255")
    best = sorted(numbers, key=lambda name: -(numbers[name]["psnr"] or float("inf")))
    summary = "PSNR: " + ", ".join(f"{name} {decibels(numbers[name]['psnr'])}" for name in best)
    return Plot(figure, numbers, summary)
