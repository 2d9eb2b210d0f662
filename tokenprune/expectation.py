"""What a generation will compute and keep, told before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tokenprune.errors import ConfigurationError, one_line
from tokenprune.macs.example_calls import ResolvedCall, Wanted, example_call
from tokenprune.macs.rehearsal import Rehearsal, rehearse
from tokenprune.plans.plan import Plan
from tokenprune.policies.base import SelectionPolicy
from tokenprune.registry import Adapter, find_adapter
from tokenprune.reports.html import facts
from tokenprune.reports.report import Macs
from tokenprune.schedule import Schedule, steps_needed
from tokenprune.targets import target_of
from tokenprune.units import memory_in_words

STEPS = 28
"""Steps of a generation where nobody says how many."""


@dataclass(frozen=True)
class Expectation:
    """What a generation will compute and keep; printed, a few lines.

    Attributes:
        model: class of the transformer.
        size: of the pictures, in words.
        tokens: N, image tokens of a picture.
        text: T, text tokens beside them; 0 where the model takes none.
        counts: image tokens that each step computes; 0 where the step is skipped.
        step_macs: multiply-accumulates of a step, by the number of tokens that it computes.
        held_macs: the same of steps that hold the text (`HeldText`).
        macs: of all steps.
        dense_macs: of the plain model's.
        cache_bytes: what the caches will hold at most, in bytes; what a policy remembers is not in it.
        notes: what may surprise.
    """

    model: str
    size: str
    tokens: int
    text: int
    counts: tuple[int, ...]
    step_macs: dict[int, Macs]
    macs: Macs
    dense_macs: Macs
    cache_bytes: int
    notes: tuple[str, ...] = ()
    held_macs: dict[int, Macs] = field(default_factory=dict)

    @property
    def mac_ratio(self) -> float:
        """Share of the plain model's operations, 0 to 1."""
        return self.macs.total / self.dense_macs.total

    @property
    def _steps(self) -> str:
        full, skipped = self.counts.count(self.tokens), self.counts.count(0)
        pruned = len(self.counts) - full - skipped
        kinds = {"full": full, "pruned": pruned, "skipped": skipped}
        return f"{len(self.counts)} steps: {', '.join(f'{count} {kind}' for kind, count in kinds.items() if count)}"

    @property
    def _rows(self) -> list[tuple[str, str]]:
        names = {self.tokens: "full", 0: "skipped"}
        costs = [
            f"{names.get(count, f'of {count} tokens')} {_in_words(cost.total)}"
            for count, cost in self.step_macs.items()
        ]
        costs += [
            f"of {count} tokens with the text held {_in_words(cost.total)}" for count, cost in self.held_macs.items()
        ]
        whole = f"{_in_words(self.macs.total)} of {_in_words(self.dense_macs.total)} MACs, {self.mac_ratio:.1%}"
        return [
            ("a step", f"{', '.join(costs)} MACs"),
            ("all steps", f"{whole}: {1 / self.mac_ratio:.2f}x allowed"),
            ("caches", memory_in_words(self.cache_bytes)),
            *(("note", note) for note in self.notes),
        ]

    @property
    def _title(self) -> str:
        text = f" and {self.text} of text" if self.text else ""
        return f"{self.model}, {self.size}, {self.tokens} tokens{text}, {self._steps}"

    def __repr__(self) -> str:
        return (
            f"Expectation({self._steps}; {self.mac_ratio:.1%} of the MACs; caches {memory_in_words(self.cache_bytes)})"
        )

    def __str__(self) -> str:
        return "\n".join([self._title, *(f"  {name:<9}  {value}" for name, value in self._rows)])

    def _repr_html_(self) -> str:
        return facts(self._title, self._rows)


