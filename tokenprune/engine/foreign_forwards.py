"""What a model and its blocks run in the place of their classes' own forward: caches and patches of other packages.

Such a package puts a function of its own on a model (`model.forward = ...`), on a block, or on their class, or puts a
module of its own in the place of blocks. Wrappers that say what they wrap (`functools.wraps`) and come to the class's
own forward are no such thing: accelerate, diffusers' hooks, torch.compile and this package wrap so.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from tokenprune.engine.parallelism import CONFIG
from tokenprune.errors import CacheConflictError, HookConflictError

TRUSTED = frozenset({"accelerate", "builtins", "diffusers", "peft", "tokenprune", "torch"})
"""Packages that may put forwards or modules of theirs on others' models: they run all of the model, for every token.

What diffusers' hooks do is known by their registry.
"""


WAYS_OUT = {
    "cache_dit": "cache_dit.disable_cache(pipe)",
    "DeepCache": "disable() of the DeepCacheSDHelper",
    "nunchaku": "load the model anew and leave out apply_cache_on_pipe, as nunchaku cannot take it off",
    "para_attn": "load the model anew and leave out apply_cache_on_pipe, as ParaAttention cannot take it off",
    "tomesd": "tomesd.remove_patch(pipe)",
    "xfuser": "load the pipeline anew with diffusers' own class in place of xDiT's",
}
"""How what a package put on a model is taken off, by the package's name."""


class ForwardWatch:
    """What the modules of a model run now, and on which devices, so that a change is noticed at the cost of look-ups.

    Args:
        model: the model; modules that come into it later are not watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._seen = self._now()

    @property
    def changed(self) -> bool:
        """Whether one has got another class or another forward, of its own or by its class, or devices of its own."""
        return self._now() != self._seen

    def _now(self) -> list[Any]:
        kinds = [type(module) for module in self._modules]
        forwards = [vars(module).get("forward") for module in self._modules]
        configs = [vars(module).get(CONFIG) for module in self._modules[:1]]
        return [kinds, forwards, [kind.forward for kind in dict.fromkeys(kinds)], configs]


def refuse_foreign_forwards(model: nn.Module, blocks: Iterable[str] = ()) -> None:
    """Raise if the model, or one of its blocks, runs a forward that is not its class's own.

    Args:
        model: the model.
        blocks: paths of its blocks.

    Raises:
        CacheConflictError: a forward comes from another package than the class.
    """
    modules = dict(model.named_modules())
    paths = [path for path in ("", *blocks) if path in modules]
    found = {part.place: part for path in paths for part in _foreign_forwards(path, modules[path])}
    if not found:
        return
    first, *more = found.values()
    others = f" (and {len(more)} more)" if more else ""
    package, way_out = _package(first.source), first.way_out
    if package in WAYS_OUT:
        way_out = f"{WAYS_OUT[package]}; if that leaves it behind: {way_out}"
    name = getattr(first.source, "__qualname__", type(first.source).__qualname__)
    raise CacheConflictError(
        f"{type(model).__name__}: {first.place}{others} is replaced by {name} of {_module(first.source)} ({package}), "
        f"which may leave out work that pruning relies on, as caches of steps and blocks do; expected one of the two. "
        f"Take it off first ({way_out}), or remove() the handle"
    )


@contextlib.contextmanager
def misfits_explained(model: nn.Module) -> Iterator[None]:
    """An error within, of a map that does not fit the model, is a conflict where a module of others wraps blocks.

    Raises:
        CacheConflictError: there is such a module.
    """
    try:
        yield
    except HookConflictError:
        raise
    except Exception as error:
        found = _wrapper(model)
        if found is None:
            raise
        raise replaced(model, found) from error


def replaced(model: nn.Module, path: str) -> CacheConflictError:
    """The error of a module of others that stands at this path, where blocks or other parts of the model should."""
    found = _wrapper(model) or _stranger(model, path) or path
    kind: type = type(dict(model.named_modules()).get(found))
    package = _package(kind)
    taken_off = WAYS_OUT.get(package, "as its package says, or by loading the model anew")
    return CacheConflictError(
        f"{type(model).__name__}: {path} is replaced by {kind.__qualname__} of {kind.__module__} ({package}), which "
        f"may leave out work that pruning relies on; expected one of the two. Take it off first ({taken_off}), or "
        f"remove() the handle"
    )


def left_out(model: nn.Module, paths: Sequence[str]) -> CacheConflictError:
    """The error of a call that left out parts which its guidance branch's first call ran."""
    first, *others = paths
    return CacheConflictError(
        f"{type(model).__name__}: this call left out {first}{f' (and {len(others)} more)' if others else ''}, "
        f"which the first call of its guidance branch ran: a cache of steps, blocks or attention is on the model, and "
        f"leaves out work that pruning relies on; expected one of the two. Take it off first, or remove() the handle; "
        f"if you switched layers off yourself, call the handle's reset() when you do"
    )


