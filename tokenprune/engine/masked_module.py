"""One model with its hooks: what happens from the start of a call of the model to its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_structure

from tokenprune.engine import held_text
from tokenprune.engine.block_outputs import BlockOutputs
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.cache_conflicts import refuse_hooks, without_guided
from tokenprune.engine.call_arguments import CallArguments, Given
from tokenprune.engine.copies import shapes_of
from tokenprune.engine.foreign_forwards import (
    ForwardWatch,
    left_out,
    misfits_explained,
    refuse_foreign_forwards,
    replaced,
)
from tokenprune.engine.generation import Generation
from tokenprune.engine.host_caches import AHEAD, HostCaches, refuse_compiled
from tokenprune.engine.installation import HookInstallation
from tokenprune.engine.parallelism import DIVIDING, refuse_other_inputs, refuse_unequal_parts, shards_of
from tokenprune.engine.policy_view import PolicyView
from tokenprune.engine.set_aside import SetAside
from tokenprune.engine.settings import PruningSettings
from tokenprune.engine.shards import Shards
from tokenprune.engine.sites import Sites
from tokenprune.engine.skipped_steps import OutputMap
from tokenprune.engine.step_tracker import CallPosition, StepTracker
from tokenprune.engine.thread_label import ThreadLabel
from tokenprune.engine.timeline import Timeline
from tokenprune.engine.windows import Window, Windows
from tokenprune.errors import ModuleMapError, TokenPruneError, UnsupportedCallError
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.guidance import BranchKey, count_images
from tokenprune.ops.selection import Selection
from tokenprune.reports.records import CallRecord, Stopwatch
from tokenprune.reports.trace import Recorder


@dataclass
class CallUnderWay:
    """What one call of the model computes.

    Attributes:
        position: where it stands.
        branch: what its guidance branch keeps.
        selection: the computed tokens of every image of the batch; None for all, or for none if it skips.
        skips: whether it computes nothing.
        numbered: tokens to put in the place of the exit's [B, N, C], while their places in the output are sought.
        completed: whether the exit gave its output.
    """

    position: CallPosition
    branch: BranchCache
    selection: Selection | None
    skips: bool
    numbered: Tensor | None = None
    completed: bool = False


class MaskedModule:
    """One model with its hooks: `install` them, `remove` them, and everything that happens in between.

    Args:
        model: the transformer.
        module_map: where its parts are; checked here.
        settings: how it is pruned.
        timeline: tells steps and guidance branches apart, shared with other models that make generations with this
            one; None is one of its own, which tells them by the timesteps.

    Attributes:
        model: as above.
        map: as above, with the direction of time that the timeline has.
        settings: as above.
        timeline: as above.
        signature: of the model's forward.
        sites: the states of all hooked places.
        generations: how many began since the hooks were put on.
        peak_bytes: most memory that the caches held on the model's own devices.
        peak_host_bytes: the same in host memory, where keys and values lie there.
        host: brings those that lie in host memory to the attention modules; None: they lie where these run.
        notes: how the map was found, where that is worth telling.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        module_map: ModuleMap,
        settings: PruningSettings,
        timeline: Timeline | None = None,
    ) -> None:
        self.model = model
        self.map = module_map
        self.settings = settings
        self.host = HostCaches(model) if settings.cache_device is not None and settings.keeps_keys else None
        self._shards = self._refuse_foreign()
        with misfits_explained(model):
            module_map.check(model)
        held_text.refuse_model(model, module_map, settings.schedule)
        self.signature = inspect.signature(model.forward)
        weigh = settings.policy.weigh_attention if "attention" in settings.policy.needs else None
        self.sites = Sites(module_map, weigh, settings.trusting, self.host)
        self.generations = 0
        self.peak_bytes = self.peak_host_bytes = 0
        self.timeline = timeline or Timeline(lambda rises: StepTracker(rises, settings.guidance != "none"))
        self._branch_name = ThreadLabel()
        self._installation = HookInstallation(model, module_map, self.sites, self, settings.schedule.skips)
        self._set_aside = SetAside()
        self._depths = {site.path: i / len(module_map.attentions) for i, site in enumerate(module_map.attentions)}
        self._block_outputs = BlockOutputs()
        self._output_maps: dict[tuple[torch.Size, torch.dtype, str], OutputMap] = {}
        self._call: CallUnderWay | None = None
        self._forwards: ForwardWatch | None = None
        self._windows = Windows(self._no_generation)
        self.map = replace(module_map, time_rises=self.timeline.join(self, module_map.time_rises))

    @property
    def masked(self) -> MaskedModule:
        """What prunes the model: this; a model without adapter has it only from its first call on."""
        return self

    @property
    def name(self) -> str:
        """What error messages call the model."""
        return type(self.model).__name__

    @property
    def generation(self) -> Generation:
        """The one under way, or the last."""
        return self._windows.generation

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory that the caches hold, of all windows, but for those in host memory."""
        shared = self.host.nbytes if self.host is not None else 0
        return shared + self._windows.nbytes

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that they hold."""
        return self._windows.host_bytes

    # Hooks on and off ------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Register all hooks.

        Raises:
            AlreadyPrunedError: the model carries hooks of another handle.
        """
        self._installation.put_on()
        self._forwards = ForwardWatch(self.model)

    def remove(self) -> None:
        """Take all hooks off and free the caches; the model is as it was."""
        self.unwind()
        self._installation.take_off()
        self._forwards = None
        if self.timeline.correction is not None:
            self.timeline.correction.take_off()
        self.timeline.reset()

    def free(self) -> None:
        """Free the caches; the next call begins a generation."""
        self._windows.empty()
        self._output_maps.clear()
        self._end_call()
        self.sites.forget()

    def let_go(self, windows: Collection[str], window: str, position: CallPosition) -> None:
        """Free what the coming call, which may be another model's, leaves no use for.

        That is windows that are given up; and what was kept for a window where another model took over, once the model
        itself made no step since the last one. A generation that begins may use the memory of the last one again.
        """
        if self._windows.let_go(windows, window, position):
            self.sites.forget()

    def branches_at(self, window: str, generation: object, step: int) -> Mapping[BranchKey, BranchCache]:
        """What it keeps, if that is of this generation and its last step was this one; else nothing."""
        return self._windows.branches_at(window, generation, step)

    def restart_with_rising_time(self) -> None:
        """The timestep turned out to grow as the noise falls: the coming call begins the generation once more."""
        self.map = replace(self.map, time_rises=True)
        self.timeline.restart_with_rising_time()
        self.generations -= 1

    def unwind(self) -> None:
        """Leave whatever an exception or an interrupt left behind: attention modes, watched blocks, eager execution."""
        self._block_outputs.leave()
        self._set_aside.take_back()
        self.sites.leave_modes()

    def _follow_displaced(self) -> None:
        """Move the hooks to the modules that took the place of others."""
        self._installation.take_off_parts()
        try:
            with misfits_explained(self.model):
                self.map.check(self.model)
        finally:
            self.timeline.reset()
        self._installation.put_on_parts()
        self._look_again()

    def _refuse_foreign(self) -> Shards:
        """How the model is divided over devices.

        Raises:
            HookConflictError: hooks or forwards of others on the model cannot go with pruning.
        """
        if self.host is not None:
            refuse_compiled(self.model, self.name)
        shards = shards_of(self.model, self.map, self.settings.keeps_keys)
        refuse_hooks(self.model, served=() if shards.group is None else DIVIDING)
        refuse_foreign_forwards(self.model, (site.path for site in self.map.block_sites))
        return shards

    def _look_again(self) -> None:
        """Look at what others did to the model; if they divided it over devices, what was kept is of another kind."""
        shards = self._refuse_foreign()
        if shards != self._shards:
            self.timeline.reset()
            self._shards = shards
        self._forwards = ForwardWatch(self.model)

    # One call of the model -------------------------------------------------------------------------------------

    def named(self, name: str) -> AbstractContextManager[None]:
        """Calls of this thread within belong to the guidance branch of this name."""
        return self._branch_name.set(name)

    def begin_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        """Decide what this call computes; returns the model's arguments, per-token ones gathered."""
        self.timeline.enter()
        self.unwind()
        if torch.is_grad_enabled():
            raise UnsupportedCallError(
                f"{type(self.model).__name__}: pruning keeps keys and values from earlier steps and cannot give "
                f"gradients; call the model under torch.no_grad() or remove() the handle to train"
            )
        if self._forwards is not None and self._forwards.changed:
            self._look_again()
        if self._installation.displaced is not None:
            self._follow_displaced()
        given = self._arguments(args, kwargs)
        if self.settings.schedule.holds_text:
            held_text.refuse_call(self.model, given, self._shards)
        refuse_unequal_parts(self.name, self._shards, given)
        latents = given.latents
        position = self._find_position(given, latents)
        generation = self.generation
        if position.first_of_step:
            generation.begin_step(position, self.settings.schedule, self.settings.policy)
            self._announce(position)
            self.timeline.watch.step(self._windows.label, position.step, generation.prunes)
        branch = self._begin_branch(position, given)
        known = branch.prediction is not None
        selection = self._of_images(generation.selection, len(latents)) if known else None
        siblings = [b for b in generation.branches.values() if b is not branch and b.step == position.step]
        view, weighed = generation.view, generation.guidance if generation.weighs and position.first_of_step else None
        keeps = self.settings.keeps_keys
        # the call by which the layout of the output is found
        seen = self.settings.schedule.skips and branch.output_map is None
        self.sites.prepare(
            given,
            branch,
            selection,
            view.tokens,
            position.time,
            images=view.images,
            references=view.references,
            siblings=siblings,
            weighed=weighed,
            keeps=keeps,
            with_text=generation.with_text,
            holds_text=self.settings.schedule.holds_text,
            shards=self._shards,
        )
        self.sites.prepare_text(given, branch, selection is not None, keeps)
        computed = None if self.sites.exit.rows is None else self.sites.exit.rows.images
        self._call = CallUnderWay(position, branch, computed, skips=known and generation.skipping)
        if weighed is not None or seen or (not known and branch.makes_buffers):
            # Compiled blocks must never see the buffers being made: that would be another graph for each layer. Nor
            # the attention being weighed or their outputs noted, once a generation: that would be further graphs.
            self._set_aside.put(map(self.model.get_submodule, self.sites.blocks))
        if not self._call.skips:
            self.sites.bring(branch)
        if seen:
            self._block_outputs.watch(map(self.model.get_submodule, self.sites.blocks))
        whole = generation.records[-1].num_tokens
        tokens = 0 if self._call.skips else selection.count if selection else whole
        with_text = selection is None or generation.with_text
        record = CallRecord(position.branch, tokens, Stopwatch(latents.device), given.form, with_text)
        self._keep_example(record, given)  # a report in another thread needs it for every recorded call
        generation.records[-1].calls.append(record)
        return given.gathered(self.sites.exit.rows)

    def _announce(self, position: CallPosition) -> None:
        """Tell the correction what the step computes; windows of one picture share a sampler, and go without."""
        correction, generation = self.timeline.correction, self.generation
        if correction is None:
            return
        if self._windows.label:
            correction.forget()
            return
        correction.begin_step(position, generation.records[-1], generation.selection, generation.view.grid)

    def complete(self, output: Tensor) -> Tensor:
        """Take in what the exit module gave: of N tokens at a full call, unchanged; of n, completed, otherwise."""
        call = self._call
        if call is None:
            return output
        if call.numbered is not None:
            return self.sites.exit.write(output, call.numbered)
        self._refuse_left_out(call)
        images, branch, time = self.sites.exit.read(output), call.branch, call.position.time
        if call.position.first_of_step:
            forecast = self._forecast(call)
            self.generation.note(images, forecast, call.selection is not None, self.sites.attention_weights())
        if call.selection is None:
            last = branch.reference if branch.prediction is None else branch.prediction
            if last is not None and last.shape != images.shape:
                last = None  # of another model, with other tokens
            branch.prediction = images.detach().clone()
            branch.reference = branch.prediction if last is None else last.to(images)
            branch.reuse.record(images, time)
            return output
        completed = branch.reuse.complete(images, call.selection, time)
        branch.prediction = completed.clone()
        return self.sites.exit.write(output, completed)

    def _refuse_left_out(self, call: CallUnderWay) -> None:
        """Raise CacheConflictError if a call that gets to its exit ran other parts than its branch's first one."""
        path, ran, call.completed = self._installation.displaced, self.sites.ran, True
        if path is not None:
            raise replaced(self.model, path)
        if call.branch.ran is None:
            call.branch.ran = ran
            return
        missing = call.branch.ran - ran
        if missing and (paths := without_guided(self.model, [path for path in self.map.paths if path in missing])):
            raise left_out(self.model, paths)

    def _without_exit(self, branch: BranchCache) -> TokenPruneError:
        """The error of a call that did not get to its exit."""
        exit_path = self.map.exit_site.path
        if branch.ran is not None:
            return left_out(self.model, [exit_path])
        return ModuleMapError(
            f"{type(self.model).__name__}: the module map does not fit: its exit {exit_path} did not run in a call of "
            f"the model. Name the projection that makes the output of all tokens; if this one does, take whatever "
            f"gave the output in its place off the model (a cache?)"
        )

    def run_or_skip(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's output: of its forward, or made of forecast tokens at a skipped step."""
        call = self._call
        if call is None or not call.skips:
            return forward(*args, **kwargs)
        if call.branch.output_map is None:
            raise RuntimeError("a generation starts with a full step")
        call.branch.prediction = call.branch.reuse.forecast(call.position.time)
        return call.branch.output_map(call.branch.prediction)

    def end_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Book-keeping after a call that went through."""
        call = self._call
        if call is not None and not call.skips and not call.completed:
            raise self._without_exit(call.branch)
        self.generation.records[-1].calls[-1].watch.mark()
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
        self.peak_host_bytes = max(self.peak_host_bytes, self.host_bytes)
        self.generation.end_call()
        if self.settings.schedule.skips and call is not None and call.selection is None and not call.skips:
            self._map_output(call, args, kwargs, output)
        self._block_outputs.leave()
        self._set_aside.take_back()
        self._end_call()
        self.timeline.leave()

    def fail_call(self) -> None:
        """An exception stopped this thread's call: start afresh with the next one, unless the caches are another's."""
        self.timeline.fail()

    def _end_call(self) -> None:
        self._call = None
        self.sites.clear()

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallArguments:
        return CallArguments(type(self.model).__name__, self.map, self.signature, args, kwargs)

    def _find_position(self, given: CallArguments, latents: Tensor) -> CallPosition:
        """Where the coming call stands among those of its window; what it begins for this model is begun."""
        label, position = self.timeline.advance(given.time, latents, self._branch_name.name, given.conditions)
        window = self._windows.enter(label)
        if not window.alive or window.generation.token is not position.generation:
            self._begin_generation(window, position, given)
        elif position.adopted:
            window.generation.adopt(position.adopted)
            self.generations += 1
        return replace(position, first_of_step=window.generation.last_step != position.step)

    def _begin_generation(self, window: Window, position: CallPosition, given: CallArguments) -> None:
        """Start anew; key and value buffers stay, for their memory, while the latents keep their shape."""
        self._shards = self._refuse_foreign()
        self._installation.stand_in_forward()
        self._forwards = ForwardWatch(self.model)
        refuse_other_inputs(self.name, self._shards, given)
        last = window.generation.branches
        label = self._windows.label
        inherited = self.timeline.handed_on(label, position)
        window.generation = self._new_generation(label, self._view(given), position.generation, inherited)
        window.alive = True
        if position.branch in last:
            self.sites.tidy()
            for key, former in last.items():
                branch = self.generation.branches[key] = self._new_branch(key)
                branch.take_memory(former)
        else:
            self.sites.forget_rows()
            self._output_maps.clear()
        self.generations += 1

    def _no_generation(self, label: str) -> Generation:
        return self._new_generation(label, PolicyView(self.map, "none", None, 0, ()), None, {})

    def _new_generation(
        self, label: str, view: PolicyView, token: object, inherited: Mapping[BranchKey, Tensor]
    ) -> Generation:
        full_steps = self.timeline.full_steps.setdefault(label, [])
        recorder = Recorder() if self.settings.trace else None
        return Generation(view, recorder, token, inherited, full_steps, self._shards)

    def _view(self, given: CallArguments) -> PolicyView:
        """What policies see of the coming generation."""
        settings, guidance = self.settings, self.settings.guidance or self.map.guidance
        images = count_images(given.latents, settings.guidance, self.map.guidance)
        references = self.map.references(given.arguments) if self.map.references is not None else (0, 0)
        return PolicyView(
            self.map, guidance, settings.guidance_scale, images, self.map.grid(given.arguments), references
        )

    def _new_branch(self, key: BranchKey, reference: Tensor | None = None) -> BranchCache:
        guidance = self.generation.view.guidance_of(key.shape[0])
        settings, make_room = self.settings, self._make_room if self.timeline.limit.is_set else None
        return BranchCache(settings.reuse, guidance, settings.cache_dtype, reference, make_room, self._depths)

    def _make_room(self, path: str, nbytes: int, made: int) -> None:
        """Ask for the memory of an attention module's keys and values, when so many modules have theirs."""
        left = max(0, len(self.map.attentions) - made - 1)
        self.timeline.limit.take(path, nbytes, left if self.host is None else min(left, AHEAD - 1))

    def _begin_branch(self, position: CallPosition, given: CallArguments) -> BranchCache:
        branches = self.generation.branches
        if position.branch not in branches:
            reference = self.generation.reference_of(position.branch, position.first_of_step)
            branches[position.branch] = self._new_branch(position.branch, reference)
        branch = branches[position.branch]
        branch.step = position.step
        return branch

    def _keep_example(self, record: CallRecord, given: CallArguments) -> None:
        """Keep what a call was given, the first one of its form, for reports to count its operations."""
        examples = self.generation.examples
        if (record.branch, record.form) not in examples:
            examples[record.branch, record.form] = shapes_of(given.given, self.map.reads_values)

    def _of_images(self, selection: Selection | None, batch: int) -> Selection | None:
        """The selection of each image out of all image tokens, for a batch that holds the images a number of times."""
        if selection is None:
            return None
        if batch % selection.batch_size:
            raise UnsupportedCallError(
                f"{type(self.model).__name__}: expected a batch with all {selection.batch_size} images, got {batch}"
            )
        view = self.generation.view
        before = view.references[0]
        return Selection(selection.index + before if before else selection.index, view.tokens)

    def _forecast(self, call: CallUnderWay) -> Tensor | None:
        """What the coming tokens would have been taken for, where anybody needs to know and there is a past."""
        if not self.generation.asks_error or call.branch.prediction is None:
            return None
        forecast = call.branch.reuse.expect(call.position.time)
        return forecast if call.selection is None else call.selection.gather(forecast)

    def _map_output(self, call: CallUnderWay, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Find out how the model lays out its tokens, by runs in which its blocks compute nothing."""
        tokens = call.branch.prediction
        if tokens is None:
            return
        key = (tokens.shape, tokens.dtype, str(tree_structure(output)))
        if key not in self._output_maps:

            def rearrange(numbered: Tensor) -> Any:
                call.numbered = numbered
                with self._block_outputs.stand_in():
                    return self.model.forward(*args, **kwargs)

            site = self.map.exit_site
            mixed = site.layout != "image" or not site.references
            self._output_maps[key] = OutputMap(tokens, output, rearrange, mixed)
        call.branch.output_map = self._output_maps[key]
