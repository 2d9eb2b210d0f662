"""The hooks of one module map on one model: they gather, attend to cached keys, and scatter.

Hook functions are module-level and find their state through the module, so that a compiled block is the same
program in every layer. Order of events in one call of the model: `_before_model` decides what to compute,
`_before_block` reduces the image tokens at the entry, the attention hooks (attention.py) complete keys and values,
`_after_exit` completes the prediction, `_after_model` cleans up, also after an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from tokenprune.attention import ATTRIBUTE, AttentionState, enter_attention, leave_attention
from tokenprune.cache import BranchCache, KeyValueBuffer
from tokenprune.errors import AlreadyPrunedError, SelectionError, UnsupportedCallError
from tokenprune.grid import TokenGrid, num_tokens
from tokenprune.modulemap import Guidance, ModuleMap
from tokenprune.policy import Memory, Observation, SelectionPolicy
from tokenprune.report import CallRecord, StepRecord, Stopwatch
from tokenprune.reuse import Reuse
from tokenprune.run import BranchKey, Moment, Run
from tokenprune.schedule import Schedule
from tokenprune.selection import Selection

MASKED = "_tokenprune"


class ConstantState:
    """What the hooks of a text-only module share: where outputs are kept, and whether the coming call reuses them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.outputs: dict[str, Tensor] = {}
        self.reused = False


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
    ) -> None:
        module_map.check(model)
        self.model = model
        self.map = module_map
        self.policy = policy
        self.schedule = schedule
        self.reuse = reuse
        self.guidance = guidance
        self.guidance_scale = guidance_scale
        self.signature = inspect.signature(model.forward)
        block = inspect.signature(model.get_submodule(module_map.blocks[0]).forward)
        self.hidden_place = list(block.parameters).index(module_map.hidden)
        self.attentions = [AttentionState(site) for site in module_map.attentions]
        self.constants = [ConstantState(path) for path in module_map.constants]
        self.run = Run(module_map.time_rises)
        self.generations = 0
        self.peak_bytes = 0
        self.records: list[StepRecord] = []
        self._handles: list[RemovableHandle] = []
        self._eager: Any = None
        self._forget()

    def install(self) -> None:
        """Register all hooks.

        Raises:
            AlreadyPrunedError: the model carries hooks of another handle.
        """
        if MASKED in self.model.__dict__:
            raise AlreadyPrunedError(
                f"{type(self.model).__name__}: already pruned by another handle; call its remove() first"
            )
        self._attach(self.model, MASKED, self, before=_before_model)
        self._handles.append(self.model.register_forward_hook(_after_model, always_call=True))
        for path in self.map.blocks:
            self._attach(self.model.get_submodule(path), MASKED, self, before=_before_block)
        for state in self.attentions:
            module = self.model.get_submodule(state.site.path)
            self._attach(module, ATTRIBUTE, state)
            self._handles.append(module.register_forward_pre_hook(enter_attention))
            self._handles.append(module.register_forward_hook(leave_attention))
        for constant in self.constants:
            self._attach(self.model.get_submodule(constant.path), MASKED, constant, _before_constant, _after_constant)
        self._attach(self.model.get_submodule(self.map.exit), MASKED, self, after=_after_exit)

    def uninstall(self) -> None:
        """Take all hooks off; the model is as it was."""
        self.unwind()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for path in ("", *self.map.paths):
            attributes = self.model.get_submodule(path).__dict__
            attributes.pop(MASKED, None)
            attributes.pop(ATTRIBUTE, None)

    def remove(self) -> None:
        """Take all hooks off and free the caches."""
        self.uninstall()
        self.reset()

    def reset(self) -> None:
        """Free the caches; the next call starts a generation."""
        self.run.reset()
        self._forget()

    def _end_eager(self) -> None:
        if self._eager is not None:
            self._eager.__exit__(None, None, None)
            self._eager = None

    def unwind(self) -> None:
        """Leave every attention mode that an exception or an interrupt left behind."""
        self._end_eager()
        stack = torch.overrides._get_current_function_mode_stack()
        if not any(state.mode is not None and state.mode in stack for state in self.attentions):
            for state in self.attentions:
                state.mode = None
            return
        own = {id(state.mode) for state in self.attentions if state.mode is not None}
        popped = []
        while own:
            mode = torch.overrides._pop_mode()
            if id(mode) in own:
                own.discard(id(mode))
            else:
                popped.append(mode)
        for mode in reversed(popped):
            torch.overrides._push_mode(mode)
        for state in self.attentions:
            state.mode = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of tensor memory that the caches hold now."""
        memory = sum(tensor.nbytes for tensor in self.memory.values())
        return memory + sum(branch.nbytes for branch in self.branches.values())

    def _attach(
        self,
        module: nn.Module,
        attribute: str,
        state: object,
        before: Callable[..., Any] | None = None,
        after: Callable[..., Any] | None = None,
    ) -> None:
        module.__dict__[attribute] = state
        if before is not None:
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        if after is not None:
            self._handles.append(module.register_forward_hook(after))

    def _forget(self) -> None:
        self.branches: dict[BranchKey, BranchCache] = {}
        self.memory: Memory = {}
        self.copies: Guidance = "none"
        self.selection: Selection | None = None
        self.previous: Selection | None = None
        self.pruned_steps = 0
        self.branch: BranchCache | None = None
        self.moment: Moment | None = None
        self.grid: TokenGrid = ()
        self.token_counts: Tensor | None = None
        self.call_selection: Selection | None = None
        for state in self.attentions:
            state.buffer = KeyValueBuffer()
            state.rows = None

    # One call of the model -------------------------------------------------------------------------------------

    def begin_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decide what this call computes; returns the model's arguments, per-token ones gathered."""
        self.unwind()
        if torch.is_grad_enabled():
            raise UnsupportedCallError(
                f"{type(self.model).__name__}: pruning keeps keys and values from earlier steps and cannot give "
                f"gradients; call the model under torch.no_grad() or remove() the handle to train"
            )
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        latents, time = (
            self._argument(bound.arguments, self.map.latents),
            self._argument(bound.arguments, self.map.time),
        )
        grid = self.map.grid(bound.arguments)
        tokens = num_tokens(grid)
        moment = self.run.advance(time, latents)
        if moment.first_of_generation:
            self._begin_generation(moment, latents)
        if moment.first_of_step:
            self._begin_step(moment, grid, tokens)
        self.moment, self.grid = moment, grid
        if moment.branch not in self.branches:
            self.branches[moment.branch] = BranchCache(self.reuse.start())
        self.branch = self.branches[moment.branch]
        known = self.branch.prediction is not None
        self.call_selection = self._for_batch(self.selection, len(latents)) if self.selection and known else None
        self._prepare_sites(bound.arguments, tokens)
        if self.branch.example is None:
            self.branch.example = tree_map(_on_meta, (args, kwargs))
        if not known and any(state.buffer.length == 0 for state in self.attentions):
            # Compiled blocks must never see the buffers being made: that would be another graph for each layer.
            self._eager = torch.compiler.set_stance("force_eager")
        call = CallRecord(moment.branch, self.call_selection is None, Stopwatch(latents.device))
        self.records[-1].calls.append(call)
        if self.call_selection is not None and any(
            bound.arguments.get(name) is not None for name in self.map.token_inputs
        ):
            for name in self.map.token_inputs:
                bound.arguments[name] = _gather(self.call_selection, bound.arguments[name])
            return bound.args, bound.kwargs
        return args, kwargs

    def complete(self, output: Tensor) -> Tensor:
        """Take in what the exit module gave: [B, N, C] at a full call, unchanged; [B, n, C] completed otherwise."""
        if self.branch is None or self.moment is None:
            return output
        if self.moment.first_of_step:
            self._count_tokens(output)
        if self.call_selection is None:
            last = self.branch.prediction
            self.branch.prediction = output.detach().clone()
            self.branch.reference = self.branch.prediction if last is None else last
            self.branch.reuse.record(output, self.moment.time)
            return output
        completed = self.branch.reuse.complete(output, self.call_selection, self.moment.time)
        self.branch.prediction = completed.clone()
        return completed

    def _count_tokens(self, output: Tensor) -> None:
        images = len(output) if self.copies == "none" else len(output) // 2
        if self.token_counts is None:
            tokens = self.records[-1].num_tokens
            self.token_counts = torch.zeros(images, tokens, dtype=torch.int32, device=output.device)
        self.token_counts += 1 if self.call_selection is None or self.selection is None else self.selection.mask()

    def end_call(self) -> None:
        """Book-keeping after a call that went through."""
        self._end_eager()
        call = self.records[-1].calls[-1]
        call.watch.mark()
        if call.full:
            self.peak_bytes = max(self.peak_bytes, self.cache_bytes)
        self.call_selection = None

    def abandon(self) -> None:
        """An exception stopped the call: leave modes and start afresh with the next one."""
        self.unwind()
        self.reset()

    def _argument(self, arguments: Mapping[str, Any], name: str) -> Any:
        value = arguments.get(name)
        if value is None:
            raise UnsupportedCallError(f"{type(self.model).__name__}: expected the argument {name!r}, got none")
        return value

    def _begin_generation(self, moment: Moment, latents: Tensor) -> None:
        shape_changed = self.moment is not None and self.moment.branch[1] != moment.branch[1]
        buffers = {} if shape_changed else {key: branch.buffers for key, branch in self.branches.items()}
        self._forget()
        self.branches = {key: BranchCache(self.reuse.start(), buffers=kept) for key, kept in buffers.items()}
        self.records = []
        self.generations += 1
        self.copies = self._find_guidance(latents)

    def _find_guidance(self, latents: Tensor) -> Guidance:
        if self.guidance is not None:
            return self.guidance
        batch = len(latents)
        if batch % 2 == 0 and torch.equal(latents[: batch // 2], latents[batch // 2 :]):
            return self.map.guidance
        return "none"

    def _begin_step(self, moment: Moment, grid: TokenGrid, tokens: int) -> None:
        count = self.schedule.count(moment.step, moment.time, tokens)
        lead = next(iter(self.branches.values()), None)
        watch = None
        if count >= tokens or lead is None or lead.prediction is None:
            self.selection, self.previous, self.pruned_steps = None, None, 0
            count = tokens
        else:
            watch = Stopwatch(lead.prediction.device)
            self.selection = self._select(moment, grid, count)
            self.previous = self.selection
            self.pruned_steps += 1
            watch.mark()
        self.records.append(StepRecord(moment.step, moment.time, count, tokens, watch))

    def _select(self, moment: Moment, grid: TokenGrid, count: int) -> Selection:
        prediction = self._noise("prediction")
        reference = self._noise("reference")
        seen = Observation(
            prediction, reference, count, grid, moment.step, self.pruned_steps, moment.time, self.previous
        )
        selection = self.policy.select(seen, self.memory)
        name = type(self.policy).__name__
        if not isinstance(selection, Selection):
            raise SelectionError(
                f"{name}.select at step {moment.step}: expected a Selection (Selection.top or Selection.from_index "
                f"makes one), got {type(selection).__name__}"
            )
        expected = (len(prediction), count, prediction.shape[1])
        came = (selection.batch_size, selection.count, selection.num_tokens)
        if came != expected:
            raise SelectionError(
                f"{name}.select at step {moment.step}: expected indices [B, n] = {list(expected[:2])} out of "
                f"{expected[2]} tokens, got {list(came[:2])} out of {came[2]}"
            )
        return selection

    def _noise(self, which: Literal["prediction", "reference"]) -> Tensor:
        """What policies see of the latest or the reference prediction: the conditional or guided noise [B, N, C]."""
        conditional, *others = (self._noise_channels(getattr(branch, which)) for branch in self._guidance_branches())
        unconditional = others[0] if others else None
        if self.copies != "none":
            halves = conditional.chunk(2)
            unconditional, conditional = halves if self.copies == "uncond-first" else reversed(halves)
        if self.guidance_scale is None or unconditional is None:
            return conditional
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _guidance_branches(self) -> list[BranchCache]:
        """The branches with a prediction whose latents have the lead's shape, the lead (conditional) first."""
        shape = next(iter(self.branches))[1]
        found = [b for (_, other), b in self.branches.items() if other == shape and b.prediction is not None]
        return found[:1] if self.guidance_scale is None else found[:2]

    def _noise_channels(self, prediction: Tensor) -> Tensor:
        if self.map.noise_channels is None:
            return prediction
        pixels = prediction.unflatten(-1, (-1, self.map.output_channels or 1))
        return pixels[..., : self.map.noise_channels].flatten(-2)

    def _for_batch(self, selection: Selection, batch: int) -> Selection:
        if batch % selection.batch_size:
            raise UnsupportedCallError(
                f"{type(self.model).__name__}: expected a batch with all {selection.batch_size} images, got {batch}"
            )
        return selection.repeat(batch // selection.batch_size)

    def _prepare_sites(self, arguments: Mapping[str, Any], tokens: int) -> None:
        assert self.branch is not None
        for state in self.attentions:
            state.pruned = self.call_selection is not None
            state.num_tokens = tokens
            state.buffer = self.branch.buffers.setdefault(state.site.path, KeyValueBuffer())
        rows: dict[tuple[str, int], Tensor] = {}
        if self.call_selection is not None:
            for state in self.attentions:
                state.rows = None
                if state.buffer.length == 0:  # a layer that this branch skips
                    continue
                key = (state.site.layout, state.buffer.length)
                if key not in rows:
                    rows[key] = state.fresh_rows(self.call_selection)
                state.rows = rows[key]
        text = arguments.get(self.map.text) if self.map.text else None
        known = self.branch.text
        same = known is not None and known[0] is text and known[1] == text._version
        for constant in self.constants:
            constant.reused = self.call_selection is not None and same
            constant.outputs = self.branch.constants
        if not same and isinstance(text, Tensor):
            self.branch.text = (text, text._version)


def _gather(selection: Selection, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_gather(selection, item) for item in value)
    return selection.gather(value) if isinstance(value, Tensor) else value


def _before_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    masked: MaskedModule = model.__dict__[MASKED]
    try:
        return masked.begin_call(args, kwargs)
    except Exception:
        masked.abandon()
        raise


def _after_model(model: nn.Module, args: Any, output: Any) -> None:
    masked: MaskedModule = model.__dict__[MASKED]
    if output is None:  # called on the way of an exception
        masked.abandon()
    else:
        masked.end_call()


def _before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    masked: MaskedModule = getattr(block, MASKED)
    selection, name, place = masked.call_selection, masked.map.hidden, masked.hidden_place
    if selection is None:
        return None
    hidden = kwargs[name] if name in kwargs else args[place]
    if hidden.shape[1] != selection.num_tokens:
        return None
    gathered = selection.gather(hidden)
    if name in kwargs:
        return args, {**kwargs, name: gathered}
    return (*args[:place], gathered, *args[place + 1 :]), kwargs


def _before_constant(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    state: ConstantState = getattr(module, MASKED)
    return ((args[0][:, :0], *args[1:]), kwargs) if state.reused else None


def _after_constant(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    state: ConstantState = getattr(module, MASKED)
    if not state.reused:
        state.outputs[state.path] = output
    return state.outputs[state.path]


def _after_exit(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    masked: MaskedModule = getattr(module, MASKED)
    return masked.complete(output)


def _on_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
