"""The recommended plan under other settings: `python -m tokenprune.bench.studies.other_settings`.

The embedded models with other guidance, noise schedules, samplers and numbers of steps, at a half, 0.36, a quarter and
0.18 of the steps: the plan, the plan calibrated on captions for tuning, the best of several step caches with a linear
forecast, and the plain model with as many steps. The constants of schedule and corrector were chosen by looking at
`SETTINGS`, on the first captions for tuning; `UNTOUCHED` played no part in that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tokenprune.bench.commands import run
from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.configurations.step_caches import WARMUPS, step_caches
from tokenprune.bench.measuring.fidelity import Pictures, ci95_of, comparable, mean_of, psnr_of_each
from tokenprune.bench.measuring.measure import Task, generate
from tokenprune.bench.measuring.run import stamp
from tokenprune.bench.tuning.calibration import fit
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED, Embedded, quiet
from tokenprune.plans.plan import Plan
from tokenprune.plans.presets import best_plan
from tokenprune.reports.outputs import check_output

STEPS = 28
SHARES = (14 / 28, 10 / 28, 7 / 28, 5 / 28)
"""Of the steps that are full."""

KINDS = ("plan", "calibrated", "step cache", "fewer steps")


@dataclass(frozen=True)
class Setting:
    """A model with another guidance scale, sampler and number of steps."""

    model: str
    guidance_scale: float
    sampler: Callable[[Any], Any] | None = None
    steps: int = STEPS


def _flow(shift: float) -> Callable[[Any], Any]:
    return lambda former: FlowMatchEulerDiscreteScheduler.from_config({**former.config, "shift": shift})


def _heun(former: Any) -> Any:
    return FlowMatchHeunDiscreteScheduler(shift=3.0)


def _ddim(former: Any) -> Any:
    return DDIMScheduler.from_config({**former.config, "clip_sample": False, "steps_offset": 1})


def _euler(former: Any) -> Any:
    return EulerDiscreteScheduler.from_config(former.config)


def _unipc(former: Any) -> Any:
    return UniPCMultistepScheduler.from_config(former.config)


SETTINGS: dict[str, Setting] = {
    "shapes-sd3, guidance 7, shift 1.5, Euler": Setting("shapes-sd3", 7.0),
    "shapes-sd3, guidance 4, shift 3, Euler": Setting("shapes-sd3", 4.0, _flow(3.0)),
    "shapes-sd3, guidance 12, shift 3, Euler": Setting("shapes-sd3", 12.0, _flow(3.0)),
    "shapes-pixart, guidance 3, DDIM": Setting("shapes-pixart", 3.0, _ddim),
    "shapes-pixart, guidance 3, DPM++ 2M": Setting("shapes-pixart", 3.0),
    "shapes-pixart, guidance 4.5, DPM++ 2M, 20 steps": Setting("shapes-pixart", 4.5, steps=20),
    "shapes-flux, guidance 4 learnt, shift 1.5, Euler": Setting("shapes-flux", 4.0),
    "shapes-flux, guidance 2 learnt, shift 3, Euler": Setting("shapes-flux", 2.0, _flow(3.0)),
}


UNTOUCHED: dict[str, Setting] = {
    "shapes-sd3, guidance 8.5, shift 2, Euler, 40 steps": Setting("shapes-sd3", 8.5, _flow(2.0), 40),
    "shapes-sd3, guidance 5.5, shift 4, Euler, 24 steps": Setting("shapes-sd3", 5.5, _flow(4.0), 24),
    "shapes-sd3, guidance 5, shift 3, Heun, 16 steps": Setting("shapes-sd3", 5.0, _heun, 16),
    "shapes-pixart, guidance 4, UniPC, 30 steps": Setting("shapes-pixart", 4.0, _unipc, 30),
    "shapes-pixart, guidance 7, DDIM, 24 steps": Setting("shapes-pixart", 7.0, _ddim, 24),
    "shapes-pixart, guidance 2, Euler, 32 steps": Setting("shapes-pixart", 2.0, _euler, 32),
    "shapes-flux, guidance 3.5 learnt, shift 2, Euler, 36 steps": Setting("shapes-flux", 3.5, _flow(2.0), 36),
    "shapes-flux, guidance 2.5 learnt, shift 1, Euler, 22 steps": Setting("shapes-flux", 2.5, _flow(1.0), 22),
}


def loaded(setting: Setting) -> tuple[Any, Embedded]:
    """The pipeline with its sampler, and what is known of it."""
    embedded = EMBEDDED[setting.model]
    pipe = embedded.load()
    pipe.set_progress_bar_config(disable=True)
    if setting.sampler is not None:
        pipe.scheduler = setting.sampler(pipe.scheduler)
    return pipe, embedded


def rivals(full: int, calls: int, steps: int, calibrated: Plan) -> dict[str, list[Configuration]]:
    """What is compared, by kind; of step caches the best one counts.

    Args:
        full: of the model's calls, how many are full steps.
        calls: of the model in a generation.
        steps: of the sampler; one of second order calls the model twice at most of them.
        calibrated: the calibrated plan.
    """
    share = full / calls
    return {
        "plan": [Configuration("tokenprune.plan", best_plan(share))],
        "calibrated": [Configuration("tokenprune.plan, calibrated", calibrated)],
        "step cache": step_caches(full, calls, WARMUPS),
        "fewer steps": [plain(round(steps * share))],
    }


def compare(
    setting: Setting, prompts: Sequence[str], for_calibration: Sequence[str]
) -> dict[int, dict[str, dict[str, Any]]]:
    """PSNR by full steps and kind."""
    pipe, embedded = loaded(setting)
    task = Task(tuple(prompts), setting.steps, setting.guidance_scale, len(prompts), embedded.arguments)
    fitted_to = replace(task, prompts=tuple(for_calibration), batch=len(for_calibration))
    places = range(len(prompts))
    reference = generate(pipe, setting.steps, task, places)
    calls = len(pipe.scheduler.timesteps)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for full in (round(share * calls) for share in SHARES):
        found[full] = {}
        fitted = fit(pipe, best_plan(full / calls), fitted_to)
        for kind, configurations in rivals(full, calls, setting.steps, fitted.plan).items():
            drawn = []
            for configuration in configurations:
                with configuration.on(pipe):
                    pictures = generate(pipe, configuration.steps or setting.steps, task, places)
                drawn.append(nearness(pictures, reference))
            found[full][kind] = max(drawn, key=lambda row: row["psnr_mean"])
        found[full]["calibrated"]["changes"] = fitted.name
    return found


def nearness(pictures: Pictures, reference: Pictures) -> dict[str, Any]:
    """PSNR of pictures [B, H, W, 3] to those of the plain model: mean, interval, and of each."""
    values = comparable(psnr_of_each(pictures, reference), reference)
    return {"psnr_mean": mean_of(values), "psnr_ci95": ci95_of(values), "psnr_of_each": values}


def show(table: str, found: Mapping[str, Any], told: Mapping[str, Any], out: Path | None) -> None:
    """Print the table and what was measured, and keep what was found by setting, if a file is given."""
    told = {**told, **stamp()}
    if out is not None:
        out.write_text(json.dumps({**told, "settings": found}, indent=1) + "\n")
    print(table)
    print(json.dumps(told))


def markdown(found: Mapping[str, Mapping[int, Mapping[str, Mapping[str, Any]]]]) -> str:
    """A table of all settings."""
    lines = ["| | full steps | the plan | calibrated | best step cache | fewer steps |", "|---|---|---|---|---|---|"]
    for name, of_setting in found.items():
        for number, (full, kinds) in enumerate(of_setting.items()):
            cells = (f"{kinds[kind]['psnr_mean']:.1f} ± {kinds[kind]['psnr_ci95']:.1f}" for kind in KINDS)
            lines.append(f"| {'' if number else name} | {full} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    prompts: Annotated[int, typer.Option(min=2, help="Captions of the held-out split.")] = 8,
    calibrate_on: Annotated[int, typer.Option(min=1, help="Captions of the tuning split.")] = 8,
    untouched: Annotated[bool, typer.Option("--untouched", help="Settings that played no part in any choice.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file with the PSNR of each picture.")] = None,
) -> None:
    """Print the table."""
    if out is not None:
        check_output("out", out)
    quiet()
    texts = scenes.texts("held-out", prompts)
    measured_on = scenes.texts("tuning", calibrate_on)
    settings = UNTOUCHED if untouched else SETTINGS
    found = {name: compare(setting, texts, measured_on) for name, setting in settings.items()}
    show(markdown(found), found, {"prompts": prompts, "calibrated_on": calibrate_on, "split": "held-out"}, out)


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.other_settings")
