"""Where the error of pruning comes from: `python -m tokenprune.bench.studies.error_anatomy`.

Two experiments that no user would run, for docs/analysis.md. The first computes every step in full beside the pruned
one, and lets only one of the two errors through: predictions that are not computed (all keys and values fresh), or
stale keys and values (all predictions computed). The second reads from traces how far held and forecast predictions are
off, by the number of steps that they reach ahead.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor, nn

import tokenprune
from tokenprune.bench.commands import check_known, run
from tokenprune.bench.configurations.configuration import Configuration
from tokenprune.bench.configurations.schedules import after_warmup
from tokenprune.bench.measuring.fidelity import psnr_of_each, psnr_summary
from tokenprune.bench.measuring.measure import Samples, Task, draw, draw_all
from tokenprune.bench.measuring.run import stamp
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED, quiet
from tokenprune.handles import Handle
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import token_plan
from tokenprune.policies import CATPolicy, ErrorControlledPolicy, RandomPolicy, SequentialPolicy
from tokenprune.reports.outputs import check_output
from tokenprune.reuse.base import Hold
from tokenprune.reuse.taylor import Taylor
from tokenprune.schedule import WarmupSchedule

Part = Literal["predictions", "keys"]


FEWEST = 100
"""Tokens that a gap must have come up for."""


PATCH = 2
"""Latents per token and axis, in both embedded models."""


class Beside(nn.Module):
    """A pruned model that lets one part of its error through; stands in for a pipeline's transformer.

    Args:
        pruned: the model with hooks.
        plain: the same without.
        handle: of the pruned one, tracing.
        part: "predictions" gives fresh predictions where a token was computed, else the pruned model's held or forecast
            ones; "keys" gives the pruned model's where a token was computed, else fresh ones.
    """

    def __init__(self, pruned: Any, plain: nn.Module, handle: Handle, part: Part) -> None:
        super().__init__()
        self.pruned, self.plain, self.handle, self.part = pruned, plain, handle, part

    @property
    def config(self) -> Any:
        """That of the model."""
        return self.pruned.config

    @property
    def dtype(self) -> torch.dtype:
        """That of the model."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.plain.parameters()).device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The mixed prediction [B, C, height, width], in a tuple."""
        full, pruned = self.plain(*args, **kwargs)[0], self.pruned(*args, **kwargs)[0]
        fresh = self._computed(full) == (self.part == "predictions")
        return (torch.where(fresh, full, pruned),)

    def _computed(self, latents: Tensor) -> Tensor:
        trace = self.handle.trace
        mask = trace.steps[-1].computed.unflatten(1, trace.grid)
        mask = mask.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).unsqueeze(1)
        return mask.repeat(len(latents) // len(mask), 1, 1, 1).to(latents.device)


def draw_part(pipe: Any, plan: Plan, task: Task, part: Part) -> Samples:
    """Draw the task with one part of the plan's error."""
    transformer = pipe.transformer
    plain = copy.deepcopy(transformer)
    try:
        with tokenprune.apply(transformer, plan, trace=True) as handle:
            pipe.transformer = Beside(transformer, plain, handle, part)
            return Samples(draw_all(pipe, task.steps, task))
    finally:
        pipe.transformer = transformer


def forecast_error_by_gap(pipe: Any, task: Task, plan: Plan) -> dict[int, dict[str, float]]:
    """Median guided forecast error over ||fresh|| (conditional) of computed tokens, by the steps that it reached."""
    found: dict[int, list[Tensor]] = defaultdict(list)
    with tokenprune.apply(pipe, plan, trace=True) as handle:
        draw_all(pipe, task.steps, task)
        for step in handle.trace.steps:
            if step.report.full or step.forecast_error is None:
                continue
            share = step.forecast_error / step.prediction.norm(dim=-1).clamp_min(1e-6)
            for gap in step.age[step.computed].unique().tolist():
                found[gap].append(share[step.computed & (step.age == gap)])
    whole = {gap: torch.cat(parts) for gap, parts in sorted(found.items())}
    enough = {gap: values for gap, values in whole.items() if len(values) >= FEWEST}
    return {gap: {"median": float(values.median()), "tokens": len(values)} for gap, values in enough.items()}


def plans(steps: int) -> dict[str, Plan]:
    """What is taken apart, all at half of the token computations."""
    found = {"tokenprune.plan, skips=False": token_plan(0.5)}
    for name, policy, warmup, reuse in (
        ("CAT, 8 full steps", CATPolicy(), 8, Hold()),
        ("consecutive rows, 8 full steps", SequentialPolicy(), 8, Hold()),
        ("error-controlled, 8 full steps", ErrorControlledPolicy(), 8, Hold()),
    ):
        found[name] = Plan(policy, after_warmup(0.5, steps, warmup), reuse)
    return found


def main(
    model: Annotated[str, typer.Option(help=f"{' or '.join(EMBEDDED)}.")] = "shapes-sd3",
    prompts: Annotated[int, typer.Option(min=2, help="Captions of the tuning split.")] = 16,
    out: Annotated[Path, typer.Option(help="JSON file.")] = Path("docs/results/anatomy.json"),
) -> None:
    """Run both experiments and write their figures."""
    check_known("model", [model], EMBEDDED)
    check_output("out", out, ".json")
    quiet()
    embedded = EMBEDDED[model]
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    captions = scenes.texts("tuning", prompts)
    task = Task(captions, embedded.steps, embedded.guidance_scale, prompts, embedded.arguments)
    reference = draw(pipe, Configuration("plain"), task).pictures
    parts = []
    for name, plan in plans(task.steps).items():
        drawn = {"both": draw(pipe, Configuration(name, plan), task)}
        drawn |= {part: draw_part(pipe, plan, task, part) for part in ("predictions", "keys")}  # type: ignore[arg-type]
        psnr = {part: psnr_summary(psnr_of_each(samples.pictures, reference)) for part, samples in drawn.items()}
        parts.append({"name": name, **{part: list(values) for part, values in psnr.items()}})
        print(parts[-1], flush=True)
    schedule = WarmupSchedule(0.3, 8)
    rules = {"hold": Hold(), "linear": Taylor(1), "linear, undamped": Taylor(1, damped=False)}
    asking = {name: Plan(_RandomWithSurprise(), schedule, rule) for name, rule in rules.items()}
    forecast_error = {name: forecast_error_by_gap(pipe, task, plan) for name, plan in asking.items()}
    print(forecast_error)
    settings = {
        "command": f"python -m tokenprune.bench.studies.error_anatomy --model {model} --prompts {prompts}",
        "model": model,
        "prompts": prompts,
        "split": "tuning",
        "steps": task.steps,
        "guidance_scale": task.guidance_scale,
        **stamp(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "parts": parts, "forecast_error": forecast_error}
    out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


class _RandomWithSurprise(RandomPolicy):
    """Random tokens, whose forecast errors are traced: every gap comes up, however large they are."""

    needs = frozenset({"forecast_error"})


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.error_anatomy")
