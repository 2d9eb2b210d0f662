"""What is known of the generation under way: its branches, its steps, and the selection of the current one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.call_arguments import Form, Given
from tokenprune.engine.full_step import FullStep
from tokenprune.engine.policy_view import PolicyView
from tokenprune.engine.shards import ALONE, Shards
from tokenprune.engine.step_tracker import CallPosition
from tokenprune.engine.token_choice import TokenChoice
from tokenprune.engine.token_history import TokenHistory
from tokenprune.ops.grid import num_tokens
from tokenprune.ops.guidance import BranchKey, Guidance, branches_of
from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Observation, SelectionPolicy
from tokenprune.reports.records import StepRecord, Stopwatch
from tokenprune.reports.trace import Recorder
from tokenprune.schedule import ForecastError, Schedule, Step, tokens_at


class Generation:
    """One generation, from its first call on.

    Args:
        view: what policies see of its predictions.
        recorder: takes the trace; None where nobody wants one.
        token: the timeline's object for it; None before the first.
        inherited: the last step's predictions of the model that was called before this one [B, N, C], by branch.
        full_steps: the generation's full steps so far, of whichever model.
        shards: which processes compute the model together; they choose the same tokens.

    Attributes:
        view: as above.
        recorder: as above.
        token: as above.
        inherited: as above, until the next step.
        branches: caches by guidance branch, as far as the last step or this one called them.
        conditional_branch: the branch that begins the current step, which policies see as the conditional one.
        handed_on: the last prediction of another batch's conditional branch [G * B, N, C], for its successor.
        records: every step so far.
        selection: the current step's selection; None at a full step and at a skipped one.
        skipping: whether the current step computes nothing.
        with_text: whether the current step, if pruned, computes the text tokens of joint sequences.
        text_age: how many steps ago those were last computed.
        weighs: whether the current step is a full one whose attention the policy wants to know for the next.
        choice: what the policy chose so far, and remembers.
        history: when each token was computed, and how far from its forecast it then was.
        attention: the policy's attention statistics of the last full step [B, N]; None if it was not weighed.
        full_steps: as above.
        examples: arguments of a call of each form for each guidance branch, on the meta device where their values do
            not matter.
    """

    def __init__(
        self,
        view: PolicyView,
        recorder: Recorder | None,
        token: object = None,
        inherited: Mapping[BranchKey, Tensor] = MappingProxyType({}),
        full_steps: list[FullStep] | None = None,
        shards: Shards = ALONE,
    ) -> None:
        self.view = view
        self._shards = shards
        self.recorder = recorder
        self.token = token
        self.inherited = inherited
        self.branches: dict[BranchKey, BranchCache] = {}
        self.conditional_branch: BranchKey | None = None
        self.handed_on: Tensor | None = None
        self.records: list[StepRecord] = []
        self.selection: Selection | None = None
        self.skipping = False
        self.with_text = True
        self.text_age = 0
        self.weighs = False
        self._asks_of_steps = self._asks_of_tokens = False
        self.choice = TokenChoice()
        self.history: TokenHistory | None = None
        self.attention: Tensor | None = None
        self.full_steps = [] if full_steps is None else full_steps
        self.examples: dict[tuple[BranchKey, Form], Given] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held, but for those in host memory."""
        return self.choice.nbytes + sum(branch.nbytes for branch in self.branches.values())

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory held for keys and values that go to the device when they are needed."""
        return sum(branch.host_bytes for branch in self.branches.values())

    def emptied(self) -> Generation:
        """What stays of the generation when its caches are freed: what a report tells of it."""
        rest = Generation(self.view, self.recorder, self.token)
        rest.records, rest.history, rest.examples = self.records, self.history, self.examples
        return rest

    def adopt(self, given_up: int) -> None:
        """Forget the first calls of the first step: they were another generation's, which was given up."""

        def renamed(key: BranchKey) -> BranchKey:
            return key._replace(order=key.order - given_up)

        self.branches = {renamed(key): found for key, found in self.branches.items() if key.order >= given_up}
        kept = {(key, form): found for (key, form), found in self.examples.items() if key.order >= given_up}
        self.examples = {(renamed(key), form): found for (key, form), found in kept.items()}
        calls = self.records[0].calls[given_up:]
        self.records[0].calls = [replace(call, branch=renamed(call.branch)) for call in calls]
        self.attention = None  # it was the other one's
        self.end_call()

    def reference_of(self, branch: BranchKey, first_of_step: bool) -> Tensor | None:
        """The prediction [B, N, C] that the first one of a new branch is relative to, if there is one."""
        return self.handed_on if first_of_step and self.handed_on is not None else self.inherited.get(branch)

    @property
    def asks_error(self) -> bool:
        """Whether anybody wants to know how far the current step's forecast is off."""
        return self._asks_of_steps or self._asks_of_tokens

    @property
    def prunes(self) -> bool:
        """Whether the current step computes fewer tokens than all."""
        return self.skipping or self.selection is not None

    @property
    def last_step(self) -> int:
        """Index of the latest step; -1 before the first."""
        return self.records[-1].step if self.records else -1

    @property
    def guidance(self) -> Guidance:
        """How classifier-free guidance lies in the conditional branch's batch."""
        return self.view.guidance_of(self.conditional_branch.shape[0]) if self.conditional_branch else "none"

    def begin_step(self, position: CallPosition, schedule: Schedule, policy: SelectionPolicy) -> None:
        """Decide how many and which tokens the step computes."""
        tokens = num_tokens(self.view.grid)
        if self.records:
            self.inherited = {}
        # another transformer of the same step may have noted it already
        before = [full for full in self.full_steps if full.index < position.step]
        self._asks_of_steps = schedule.asks_errors
        self._asks_of_tokens = "forecast_error" in policy.needs or self.recorder is not None
        errors = _errors(before) if schedule.asks_errors else ()
        step = Step(
            position.step,
            position.time,
            position.level,
            position.remaining,
            position.sigmas,
            tuple(full.index for full in before),
            errors,
            position.predicts,
        )
        count = tokens_at(schedule, step, tokens, self.view.least_tokens, self._shards.degree)
        # Caches of branches that the last step did not call are out of date by an unknown number of steps.
        self.branches = {key: found for key, found in self.branches.items() if found.step >= position.step - 1}
        cache = self.branches.get(position.branch)
        self.handed_on = self._hand_on(position.branch) if cache is None else None
        self.conditional_branch = position.branch
        watch = None
        self.selection, self.skipping, self.weighs = None, False, False
        asking = "attention" in policy.needs
        blind = asking and self.attention is None
        if (
            count >= tokens
            or cache is None
            or cache.prediction is None
            or (blind and count)
            or (count == 0 and cache.output_map is None)
        ):
            self.choice.full_step()
            count, self.weighs = tokens, asking and schedule.may_prune_after(step)
        elif count == 0:
            self.skipping = True
        else:
            watch = Stopwatch(cache.prediction.device)
            self.selection = self._select(position, count, policy)
            watch.mark()
        self.text_age += 1
        self.with_text = self.selection is None or schedule.computes_text(step, self.text_age)
        if self.with_text and not self.skipping:
            self.text_age = 0
        self.records.append(StepRecord(position.step, position.time, count, tokens, watch))
        if self.recorder is not None:
            age = self.history.age(position.step) if self.history else None
            self.recorder.begin_step(age, self.choice.memory if self.selection else {})

    def note(self, output: Tensor, forecast: Tensor | None, pruned: bool, weights: Sequence[Tensor] = ()) -> None:
        """Note what the step computed, once for each step.

        Args:
            output: what the exit gave for the conditional branch [G * B, n, C].
            forecast: what it would have been taken for [G * B, n, C]; None where nobody asks, or nothing was known.
            pruned: whether only the selected tokens were computed.
            weights: what the policy's `weigh_attention` gave for each attention module [B, N], if it was asked.
        """
        if self.history is None:
            self.history = TokenHistory(self.view.images, self.records[-1].num_tokens, output.device)
        off = None if forecast is None else output - forecast
        if not pruned and (not self.full_steps or self.full_steps[-1].index < self.records[-1].step):
            self.full_steps.append(self._full_step(output, off))
        error = self.view.forecast_error(off, self.guidance) if off is not None and self._asks_of_tokens else None
        selection = self.selection if pruned else None
        self.history.note(self.records[-1].step, selection, error)
        if self.recorder is not None:
            self.recorder.note(selection, error)
        if not pruned:
            self.attention = None
            if weights:
                self.attention = self.view.attention(torch.stack(list(weights)).mean(0)).to(output.device)

    def _full_step(self, output: Tensor, off: Tensor | None) -> FullStep:
        """The current step, which gave the output [G * B, N, C] that its forecast was off by so much."""
        index = self.records[-1].step
        gap = index - self.full_steps[-1].index if self.full_steps else 1
        if off is None or not self._asks_of_steps:
            return FullStep(index, gap, None)
        return FullStep(index, gap, self._shards.agreed(self.view.sizes([off, output], self.guidance)))

    def end_call(self) -> None:
        """Trace what the call that went through left as the step's prediction."""
        branches = self._guidance_branches() if self.recorder is not None else []
        if self.recorder is not None and branches:
            self.recorder.end_call(self._noise(branches, "prediction"), self._noise(branches, "reference"))

    def _select(self, position: CallPosition, count: int, policy: SelectionPolicy) -> Selection:
        branches, history = self._guidance_branches(), self.history
        seen = Observation(
            prediction=self._noise(branches, "prediction"),
            reference=self._noise(branches, "reference"),
            count=count,
            grid=self.view.grid,
            step=position.step,
            pruned_steps=0,
            time=position.time,
            previous=None,
            age=history.age(position.step) if history else None,
            forecast_error=history.forecast_error if history and "forecast_error" in policy.needs else None,
            gap=history.gap if history else None,
            attention=self.attention,
        )
        return self.choice.make(policy, seen, self._shards.agreed)

    def _hand_on(self, heir: BranchKey) -> Tensor | None:
        """The conditional prediction for a branch with another batch; None where that is not the same branch."""
        key = self.conditional_branch
        former = self.branches.get(key) if key else None
        if key is None or former is None or former.prediction is None or heir.name != key.name:
            return None
        conditional, _ = branches_of(former.prediction, self.guidance)
        return torch.cat([conditional] * (heir.shape[0] // len(conditional)))

    def _guidance_branches(self) -> list[BranchCache]:
        """The branches with a prediction whose latents have the conditional one's shape, that one first."""
        first = self.conditional_branch
        alike = [key for key in self.branches if first and key.shape == first.shape]
        caches = [self.branches[key] for key in sorted(alike, key=lambda key: key != first)]
        found = [branch for branch in caches if branch.prediction is not None]
        return found[:2] if self.view.needs_both_branches else found[:1]

    def _noise(self, branches: Sequence[BranchCache], name: str) -> Tensor:
        """What policies see of the branches' predictions, or of their references."""
        return self.view.noise([getattr(branch, name) for branch in branches], self.guidance)


def _errors(full_steps: Sequence[FullStep]) -> tuple[ForecastError, ...]:
    """By how much forecasts of full steps were off; waits for the device once after each."""
    found = []
    for step in full_steps:
        if isinstance(step.error, Tensor):
            error, size = step.error.tolist()
            step.error = ForecastError(step.index, step.gap, error, size)
        if step.error is not None:
            found.append(step.error)
    return tuple(found)
