"""A search for the plan that comes nearest to the plain model's pictures at a share of its cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, TrialState

import tokenprune
from tokenprune.bench.measuring.fidelity import Pictures, comparable, mean_of, psnr_of_each
from tokenprune.bench.measuring.measure import Task, batches, draw_all, generate
from tokenprune.bench.measuring.run import error_line
from tokenprune.bench.tuning.space import Costs, Space
from tokenprune.errors import ConfigurationError, one_line
from tokenprune.plans.plan import Plan
from tokenprune.policies import SequentialPolicy
from tokenprune.schedule import WarmupSchedule

Cost = Literal["tokens", "macs"]


NAME = "tokenprune tune"


ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


FEWEST = 4
"""Plans drawn to the end before one may be stopped early."""


MOST_OVER = 20
"""Suggestions made, for each plan wanted, while they exceed the budget."""


@dataclass(frozen=True)
class Tried:
    """A plan, and how near its pictures came on the tuning prompts.

    Attributes:
        name: of a preset, or the number of the trial.
        plan: within the budget.
        psnr: of each picture to the plain model's, in dB; None where they are identical.
        tokens_ratio: share of the plain model's token computations.
        mac_ratio: share of its multiply-accumulates.
    """

    name: str
    plan: Plan
    psnr: list[float | None]
    tokens_ratio: float
    mac_ratio: float


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        budget: share of the plain model's cost.
        best: the plan with the highest mean PSNR, a preset or not.
        presets: those that the budget allows, the best first.
        trials: plans tried beside the presets.
        stopped: how many of all were stopped early.
        failed: errors by trial.
        dense: the plain model's pictures of the tuning prompts.
    """

    budget: float
    best: Tried
    presets: list[Tried]
    trials: int
    stopped: int
    failed: dict[str, str]
    dense: Pictures


def open_study(journal: Path, settings: Mapping[str, Any]) -> optuna.Study:
    """The study that a file keeps, or a new one; trials that a killed run left are given up.

    Args:
        journal: made where it is missing, with its folder.
        settings: plain data that the trials depend on.

    Raises:
        ConfigurationError: the file cannot be written or read, or is of a run with other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = json.loads(json.dumps(dict(settings), default=str))
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "expected a file that can be written, or the journal of an earlier run"
        raise ConfigurationError(f"{journal}: {expected}: {one_line(error)}") from error
    found = study.user_attrs.setdefault("settings", known)
    if other := sorted(name for name in {*known, *found} if known.get(name) != found.get(name)):
        raise ConfigurationError(f"{journal}: was tuned with another {', '.join(other)}; delete it to tune anew")
    study.set_user_attr("settings", known)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def probe(pipe: Any, task: Task, cost: Cost) -> Costs:
    """What pruned steps cost on this pipeline: two generations of the first prompt, with a quarter and three quarters.

    Raises:
        ConfigurationError: the model sees fewer than two steps.
        TokenPruneError: the model cannot be pruned.
    """
    seen = []
    steps = task.steps
    for alpha in (0.25, 0.75):
        with tokenprune.apply(pipe, Plan(SequentialPolicy(), WarmupSchedule(alpha, 1))) as handle:
            generate(pipe, task.steps, task, range(1))
            report = handle.report()
        steps = len(report.steps)
        if steps < 2:
            raise ConfigurationError(f"steps: expected 2 at least, got {steps}")
        seen.append([(ratio * steps - 1) / (steps - 1) for ratio in (report.tokens_ratio, report.mac_ratio)])
    if cost == "tokens":
        return Costs(steps)
    (few, cheap), (many, dear) = seen
    slope = (dear - cheap) / (many - few)
    return Costs(steps, cheap - slope * few, slope)


def search(
    pipe: Any,
    task: Task,
    space: Space,
    study: optuna.Study,
    trials: int,
    seed: int = 0,
    timeout: float | None = None,
    begin: Callable[[str, int, float | None], None] | None = None,
) -> Found:
    """Try the presets, then plans that a tree-structured Parzen estimator suggests; go on where the study ended.

    The presets are always drawn to the end, so that the best plan is never worse than any of them on these prompts.
    Others are stopped after a batch of prompts at which they are below the median. A plan that fails counts as a poor
    one. The same seed, machine and settings give the same plans, however often the run was interrupted.

    Args:
        pipe: a pipeline with `transformer` and `scheduler`; left as it was.
        task: the tuning prompts; stopping early needs more than one batch of them.
        space: the plans to choose from.
        study: from `open_study`.
        trials: plans to try beside the presets, at least 0, those of earlier runs included.
        seed: of the suggestions.
        timeout: seconds after which no further plan is tried; the presets are, whatever they take.
        begin: told of each plan before it is drawn: its name, how many were tried, and the best mean PSNR so far.

    Raises:
        ConfigurationError: the budget allows no plan, or none could be drawn.
    """
    started = time.monotonic()
    begin = begin or (lambda *_: None)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=FEWEST)
    presets = space.presets()
    dense = draw_all(pipe, task.steps, task)
    for _ in range(MOST_OVER * (trials + 1) + len(study.trials)):
        ended = study.get_trials(deepcopy=False, states=ENDED)
        known = {trial.user_attrs.get("preset") for trial in ended}
        missing = next((name for name in presets if name not in known), None)
        enough = sum(_is_own(trial) for trial in ended) >= trials
        late = timeout is not None and time.monotonic() - started >= timeout
        if missing is not None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(presets[missing], user_attrs={"preset": missing})
        elif missing is None and (enough or late):
            break
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(ended), multivariate=False)
        trial = study.ask()
        tried = sum("over" not in each.user_attrs for each in ended)
        begin(_name(trial), tried, max((each.value for each in ended if each.value is not None), default=None))
        _tell(study, trial, pipe, task, space, dense)
    return _found(study, space, dense)


def _tell(study: optuna.Study, trial: optuna.Trial, pipe: Any, task: Task, space: Space, dense: Pictures) -> None:
    """Draw what the trial suggests, and tell the study how it went."""
    plan = space.plan(trial)
    if plan is None:
        trial.set_user_attr("over", True)
        study.tell(trial, state=TrialState.PRUNED)
        return
    try:
        value = _drawn_before(study, trial) or _draw(trial, plan, pipe, task, dense)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Exception as error:
        trial.set_user_attr("error", error_line(error))
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)


def _draw(trial: optuna.Trial, plan: Plan, pipe: Any, task: Task, dense: Pictures) -> float:
    """Mean PSNR of a plan's pictures, which is maximised, told batch by batch."""
    psnr: list[float | None] = []
    at = batches(task)
    with tokenprune.apply(pipe, plan) as handle:
        for number, places in enumerate(at, 1):
            pictures = draw_all(pipe, task.steps, task, [places])
            psnr += psnr_of_each(pictures, dense[places.start : places.stop])
            value = mean_of(comparable(psnr, dense))
            trial.report(value, number)
            if number < len(at) and "preset" not in trial.user_attrs and trial.should_prune():
                raise optuna.TrialPruned
        report = handle.report()
    trial.set_user_attr("psnr", psnr)
    trial.set_user_attr("shares", [report.tokens_ratio, report.mac_ratio])
    return value