def expect(
    target: Any,
    plan: Plan | SelectionPolicy,
    steps: int = STEPS,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    text: int | None = None,
    batch: int | None = None,
    guidance: str | None = None,
    adapter: Adapter | None = None,
) -> Expectation:
    """What a generation would compute and keep, without running one: operations of each kind of step, and the caches.

    Counted on torch's meta device, with a copy of the model that has no weights; it takes some seconds for large ones.

        print(tokenprune.expect(pipe, tokenprune.plan(pipe, 0.5), steps=28, height=1024, width=1024))

    Args:
        target: the transformer, or a pipeline; of several transformers the first.
        plan: how it is to be pruned; a policy brings its own schedule.
        steps: of the generation.
        height: of the picture in pixels; None is the pipeline's own, or the model's.
        width: likewise.
        frames: of a video; likewise.
        text: text tokens; None is what the pipeline pads or cuts to.
        batch: pictures in a call; None is one.
        guidance: "batched" for both halves in one call, "separate" for a call for each, "none"; None as the pipeline.
        adapter: writes the module map; None takes the installed one.

    Raises:
        UnknownModelError: no adapter serves the model.
        UnsupportedModelError: it is known that it cannot be pruned.
        ConfigurationError: nothing says how the model is called, or it has to look at values; a size that it cannot
            have, or fewer steps than 1.
    """
    wanted = Wanted(height, width, frames, text, batch, guidance)
    for name, value in (("steps", steps), *((name, getattr(wanted, name)) for name in wanted.given())):
        least = 0 if name == "text" else 1
        if value < least:
            raise ConfigurationError(f"{name}: expected at least {least}, got {value}")
    model = next(iter(target_of(target).models.values()))
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    found = adapter or find_adapter(model)
    scale, latents = (getattr(target, name, None) for name in ("vae_scale_factor", "default_sample_size"))
    if isinstance(scale, int) and isinstance(latents, int):  # what the pipeline draws where nobody says a size
        wanted = wanted.over(Wanted(latents * scale, latents * scale))
    called = _call(model, found, wanted, scale)
    rehearsal = rehearse(model, found(model), called.call, plan, steps)
    schedule = plan.schedule or plan.policy.schedule()
    said = too_short(schedule, steps), schedule.caution(steps)
    return Expectation(
        model=type(model).__name__,
        size=called.size,
        tokens=rehearsal.tokens,
        text=called.text or 0,
        counts=rehearsal.counts,
        step_macs=_step_macs(rehearsal, with_text=True),
        held_macs=_step_macs(rehearsal, with_text=False),
        macs=rehearsal.macs,
        dense_macs=rehearsal.dense,
        cache_bytes=rehearsal.cache_bytes,
        notes=tuple(note for note in said if note is not None),
    )


def told_in_advance(target: Any, plan: Plan, adapter: Adapter | None = None) -> str:
    """In one or more lines, what a generation at the model's own size would compute and keep, or why nobody can tell.

    For logs, reports and printed plans, which are no reason to stop: whatever goes wrong is said in place of it.
    """
    try:
        return str(expect(target, plan, adapter=adapter))
    except Exception as error:  # of the model's own code, too
        return f"what a generation will compute and keep cannot be told in advance: {one_line(error)}"


def on_one_line(told: str) -> str:
    """What is told in several lines, for a log or a note."""
    return "; ".join(" ".join(line.split()) for line in told.splitlines())


def _call(model: nn.Module, adapter: Adapter, wanted: Wanted, scale: int | None) -> ResolvedCall:
    """How the model is called.

    Raises:
        ConfigurationError: nothing says so, or the model cannot be called so.
    """
    try:
        called = example_call(model, adapter, wanted, scale)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if called is None:
        raise ConfigurationError(
            f"{type(model).__name__}: no example says how its pipeline calls it; tokenprune inspect "
            f"module.path:factory takes a function that gives the model and arguments of a call"
        )
    return called


def _step_macs(rehearsal: Rehearsal, with_text: bool) -> dict[int, Macs]:
    """Operations of a step of each kind that does or does not compute the text, all calls of it, the dearest first."""
    kinds = sorted({each for each in rehearsal.computed if each.with_text is with_text}, reverse=True)
    return {kind.tokens: rehearsal.layers[kind][""] * rehearsal.calls if kind.tokens else Macs(0, 0) for kind in kinds}


def too_short(schedule: Schedule, steps: int) -> str | None:
    """What there is to say if a generation of so many steps computes all tokens at each."""
    if schedule.prunes(steps) is not False:
        return None
    needed = steps_needed(schedule, steps)
    asks = f", which needs {needed} steps to prune any" if needed is not None else ""
    return f"nothing is pruned under {schedule!r}{asks}"


def _in_words(macs: float) -> str:
    for unit, factor in (("T", 1e12), ("G", 1e9)):
        if macs >= factor:
            return f"{macs / factor:.4g} {unit}"
    return f"{macs / 1e6:.4g} M" if macs else "0"
