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
from tokenprune.engine.copies import COPYING, reduce_plainly
from tokenprune.engine.model_hooks import (
    ATTRIBUTES,
    MASKED,
    CallHandler,
    after_exit,
    after_model,
    before_model,
    forward_or_skip,
    named_calls,
)
from tokenprune.engine.sites import Sites
from tokenprune.errors import AlreadyPrunedError
from tokenprune.modulemap import ModuleMap

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


class Claim:
    """That a model is pruned, and by whom; with the methods that stand in for its own meanwhile.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._owner: object = None
        self._replaced: dict[str, Any] = {}
        self._standing_in: dict[str, Any] = {}

    def take(self, owner: object) -> None:
        """Mark the model as the owner's; copies of it are plain models.

        Raises:
            AlreadyPrunedError: it is another's.
        """
        if MASKED in self._model.__dict__:
            raise AlreadyPrunedError(
                f"{type(self._model).__name__}: already pruned by another handle; call its remove() first. If you "
                f"lost it, tokenprune.remove(model_or_pipe) takes it off, tokenprune.handle_of(model_or_pipe) gives it"
            )
        self._owner = self._model.__dict__[MASKED] = owner
        self.stand_in(COPYING, functools.partial(reduce_plainly, self._model, ATTRIBUTES, self._replaced))

    def stand_in(self, name: str, value: Any) -> None:
        """Give the model a method of its own, until it is released."""
        self._replaced[name] = self._model.__dict__.get(name)
        self._standing_in[name] = self._model.__dict__[name] = value

    def stands_in(self, name: str) -> bool:
        """Whether ours is still the model's method of this name, or under the wrappers of others."""
        ours = self._standing_in.get(name)
        return ours is not None and inspect.unwrap(getattr(self._model, name), stop=lambda f: f is ours) is ours

    def release(self) -> None:
        """Give the model its own methods again, but for those that somebody wrapped or replaced since."""
        own = self._model.__dict__
        if own.get(MASKED) is self._owner:
            own.pop(MASKED, None)
        for name, former in self._replaced.items():
            if own.get(name) is not self._standing_in[name]:
                continue
            del own[name]
            if former is not None:
                own[name] = former
        self._replaced.clear()
        self._standing_in.clear()


class ModuleWatch:
    """Which modules stand at given paths of a model, so that replaced ones are noticed at the cost of dict look-ups."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        prefixes = {path.rsplit(".", drop)[0] for path in paths for drop in range(path.count(".") + 1)}
        self._links = []
        for prefix in sorted(prefixes - {""}):
            parent, _, name = prefix.rpartition(".")
            modules = model.get_submodule(parent)._modules
            self._links.append((prefix, modules, name, modules[name]))

    @property
    def changed(self) -> str | None:
        """The first of the paths, by name, where another module stands by now; None while there is none."""
        for path, modules, name, module in self._links:
            if modules.get(name) is not module:
                return path
        return None


class HookInstallation:
    """What is put on a model.

    Args:
        model: the model.
        module_map: where its parts are.
        sites: what the hooks of its parts find there.
        handler: what the hooks of the model itself and of its exit tell.
        skips: whether the model's forward may be skipped.
    """

    def __init__(
        self, model: nn.Module, module_map: ModuleMap, sites: Sites, handler: CallHandler, skips: bool
    ) -> None:
        self._model, self._map, self._sites, self._handler, self._skips = model, module_map, sites, handler, skips
        self._claim = Claim(model)
        self._handles: list[RemovableHandle] = []
        self._parts: list[RemovableHandle] = []
        self._held: list[tuple[nn.Module, str]] = []
        self._watch: ModuleWatch | None = None

    def put_on(self) -> None:
        """Register all hooks.

        Raises:
            AlreadyPrunedError: the model carries hooks of another handle.
        """
        model = self._model
        self._claim.take(self._handler)
        begin, end = torch.compiler.disable(before_model), torch.compiler.disable(after_model)
        self._handles.append(model.register_forward_pre_hook(begin, with_kwargs=True))
        self._handles.append(model.register_forward_hook(end, with_kwargs=True, always_call=True))
        self.put_on_parts()
        self.stand_in_forward()
        if hasattr(model, "cache_context"):
            names: Any = model.cache_context
            self._claim.stand_in("cache_context", functools.partial(named_calls, self._handler, names))

    def put_on_parts(self) -> None:
        """Register the hooks of the model's parts on the modules that stand there now."""
        sites = self._sites
        sites.find_blocks(self._model)
        for path, block in sites.blocks.items():
            self._fit(path, block_hooks.ATTRIBUTE, block, before=block_hooks.before_block, kwargs=True)
        for attention in sites.attentions:
            enter, leave = attention_hooks.enter_attention, attention_hooks.leave_attention
            self._fit(attention.site.path, attention_hooks.ATTRIBUTE, attention, before=enter, after=leave)
        for layer in sites.text_layers:
            before, after = text_hooks.before_text_layer, text_hooks.after_text_layer
            self._fit(layer.path, text_hooks.ATTRIBUTE, layer, before=before, after=after)
        site = self._map.exit_site
        if site.expand is not None:
            self._fit(site.expand, exit_hooks.EXPANDED, sites.expand, after=exit_hooks.after_expanded)
        self._fit(site.path, MASKED, self._handler, after=torch.compiler.disable(after_exit))
        self._watch = ModuleWatch(self._model, self._map.paths)

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
        self._watch = None
        self._watch = None

    def take_off(self) -> None:
        """Remove everything; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.take_off_parts()
        self._claim.release()

    @property
    def displaced(self) -> str | None:
        """Where another module took the place of one that carries hooks (wrapped, unwrapped or quantised layers).

        The model itself, by its empty name, while its parts carry none.
        """
        return "" if self._watch is None else self._watch.changed

    def stand_in_forward(self) -> None:
        """Put ours before the model's forward where steps may be skipped, unless it is still under others' wrappers."""
        if self._skips and not self._claim.stands_in("forward"):
            forward: Any = self._model.forward
            ours = functools.wraps(forward)(functools.partial(forward_or_skip, self._handler, forward))
            self._claim.stand_in("forward", ours)

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
