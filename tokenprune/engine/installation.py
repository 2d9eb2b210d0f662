"""The hooks of one map on one model, and the methods that stand in for the model's own: put on, taken off together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tokenprune.engine import attention_hooks, block_hooks, exit_hooks, text_hooks
from tokenprune.engine.block_hooks import BlockState
from tokenprune.engine.copies import COPYING, reduce_plainly
from tokenprune.engine.model_hooks import (
    ATTRIBUTES,
    MASKED,
    after_exit,
    after_model,
    before_model,
    forward_or_skip,
    named_calls,
)
from tokenprune.errors import AlreadyPrunedError

PART_HOOKS: tuple[Any, ...] = (
    block_hooks.before_block,
    exit_hooks.after_expanded,
    attention_hooks.enter_attention,
    attention_hooks.leave_attention,
    text_hooks.before_text_layer,
    text_hooks.after_text_layer,
    after_exit,
)
"""Hooks of the model's parts."""


class HookInstallation:
    """What `MaskedModule` has put on its model.

    Args:
        masked: the `MaskedModule`; its model, map, and the states of its parts.
    """

    def __init__(self, masked: Any) -> None:
        self._masked = masked
        self._model: nn.Module = masked.model
        self._handles: list[RemovableHandle] = []
        self._parts: list[RemovableHandle] = []
        self._held: list[tuple[nn.Module, str]] = []
        self._replaced: dict[str, Any] = {}
        self._standing_in: dict[str, Any] = {}

    def put_on(self) -> None:
        """Register all hooks.

        Raises:
            AlreadyPrunedError: the model carries hooks of another handle.
        """
        model = self._model
        if MASKED in model.__dict__:
            raise AlreadyPrunedError(
                f"{type(model).__name__}: already pruned by another handle; call its remove() first"
            )
        model.__dict__[MASKED] = self._masked
        begin, end = torch.compiler.disable(before_model), torch.compiler.disable(after_model)
        self._handles.append(model.register_forward_pre_hook(begin, with_kwargs=True))
        self._handles.append(model.register_forward_hook(end, with_kwargs=True, always_call=True))
        self.put_on_parts()
        self._stand_in(COPYING, functools.partial(reduce_plainly, model, ATTRIBUTES, self._replaced))
        self.stand_in_forward()
        if hasattr(model, "cache_context"):
            names: Any = model.cache_context
            self._stand_in("cache_context", functools.partial(named_calls, self._masked, names))

    def put_on_parts(self) -> None:
        """Register the hooks of the model's parts on the modules that stand there now."""
        masked = self._masked
        for site in masked.map.block_sites:
            masked.blocks[site.path] = BlockState(site, self._model.get_submodule(site.path))
            self._fit(
                site.path, block_hooks.ATTRIBUTE, masked.blocks[site.path], before=block_hooks.before_block, kwargs=True
            )
        for state in masked.attentions:
            enter, leave = attention_hooks.enter_attention, attention_hooks.leave_attention
            self._fit(state.site.path, attention_hooks.ATTRIBUTE, state, before=enter, after=leave)
        for state in masked.constants:
            before, after = text_hooks.before_text_layer, text_hooks.after_text_layer
            self._fit(state.path, text_hooks.ATTRIBUTE, state, before=before, after=after)
        site = masked.map.exit_site
        if site.expand is not None:
            self._fit(site.expand, exit_hooks.EXPANDED, masked.expand, after=exit_hooks.after_expanded)
        self._fit(site.path, MASKED, masked, after=torch.compiler.disable(after_exit))
        self._places = ModuleWatch(self._model, masked.map.paths)

    def take_off_parts(self) -> None:
        """Remove the hooks of the model's parts, also from what has taken a part's place."""
        for handle in self._parts:
            handle.remove()
        for module, attribute in self._held:
            module.__dict__.pop(attribute, None)
        for module in self._model.modules():  # what takes a module's place may have been given its hooks
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for number in [number for number, hook in hooks.items() if inspect.unwrap(hook) in PART_HOOKS]:
                    del hooks[number]
        self._parts.clear()
        self._held.clear()

    def take_off(self) -> None:
        """Remove everything; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.take_off_parts()
        own = self._model.__dict__
        own.pop(MASKED, None)
        for name, former in self._replaced.items():
            if own.get(name) is not self._standing_in[name]:
                continue  # somebody wrapped or replaced it since
            del own[name]
            if former is not None:
                own[name] = former
        self._replaced.clear()
        self._standing_in.clear()

    @property
    def displaced(self) -> bool:
        """Whether other modules took the place of some that carry hooks (wrapped, unwrapped or quantised layers)."""
        return self._places.changed

    def stand_in_forward(self) -> None:
        """Put ours before the model's forward where steps may be skipped, unless it is still under others' wrappers."""
        forward: Any = self._model.forward
        ours = self._standing_in.get("forward")
        skips = self._masked.schedule.skips
        if not skips or (ours and inspect.unwrap(forward, stop=lambda found: found is ours) is ours):
            return
        self._stand_in("forward", functools.wraps(forward)(functools.partial(forward_or_skip, self._masked, forward)))

    def _stand_in(self, name: str, value: Any) -> None:
        """Give the model a method of its own, until all is taken off."""
        self._replaced[name] = self._model.__dict__.get(name)
        self._standing_in[name] = self._model.__dict__[name] = value

    def _fit(
        self,
        path: str,
        attribute: str,
        state: object,
        before: Callable[..., Any] | None = None,
        after: Callable[..., Any] | None = None,
        kwargs: bool = False,
    ) -> None:
        """Give a part the state that its hooks find there, and the hooks."""
        module = self._model.get_submodule(path)
        module.__dict__[attribute] = state
        self._held.append((module, attribute))
        if before is not None:
            self._parts.append(module.register_forward_pre_hook(before, with_kwargs=kwargs))
        if after is not None:
            self._parts.append(module.register_forward_hook(after))


class ModuleWatch:
    """Which modules stand at given paths of a model, so that replaced ones are noticed at the cost of dict look-ups."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        prefixes = {path.rsplit(".", drop)[0] for path in paths for drop in range(path.count(".") + 1)}
        self._links = []
        for prefix in sorted(prefixes - {""}):
            parent, _, name = prefix.rpartition(".")
            modules = model.get_submodule(parent)._modules
            self._links.append((modules, name, modules[name]))

    @property
    def changed(self) -> bool:
        """Whether another module stands at one of the paths by now."""
        return any(modules.get(name) is not module for modules, name, module in self._links)
