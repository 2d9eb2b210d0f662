"""One model with its hooks: what they work with, and what happens from the start of a call to its end."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_structure

from tokenprune.engine import attention_hooks, text_hooks
from tokenprune.engine.attention_hooks import AttentionState
from tokenprune.engine.block_hooks import BlockState
from tokenprune.engine.branch_cache import BranchCache, KeptOutput
from tokenprune.engine.cache_conflicts import refuse_caches
from tokenprune.engine.call_arguments import CallArguments, Given
from tokenprune.engine.exit_hooks import Exit, ExpandState
from tokenprune.engine.generation import Generation
from tokenprune.engine.installation import HookInstallation
from tokenprune.engine.rows import Rows
from tokenprune.engine.set_aside import SetAside
from tokenprune.engine.skipped_steps import OutputMap
from tokenprune.engine.step_tracker import CallPosition, StepTracker
from tokenprune.engine.text_hooks import TextLayerState
from tokenprune.engine.thread_ownership import ThreadOwnership
from tokenprune.errors import UnsupportedCallError
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.grid import num_tokens
from tokenprune.ops.guidance import BranchKey, Guidance, halves_agree
from tokenprune.ops.selection import Selection
from tokenprune.ops.static_memory import StaticBuffers, is_writable
from tokenprune.policies.base import SelectionPolicy
from tokenprune.reports.records import CallRecord, Stopwatch
from tokenprune.reports.trace import Recorder
from tokenprune.reuse.base import Reuse
from tokenprune.schedule import Schedule


class MaskedModule:
    """One model with its hooks: `install` them, `remove` them, and everything that happens in between.

    Args:
        model: the transformer.
        module_map: where its parts are; checked here.
        policy: chooses the tokens of each step.
        schedule: says how many.
        reuse: says what the other tokens' predictions become.
        guidance: None compares the halves of a batch at the start of each generation to find batched guidance.
        guidance_scale: None shows policies the conditional prediction; a number shows them the guided one.
        trace: whether to record what happens to every token at every step.
        cache_dtype: what keys and values are kept in; None keeps them in the model's type.
    """

    def __init__(
        self,
        model: nn.Module,
        module_map: ModuleMap,
        policy: SelectionPolicy,
        schedule: Schedule,
        reuse: Reuse,
        guidance: Guidance | None,
        guidance_scale: float | None,
        trace: bool = False,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        module_map.check(model)
        self.model = model
        self.map = module_map
        self.policy = policy
        self.schedule = schedule
        self.reuse = reuse
        self.guidance = guidance
        self.guidance_scale = guidance_scale
        self.tracing = trace
        self.cache_dtype = cache_dtype
        self.signature = inspect.signature(model.forward)
        self.exit = Exit(module_map.exit_site)
        self.blocks: dict[str, BlockState] = {}
        self.expand = ExpandState(module_map.exit_site)
        self.attentions = [AttentionState(site) for site in module_map.attentions]
        for state in self.attentions:
            state.weigh = policy.weigh_attention if "attention" in policy.needs else None
        self.constants = [TextLayerState(path) for path in module_map.constants]
        self.run = StepTracker(module_map.time_rises, halves=guidance != "none")
        self.ownership = ThreadOwnership(type(model).__name__)
        self.called: dict[int, str] = {}
        self.generations = 0
        self.peak_bytes = 0
        self.installation = HookInstallation(self)
        self.aside = SetAside()
        self.examples: dict[BranchKey, Given] = {}
        self.generation = self._new_generation(0)
        self.position: CallPosition | None = None
        self.clock = torch.zeros(())
        self.branch: BranchCache | None = None
        self.selection: Selection | None = None
        self.skipping = False
        self.numbered: Tensor | None = None
        self.reset()

    notes: tuple[str, ...] = ()
    """How the map was found, where that is worth telling."""

    @property
    def masked(self) -> MaskedModule:
        """What prunes the model: this; a model without adapter has it only from its first call on."""
        return self

    # Hooks on and off ------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Register all hooks.

        Raises:
            AlreadyPrunedError: the model carries hooks of another handle.
        """
        self.installation.put_on()

    def remove(self) -> None:
        """Take all hooks off and free the caches; the model is as it was."""
        self.unwind()
        self.installation.take_off()
        self.reset()

    def _follow_displaced(self) -> None:
        """Move the hooks to the modules that took the place of others."""
        self.installation.take_off_parts()
        try:
            self.map.check(self.model)
        finally:
            self.reset()
        self.installation.put_on_parts()

    def reset(self) -> None:
        """Free the caches; the next call starts a generation."""
        self.run = self.run.renewed()
        self.ownership.reset()
        self.exit.rows = self.exit.starts = self.expand.rows = None
        for block in self.blocks.values():
            block.rows = None
        self.generation = self.generation.emptied()
        self.static = StaticBuffers()
        self.output_maps: dict[tuple[torch.Size, torch.dtype, str], OutputMap] = {}
        self._end_call()
        for state in self.attentions:
            state.forget()
        for constant in self.constants:
            constant.kept = KeptOutput()

    def unwind(self) -> None:
        """Leave whatever an exception or an interrupt left behind: attention modes, forced eager execution."""
        self.aside.take_back()
        attention_hooks.leave_modes(self.attentions)

    # One call of the model -------------------------------------------------------------------------------------

    def begin_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        """Decide what this call computes; returns the model's arguments, per-token ones gathered."""
        if self.ownership.enter():  # an interrupt that torch's hooks do not see stopped the last call
            self.abandon()
        self.unwind()
        if torch.is_grad_enabled():
            raise UnsupportedCallError(
                f"{type(self.model).__name__}: pruning keeps keys and values from earlier steps and cannot give "
                f"gradients; call the model under torch.no_grad() or remove() the handle to train"
            )
        if self.installation.displaced:
            self._follow_displaced()
        call = self._call(args, kwargs)
        latents, name = call.latents, self.called.get(threading.get_ident(), "")
        self.run, position = self.ownership.advance(self.run, call.time, latents, name)
        if position.first_of_generation:
            self._begin_generation(position, latents, call.arguments)
        generation, grid = self.generation, self.generation.grid
        if position.first_of_step:
            generation.begin_step(position, grid, self.schedule, self.policy)
        branch = self._begin_branch(position, call)
        known = branch.prediction is not None
        self.position, self.branch = position, branch
        if self.clock.device != latents.device or not is_writable(self.clock):
            self.clock = torch.zeros((), device=latents.device)
        self.clock.fill_(position.time)
        self.skipping = known and generation.skipping
        self.selection = self._for_batch(generation.selection, len(latents)) if known else None
        self._prepare(branch, call, len(latents))
        text_hooks.prepare(self.constants, branch, call.text, pruned=self.selection is not None)
        empty = (
            not buffer.length for path, buffer in branch.buffers.items() if not path.endswith(attention_hooks.SECOND)
        )
        if not known and any(empty):
            # Compiled blocks must never see the buffers being made: that would be another graph for each layer.
            self.aside.put(map(self.model.get_submodule, self.blocks))
        tokens = 0 if self.skipping else self.selection.count if self.selection else num_tokens(grid)
        generation.records[-1].calls.append(CallRecord(position.branch, tokens, Stopwatch(latents.device)))
        return call.gathered(self.exit.rows)

    def complete(self, output: Tensor) -> Tensor:
        """Take in what the exit module gave: of N tokens at a full call, unchanged; of n, completed, otherwise."""
        if self.branch is None or self.position is None:
            return output
        if self.numbered is not None:
            return self.exit.write(output, self.numbered)
        images = self.exit.read(output)
        if self.position.first_of_step:
            self.generation.note(images, self._forecast(), self.selection is not None, self._attention_weights())
        if self.selection is None:
            last = self.branch.reference if self.branch.prediction is None else self.branch.prediction
            self.branch.prediction = images.detach().clone()
            self.branch.reference = self.branch.prediction if last is None else last
            self.branch.reuse.record(images, self.position.time)
            return output
        completed = self.branch.reuse.complete(images, self.selection, self.position.time)
        self.branch.prediction = completed.clone()
        return self.exit.write(output, completed)

    def _attention_weights(self) -> list[Tensor]:
        """What the policy made of each attention module at this full call; nothing where it does not ask."""
        weights = [
            [state.weights for state in (site.images if site.site.per_image else [site]) if state.weights is not None]
            for site in self.attentions
        ]
        joined = [torch.cat(found) for found in weights if found]
        return [found.to(joined[0].device) for found in joined]

    def _forecast(self) -> Tensor | None:
        """What the coming tokens would have been taken for, where policy or trace need to know and there is a past."""
        wanted = self.tracing or "forecast_error" in self.policy.needs
        if not wanted or self.branch is None or self.branch.prediction is None:
            return None
        forecast = self.branch.reuse.forecast(self.position.time if self.position else 0.0)
        return forecast if self.selection is None else self.selection.gather(forecast)

    def skipped_output(self) -> Any:
        """The model's output for forecast tokens."""
        if self.branch is None or self.branch.output_map is None or self.position is None:
            raise RuntimeError("a generation starts with a full step")
        self.branch.prediction = self.branch.reuse.forecast(self.position.time)
        return self.branch.output_map(self.branch.prediction)

    def end_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Book-keeping after a call that went through."""
        record = self.generation.records[-1]
        record.calls[-1].watch.mark()
        self.peak_bytes = max(self.peak_bytes, self.generation.nbytes)
        self.generation.end_call()
        if self.schedule.skips and self.selection is None and not self.skipping:
            self._map_output(args, kwargs, output)
        self.aside.take_back()
        self._end_call()
        self.ownership.leave()

    def fail_call(self) -> None:
        """An exception stopped this thread's call: start afresh with the next one, unless the caches are another's."""
        if self.ownership.leave():
            self.abandon()

    def abandon(self) -> None:
        """Leave modes and start afresh with the next call."""
        self.unwind()
        self.reset()

    def _end_call(self) -> None:
        self.position, self.branch, self.selection, self.numbered = None, None, None, None
        self.skipping = False

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallArguments:
        return CallArguments(type(self.model).__name__, self.map, self.signature, args, kwargs)

    def _begin_generation(self, position: CallPosition, latents: Tensor, arguments: Mapping[str, Any]) -> None:
        """Start anew; key and value buffers stay, for their memory, while the latents keep their shape."""
        refuse_caches(self.model)
        self.installation.stand_in_forward()
        last = self.generation.branches
        self.examples = {}
        self.generation = self._new_generation(self._count_images(latents))
        self.generation.grid = self.map.grid(arguments)
        if self.map.references is not None:
            self.generation.references = self.map.references(arguments)
        if position.branch in last:
            self.static.tidy()
            for key, branch in last.items():
                kept = {path: buffer for path, buffer in branch.buffers.items() if buffer.writable}
                for buffer in kept.values():
                    buffer.restart()
                outputs = {path: output for path, output in branch.constants.items() if output.writable}
                guidance, cache = self.generation.guidance_of(key.shape[0]), self.generation.branches
                cache[key] = BranchCache(self.reuse.start(guidance), guidance, buffers=kept, constants=outputs)
        else:
            self.static = StaticBuffers()
            self.output_maps.clear()
        self.generations += 1

    def _new_generation(self, images: int) -> Generation:
        recorder = Recorder() if self.tracing else None
        return Generation(self.map, self.guidance or self.map.guidance, images, self.guidance_scale, recorder)

    def _count_images(self, latents: Tensor) -> int:
        """B, how many images a batch holds, guidance aside."""
        guided = halves_agree(latents) if self.guidance is None else self.guidance != "none"
        return len(latents) // 2 if guided else len(latents)

    def _begin_branch(self, position: CallPosition, call: CallArguments) -> BranchCache:
        branches: dict[BranchKey, BranchCache] = self.generation.branches
        if position.branch not in branches:
            guidance = self.generation.guidance_of(position.branch.shape[0])
            reference = self.generation.handed_on if position.first_of_step else None
            branches[position.branch] = BranchCache(self.reuse.start(guidance), guidance, reference=reference)
        branch = branches[position.branch]
        branch.step = position.step
        if position.branch not in self.examples:
            self.examples[position.branch] = call.given if self.map.reads_values else tree_map(_on_meta, call.given)
        return branch

    def _for_batch(self, selection: Selection | None, batch: int) -> Selection | None:
        if selection is None:
            return None
        if batch % selection.batch_size:
            raise UnsupportedCallError(
                f"{type(self.model).__name__}: expected a batch with all {selection.batch_size} images, got {batch}"
            )
        before = self.generation.references[0]
        return Selection(selection.index + before, self._tokens).repeat(batch // selection.batch_size)

    @property
    def _tokens(self) -> int:
        """N of this generation, reference tokens included."""
        return num_tokens(self.generation.grid) + sum(self.generation.references)

    def _prepare(self, branch: BranchCache, call: CallArguments, batch: int) -> None:
        """Tell all hooks what the coming call computes."""
        starts = self.map.text_lengths(call.arguments) if self.map.text_lengths else None
        frames = self.map.frames(call.arguments) if self.map.frames else 1
        rows = None
        if starts is not None and self.selection is not None:
            starts = starts.to(self.selection.index.device)
        states = [state for site in self.attentions for state in site.of_batch(batch)]
        for state in states:
            if state.path not in branch.buffers:
                branch.buffers[state.path] = self.reuse.start_keys(branch.guidance)
                branch.buffers[state.path].dtype = self.cache_dtype
        if self.selection is not None:
            joint = [
                branch.buffers[state.path].length
                for state in states
                if state.site.layout != "image" and not state.path.endswith(attention_hooks.SECOND)
            ]
            text = max(joint, default=self._tokens) - self._tokens
            rows = Rows(self.selection, self.map.layouts, max(text, 0), starts, frames, self.static)
        self.exit.rows, self.exit.tokens = rows, self._tokens
        self.exit.starts, self.exit.frames = starts, frames
        self.expand.rows = rows
        for block in self.blocks.values():
            block.rows = rows
        attention_hooks.prepare(states, branch.buffers, rows, self._tokens, self.clock, starts)

    def _map_output(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Find out how the model lays out its tokens, by runs on no image tokens at all."""
        if self.branch is None or self.branch.prediction is None:
            return
        branch, tokens = self.branch, self.branch.prediction
        key = (tokens.shape, tokens.dtype, str(tree_structure(output)))
        if key in self.output_maps:
            branch.output_map = self.output_maps[key]
            return

        def rearrange(numbered: Tensor) -> Any:
            self.numbered = numbered
            return self.model.forward(*gathered[0], **gathered[1])

        nothing = torch.empty(len(tokens), 0, dtype=torch.int64, device=tokens.device)
        self.selection = Selection(nothing, tokens.shape[1])
        call = self._call(args, kwargs)
        self._prepare(branch, call, len(tokens))
        gathered = call.gathered(self.exit.rows)
        self.output_maps[key] = branch.output_map = OutputMap(tokens, output, rearrange)


def _on_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