class _ForeignForward(NamedTuple):
    """A forward that does not come from its class's package.

    Attributes:
        place: where it is.
        source: the function or object.
        way_out: how it is taken off.
    """

    place: str
    source: Any
    way_out: str


def _foreign_forwards(path: str, module: nn.Module) -> Iterator[_ForeignForward]:
    """What stands in for the module's forward, and for its class's forward."""
    kind = type(module)
    source = _foreign_part(vars(module).get("forward"), set(map(_package, kind.__mro__)))
    if source is not None:
        found = f"model.get_submodule({path!r})" if path else "model"
        yield _ForeignForward(f"{path}.forward".lstrip("."), source, f"del {found}.forward")
    defining = next(base for base in kind.__mro__ if "forward" in vars(base))
    source = _foreign_part(vars(defining)["forward"], set(map(_package, defining.__mro__)))
    if source is not None:
        place = f"{defining.__qualname__}.forward"
        yield _ForeignForward(
            place, source, f"give {place} the function back that it was, or begin a process without the patch"
        )


def _foreign_part(forward: Any, own: Container[str]) -> Any:
    """What of a forward comes from another package than the class's own ones; None if nothing does.

    Wrappers say what they wrap, truly or not, so those of packages that are known for caches count, too.
    """
    part = forward
    while part is not None:
        code = part.func if isinstance(part, (functools.partial, functools.partialmethod)) else part
        package, wrapped = _package(code), getattr(part, "__wrapped__", None if code is part else code)
        if package in WAYS_OUT and package not in own:
            return code
        if wrapped is None:
            return None if not package or package in TRUSTED or package in own else code
        part = wrapped
    return None


def _module(of: Any) -> str:
    """The module that a class or a function was defined in, which a wrapper's own name hides; empty where unknown."""
    function = getattr(of, "__func__", of)
    return getattr(function, "__globals__", {}).get("__name__") or getattr(of, "__module__", None) or ""


def _package(of: Any) -> str:
    """The package that a class or a function was defined in; empty where it does not say."""
    return _module(of).partition(".")[0]


def _wrapper(model: nn.Module) -> str | None:
    """The path of a module of another package that holds modules of the model's own package."""
    return next(
        (
            path
            for path, module in _strangers(model)
            if any(_package(type(part)) in _packages(model) for part in _held(module))
        ),
        None,
    )


def _stranger(model: nn.Module, path: str) -> str | None:
    """The path of a module of another package at or under a path."""
    return next((found for found, _ in _strangers(model) if f"{found}.".startswith(f"{path}.")), None)


def _strangers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are neither the model's package's own nor of a trusted one, and their paths."""
    known = _packages(model) | TRUSTED
    return ((path, module) for path, module in model.named_modules() if _package(type(module)) not in known)


def _packages(model: nn.Module) -> set[str]:
    """The packages that the model's class and those that it is derived from were defined in; not torch."""
    return {_package(type(model)), *map(_package, type(model).__mro__)} - {"torch", "builtins"}


def _held(module: nn.Module) -> Iterator[object]:
    """The parts of a module, and what it holds in plain lists beside them."""
    yield from module.modules()
    for value in vars(module).values():
        if isinstance(value, (list, tuple)):
            yield from value
