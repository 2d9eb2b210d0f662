"""What is known of the generation under way: its branches, its steps, and the selection of the current one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.step_tracker import CallPosition
from tokenprune.engine.token_history import TokenHistory
from tokenprune.errors import SelectionError
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.grid import TokenGrid, num_tokens
from tokenprune.ops.guidance import GUIDANCE_SCALE, BranchKey, Guidance, guided
from tokenprune.ops.selection import Selection
from tokenprune.policies.base import Memory, Observation, SelectionPolicy
from tokenprune.reports.records import StepRecord, Stopwatch
from tokenprune.reports.trace import Recorder
from tokenprune.schedule import Schedule, Step


class Generation:
    """One generation, from its first call on.

    Args:
        module_map: the model's map.
        guidance: how classifier-free guidance lies in a batch of both its branches; "none" if no batch holds both.
        images: B, images of the batch, without guidance.
        guidance_scale: None shows policies the conditional prediction; a number shows them the guided one.
        recorder: takes the trace; None where nobody wants one.

    Attributes:
        branches: caches by guidance branch, as far as the last step or this one called them.
        conditional_branch: the branch that begins the current step, which policies see as the conditional one.
        handed_on: the last prediction of another batch's conditional branch [G * B, N, C], for its successor.
        grid: the token grid.
        references: how many image tokens that are no part of the grid lie before and after it.
        records: every step so far.
        selection: the current step's selection; None at a full step and at a skipped one.
        skipping: whether the current step computes nothing.
        history: when each token was computed, and how surprising it was.
        attention: the policy's attention statistics of the last full step [B, N]; None while nobody needs them.
    """

    def __init__(
        self,
        module_map: ModuleMap,
        guidance: Guidance,
        images: int,
        guidance_scale: float | None,
        recorder: Recorder | None,
    ) -> None:
        self._map = module_map
        self._guidance: Guidance = guidance
        self._images = images
        self._guidance_scale = guidance_scale
        self._memory: Memory = {}
        self._previous: Selection | None = None
        self._pruned_steps = 0
        self.grid: TokenGrid = ()
        self.references: tuple[int, int] = (0, 0)
        self.branches: dict[BranchKey, BranchCache] = {}
        self.conditional_branch: BranchKey | None = None
        self.handed_on: Tensor | None = None
        self.records: list[StepRecord] = []
        self.selection: Selection | None = None
        self.skipping = False
        self.history: TokenHistory | None = None
        self.attention: Tensor | None = None
        self.recorder = recorder

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        memory = sum(tensor.nbytes for tensor in self._memory.values())
        return memory + sum(branch.nbytes for branch in self.branches.values())

    def emptied(self) -> Generation:
        """What stays of the generation when its caches are freed: what a report tells of it."""
        rest = Generation(self._map, self._guidance, self._images, self._guidance_scale, self.recorder)
        rest.records, rest.grid, rest.history = self.records, self.grid, self.history
        return rest

    def guidance_of(self, batch: int) -> Guidance:
        """How classifier-free guidance lies in a batch of that size."""
        return self._guidance if batch == 2 * self._images else "none"

    @property
    def guidance(self) -> Guidance:
        """How classifier-free guidance lies in the conditional branch's batch."""
        return self.guidance_of(self.conditional_branch.shape[0]) if self.conditional_branch else "none"

    def begin_step(self, position: CallPosition, grid: TokenGrid, schedule: Schedule, policy: SelectionPolicy) -> None:
        """Decide how many and which tokens the step computes."""
        self.grid, tokens = grid, num_tokens(grid)
        count = schedule.count(Step(position.step, position.time, position.level, position.remaining), tokens)
        # Caches of branches that the last step did not call are out of date by an unknown number of steps.
        self.branches = {key: found for key, found in self.branches.items() if found.step >= position.step - 1}
        cache = self.branches.get(position.branch)
        self.handed_on = self._hand_on(position.branch) if cache is None else None
        self.conditional_branch = position.branch
        watch = None
        self.selection, self.skipping = None, False
        if count >= tokens or cache is None or cache.prediction is None:
            self._previous, self._pruned_steps, count = None, 0, tokens
        elif count == 0:
            self.skipping = True
        else:
            watch = Stopwatch(cache.prediction.device)
            self.selection = self._previous = self._select(position, count, policy)
            self._pruned_steps += 1
            watch.mark()
        self.records.append(StepRecord(position.step, position.time, count, tokens, watch))
        if self.recorder is not None:
            age = self.history.age(position.step) if self.history else None
            self.recorder.begin_step(age, self._memory if self.selection else {})

    def note(self, output: Tensor, forecast: Tensor | None, pruned: bool, weights: Sequence[Tensor] = ()) -> None:
        """Note what the step computed, once for each step.

        Args:
            output: what the exit gave for the conditional branch [G * B, n, C].
            forecast: what it would have been taken for [G * B, n, C]; None where nobody needs to know.
            pruned: whether only the selected tokens were computed.
            weights: what the policy's `weigh_attention` gave for each attention module [G * B, N], if it was asked.
        """
        if self.history is None:
            images = 1 if self._map.shared else self._images
            self.history = TokenHistory(images, self.records[-1].num_tokens, output.device)
        forecast_error = None if forecast is None else self._forecast_error(output - forecast)
        selection = self.selection if pruned else None
        self.history.note(self.records[-1].step, selection, forecast_error)
        if self.recorder is not None:
            self.recorder.note(selection, forecast_error)
        if weights:
            attention = self._of_grid(self._halves(torch.stack(list(weights)).mean(0))[0]).to(output.device)
            self.attention = attention.mean(0, keepdim=True) if self._map.shared else attention

    def end_call(self) -> None:
        """Trace what the call that went through left as the step's prediction."""
        branches = self._guidance_branches() if self.recorder is not None else []
        if self.recorder is not None and branches:
            prediction, reference = ([getattr(b, name) for b in branches] for name in ("prediction", "reference"))
            self.recorder.end_call(self._noise(prediction), self._noise(reference))

    def _select(self, position: CallPosition, count: int, policy: SelectionPolicy) -> Selection:
        prediction = self._noise([branch.prediction for branch in self._guidance_branches()])
        reference = self._noise([branch.reference for branch in self._guidance_branches()])
        seen = Observation(
            prediction=prediction,
            reference=reference,
            count=count,
            grid=self.grid,
            step=position.step,
            pruned_steps=self._pruned_steps,
            time=position.time,
            previous=self._previous,
            age=self.history.age(position.step) if self.history else None,
            forecast_error=self.history.forecast_error if self.history and "forecast_error" in policy.needs else None,
            gap=self.history.gap if self.history else None,
            attention=self.attention,
        )
        selection = policy.select(seen, self._memory)
        where = f"{type(policy).__name__}.select at step {position.step}"
        if not isinstance(selection, Selection):
            raise SelectionError(
                f"{where}: expected a Selection (Selection.top or Selection.from_index makes one), got "
                f"{type(selection).__name__}"
            )
        expected = (len(prediction), count, prediction.shape[1])
        came = (selection.batch_size, selection.count, selection.num_tokens)
        if came != expected:
            raise SelectionError(
                f"{where}: expected indices [B, n] = {list(expected[:2])} out of {expected[2]} tokens, got "
                f"{list(came[:2])} out of {came[2]}"
            )
        return selection

    def _hand_on(self, heir: BranchKey) -> Tensor | None:
        """The conditional prediction for a branch with another batch; None where that is not the same branch."""
        key = self.conditional_branch
        former = self.branches.get(key) if key else None
        if key is None or former is None or former.prediction is None or heir.name != key.name:
            return None
        conditional, _ = self._halves(former.prediction)
        return torch.cat([conditional] * (heir.shape[0] // len(conditional)))

    def _forecast_error(self, error: Tensor) -> Tensor:
        """Norms of what a forecast was off [B, n], after guidance: that is what the sampler sees of it."""
        error = self._noise_channels(self._of_grid(error))
        scale = GUIDANCE_SCALE if self._guidance_scale is None else self._guidance_scale
        found = guided(error, self.guidance, scale).float()
        return (rearrange(found, "b n c -> 1 n (b c)") if self._map.shared else found).norm(dim=-1)

    def _guidance_branches(self) -> list[BranchCache]:
        """The branches with a prediction whose latents have the conditional one's shape, that one first."""
        alike = [key for key in self.branches if self.conditional_branch and key.shape == self.conditional_branch.shape]
        caches = [self.branches[key] for key in sorted(alike, key=lambda key: key != self.conditional_branch)]
        found = [branch for branch in caches if branch.prediction is not None]
        return found[:1] if self._guidance_scale is None else found[:2]

    def _noise(self, predictions: list[Tensor | None]) -> Tensor:
        """What policies see of the branches' predictions [G * B, N, P]: conditional or guided noise [B, N, C].

        Where all images share a selection, they are one image with the channels of all: [1, N, B * C].
        """
        conditional, *others = (self._noise_channels(self._of_grid(p)) for p in predictions if p is not None)
        unconditional = others[0] if others else None
        if self.guidance != "none":
            conditional, unconditional = self._halves(conditional)
        noise = conditional
        if self._guidance_scale is not None and unconditional is not None:
            noise = unconditional + self._guidance_scale * (conditional - unconditional)
        return rearrange(noise, "b n c -> 1 n (b c)") if self._map.shared else noise

    def _of_grid(self, tokens: Tensor) -> Tensor:
        """The tokens of the grid [B, N, ...] among those of the model, or the selected ones as they are."""
        before, total = self.references[0], num_tokens(self.grid) + sum(self.references)
        return tokens[:, before : before + num_tokens(self.grid)] if tokens.shape[1] == total else tokens

    def _halves(self, batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """The conditional and the unconditional part of a batch [G * B, ...]."""
        if self.guidance == "none":
            return batch, None
        first, second = batch.chunk(2)
        return (second, first) if self.guidance == "uncond-first" else (first, second)

    def _noise_channels(self, prediction: Tensor) -> Tensor:
        if self._map.noise_channels is None:
            return prediction
        pixels = rearrange(prediction, "b n (p c) -> b n p c", c=self._map.output_channels)
        return rearrange(pixels[..., : self._map.noise_channels], "b n p c -> b n (p c)")