def _drawn_before(study: optuna.Study, trial: optuna.Trial) -> float | None:
    """The value of an earlier trial with the same parameters."""
    for earlier in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if earlier.params == trial.params and earlier.value is not None:
            for key in ("psnr", "shares"):
                trial.set_user_attr(key, earlier.user_attrs[key])
            return earlier.value
    return None


def _found(study: optuna.Study, space: Space, dense: Pictures) -> Found:
    ended = study.get_trials(deepcopy=False, states=ENDED)
    failed = {_name(trial): trial.user_attrs["error"] for trial in ended if "error" in trial.user_attrs}
    drawn = sorted((trial for trial in ended if trial.state is TrialState.COMPLETE), key=_order)
    if not drawn:
        reasons = next(iter(failed.values()), f"no schedule keeps to a budget of {space.budget}")
        raise ConfigurationError(f"expected a plan that can be drawn, got none: {reasons}")
    stopped = sum(trial.state is TrialState.PRUNED and not {"error", "over"} & set(trial.user_attrs) for trial in ended)
    presets = [_tried(trial, space) for trial in drawn if "preset" in trial.user_attrs]
    return Found(space.budget, _tried(drawn[0], space), presets, sum(map(_is_own, ended)), stopped, failed, dense)


def _order(trial: FrozenTrial) -> tuple[float, int]:
    return -(trial.value or 0.0), trial.number


def _tried(trial: FrozenTrial, space: Space) -> Tried:
    plan = space.plan(FixedTrial(trial.params))
    if plan is None:
        raise ConfigurationError(f"{_name(trial)}: expected a plan within {space.budget}, got {trial.params}")
    return Tried(_name(trial), plan, trial.user_attrs["psnr"], *trial.user_attrs["shares"])


def _name(trial: optuna.Trial | FrozenTrial) -> str:
    return str(trial.user_attrs.get("preset", f"trial {trial.number}"))


def _is_own(trial: FrozenTrial) -> bool:
    """Whether a plan beside the presets was tried, not only suggested."""
    return not {"preset", "over"} & set(trial.user_attrs)
