"""What is known of the generation under way: its branches, its steps, and the selection of the current one."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from tokenprune.cache import BranchCache
from tokenprune.errors import SelectionError
from tokenprune.grid import TokenGrid, num_tokens
from tokenprune.modulemap import Guidance, ModuleMap
from tokenprune.policy import Memory, Observation, SelectionPolicy
from tokenprune.report import StepRecord, Stopwatch
from tokenprune.run import BranchKey, Moment
from tokenprune.schedule import Schedule, Step
from tokenprune.selection import Selection


class Generation:
    """One generation, from its first call on.

    Args:
        module_map: the model's map.
        guidance: how classifier-free guidance lies in the batch.
        guidance_scale: None shows policies the conditional prediction; a number shows them the guided one.

    Attributes:
        branches: caches by guidance branch; the first is the lead, which policies see as the conditional one.
        records: every step so far.
        selection: the current step's selection; None at a full step and at a skipped one.
        skipping: whether the current step computes nothing.
        token_counts: how many steps computed each token [B, N].
    """

    def __init__(self, module_map: ModuleMap, guidance: Guidance, guidance_scale: float | None) -> None:
        self._map = module_map
        self._guidance = guidance
        self._guidance_scale = guidance_scale
        self._memory: Memory = {}
        self._previous: Selection | None = None
        self._pruned_steps = 0
        self.grid: TokenGrid = ()
        self.branches: dict[BranchKey, BranchCache] = {}
        self.records: list[StepRecord] = []
        self.selection: Selection | None = None
        self.skipping = False
        self.token_counts: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory held."""
        memory = sum(tensor.nbytes for tensor in self._memory.values())
        return memory + sum(branch.nbytes for branch in self.branches.values())

    def begin_step(self, moment: Moment, grid: TokenGrid, schedule: Schedule, policy: SelectionPolicy) -> None:
        """Decide how many and which tokens the step computes."""
        self.grid, tokens = grid, num_tokens(grid)
        count = schedule.count(Step(moment.step, moment.time, moment.level, moment.remaining), tokens)
        lead = next(iter(self.branches.values()), None)
        watch = None
        self.selection, self.skipping = None, False
        if count >= tokens or lead is None or lead.prediction is None:
            self._previous, self._pruned_steps, count = None, 0, tokens
        elif count == 0:
            self.skipping = True
        else:
            watch = Stopwatch(lead.prediction.device)
            self.selection = self._previous = self._select(moment, count, policy)
            self._pruned_steps += 1
            watch.mark()
        self.records.append(StepRecord(moment.step, moment.time, count, tokens, watch))

    def count_tokens(self, output: Tensor, pruned: bool) -> None:
        """Note which tokens the step computed, given the exit's output [G * B, n, C]."""
        if self.token_counts is None:
            images = len(output) if self._guidance == "none" else len(output) // 2
            tokens = self.records[-1].num_tokens
            self.token_counts = torch.zeros(images, tokens, dtype=torch.int32, device=output.device)
        self.token_counts += self.selection.mask() if pruned and self.selection is not None else 1

    def _select(self, moment: Moment, count: int, policy: SelectionPolicy) -> Selection:
        prediction = self._noise([branch.prediction for branch in self._guidance_branches()])
        reference = self._noise([branch.reference for branch in self._guidance_branches()])
        seen = Observation(
            prediction=prediction,
            reference=reference,
            count=count,
            grid=self.grid,
            step=moment.step,
            pruned_steps=self._pruned_steps,
            time=moment.time,
            previous=self._previous,
        )
        selection = policy.select(seen, self._memory)
        where = f"{type(policy).__name__}.select at step {moment.step}"
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

    def _guidance_branches(self) -> list[BranchCache]:
        """The branches with a prediction whose latents have the lead's shape, the lead (conditional) first."""
        shape = next(iter(self.branches))[1]
        found = [b for (_, other), b in self.branches.items() if other == shape and b.prediction is not None]
        return found[:1] if self._guidance_scale is None else found[:2]

    def _noise(self, predictions: list[Tensor | None]) -> Tensor:
        """What policies see of the branches' predictions [G * B, N, P]: conditional or guided noise [B, N, C]."""
        conditional, *others = (self._noise_channels(p) for p in predictions if p is not None)
        unconditional = others[0] if others else None
        if self._guidance != "none":
            halves = conditional.chunk(2)
            unconditional, conditional = halves if self._guidance == "uncond-first" else reversed(halves)
        if self._guidance_scale is None or unconditional is None:
            return conditional
        return unconditional + self._guidance_scale * (conditional - unconditional)

    def _noise_channels(self, prediction: Tensor) -> Tensor:
        if self._map.noise_channels is None:
            return prediction
        pixels = rearrange(prediction, "b n (p c) -> b n p c", c=self._map.output_channels)
        return rearrange(pixels[..., : self._map.noise_channels], "b n p c -> b n (p c)")
