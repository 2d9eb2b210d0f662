"""What diffusers' `enable_parallelism` did to a model: served, or refused by name.

Context parallelism hangs hooks on modules of the model: one that divides the sequence of tokens before the blocks, one
that joins it behind the last projection; attention then sees all tokens and a part of the heads (Ulysses). Torch runs
the hooks of pruning around those: arguments are gathered before they are divided, and the exit's output is completed
when it was joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from tokenprune.engine.call_arguments import CallArguments
from tokenprune.engine.shards import ALONE, Shards
from tokenprune.errors import HookConflictError, UnsupportedCallError
from tokenprune.modulemap import ModuleMap

CONFIG = "_parallel_config"
"""Attribute of models and of their attention processors with diffusers' configuration."""

REGISTRY = "_diffusers_hook"
"""Attribute of modules with diffusers' registry of hooks."""

SPLIT, JOIN = "ContextParallelSplitHook", "ContextParallelGatherHook"
DIVIDING = frozenset({SPLIT, JOIN})
"""Classes of hooks that divide sequences, and join them."""


class Divider(NamedTuple):
    """A hook that divides sequences, or joins them.

    Attributes:
        path: of its module.
        joins: whether it joins.
        names: the arguments that it divides, names of the module's; none where it divides what the module returns.
        config: the `ContextParallelConfig`.
    """

    path: str
    joins: bool
    names: frozenset[str]
    config: Any


def shards_of(model: nn.Module, module_map: ModuleMap, keeps_keys: bool = True) -> Shards:
    """How the model's tokens are divided over processes.

    Args:
        model: the model.
        module_map: its map.
        keeps_keys: whether steps may compute a part of the tokens. Where all are full or skipped, only the exit's
            output has to be whole.

    Raises:
        HookConflictError: in a way in which pruned steps would not be exact.
    """
    dividers = list(_dividers(model))
    if not dividers:
        tensors = getattr(vars(model).get(CONFIG), "tensor_parallel_config", None)
        return ALONE if tensors is None else Shards(tensors._mesh.get_group())
    config = dividers[0].config
    whole = any(divider.joins and divider.path == module_map.exit_site.path for divider in dividers)
    reason = _misfit(model, module_map, dividers) if keeps_keys or not whole else None
    if reason is not None:
        rest = ". A plan of full and skipped steps alone, as tokenprune.plan gives, is served" if whole else ""
        raise HookConflictError(
            f"{type(model).__name__}: is divided over several devices (enable_parallelism) in a way that cannot be "
            f"pruned: {reason}; or remove() the handle{rest}"
        )
    group = config._flattened_mesh.get_group()
    if not keeps_keys:
        return Shards(group)
    divided = {site.path: _divided_at(site.path, dividers) for site in module_map.block_sites}
    return Shards(group, config.ulysses_degree, config._ulysses_local_rank, divided)


def _dividers(model: nn.Module) -> Iterator[Divider]:
    """The hooks that divide sequences, but for those that somebody made by hand and which know no devices."""
    for path, module in model.named_modules():
        registry: Any = module.__dict__.get(REGISTRY)
        for hook in () if registry is None else registry.hooks.values():
            kinds = {kind.__name__ for kind in type(hook).__mro__} & DIVIDING
            if kinds and getattr(hook, "parallel_config", None) is not None:
                names = () if JOIN in kinds else filter(lambda key: isinstance(key, str), hook.metadata)
                yield Divider(path, JOIN in kinds, frozenset(names), hook.parallel_config)


def _divided_at(path: str, dividers: Iterable[Divider]) -> frozenset[str]:
    """The arguments that a module divides."""
    return frozenset[str]().union(*(divider.names for divider in dividers if divider.path == path))


def _misfit(model: nn.Module, module_map: ModuleMap, dividers: list[Divider]) -> str | None:
    """Why the way that sequences are divided cannot be pruned, and what can; None where it can."""
    config, exit_path = dividers[0].config, module_map.exit_site.path
    if config.ring_degree > 1:
        return (
            f"ring attention (ring_degree={config.ring_degree}) attends to the keys of one device at a time, with "
            f"kernels that give the logarithms of their sums (flash, cuDNN) in the place of torch's "
            f"scaled_dot_product_attention, so kept keys cannot be put in; expected ulysses_degree alone, as in "
            f"ContextParallelConfig(ulysses_degree={config.ring_degree * config.ulysses_degree})"
        )
    if config.ulysses_anything:
        return (
            "ulysses_anything gives devices parts of different lengths; expected ulysses_degree without it, and "
            "lengths and heads that it divides"
        )
    joins = [divider.path for divider in dividers if divider.joins]
    if joins != [exit_path]:
        return f"its plan joins the tokens at {', '.join(joins) or 'no module'}; expected at {exit_path} alone"
    return _misfit_of_map(module_map, dividers) or _misfit_of_attention(model, module_map)


def _misfit_of_map(module_map: ModuleMap, dividers: list[Divider]) -> str | None:
    """Why arguments cannot be gathered where they are divided; None where they can."""
    blocks = module_map.block_sites
    paths = {site.path for site in blocks}
    inside = [
        divider.path
        for divider in dividers
        if (divider.names and divider.path not in {"", *paths}) or any(divider.path.startswith(f"{p}.") for p in paths)
    ]
    if inside:
        return f"its plan divides the tokens at {inside[0]}; expected before the blocks"
    given = {argument.name for argument in module_map.inputs}
    if module_map.latents in _divided_at("", dividers) - given:
        return (
            f"its plan divides {module_map.latents!r} before the model runs; expected a module map that names it in "
            f"`token_inputs`"
        )
    shared = [a.name for site in blocks for a in site.tokens if a.layout not in ("image", "text") or a.batch == a.dim]
    if shared or module_map.exit_site.layout != "image":
        return (
            f"the rows of {', '.join(dict.fromkeys(shared)) or module_map.exit_site.path} belong to image and text "
            f"tokens, or to several images, so which of them a device has is not known; expected a model that has them "
            f"in arguments of their own"
        )
    if module_map.exit_site.expand is not None or any(site.leading or site.counting for site in blocks):
        return "the model reckons with the number of all tokens between its blocks and its exit"
    return None


def _misfit_of_attention(model: nn.Module, module_map: ModuleMap) -> str | None:
    """Why attention does not see the whole sequence; None where it does."""
    for site in module_map.attentions:
        processor = getattr(model.get_submodule(site.path), "processor", None)
        if getattr(processor, CONFIG, None) is None:
            return (
                f"{site.path} attends with {type(processor).__name__} to the tokens of one device alone; expected a "
                f"processor of diffusers that knows `{CONFIG}`"
            )
    return None


def refuse_unequal_parts(name: str, shards: Shards, call: CallArguments) -> None:
    """Raise if a call has sequences whose tokens are not divided as `Shards` says.

    Args:
        name: of the model.
        shards: how its tokens are divided.
        call: what it was given.

    Raises:
        UnsupportedCallError: images begin at different places of their sequences, or frames have some of their own.
    """
    if shards.degree == 1:
        return
    which = "each image has a text length of its own" if call.image_starts is not None else None
    which = "each frame has a sequence of its own" if call.frames > 1 else which
    if which is not None:
        raise UnsupportedCallError(
            f"{name}: {which}, so the ranks of context parallelism have parts that cannot be told apart; expected all "
            f"images to lie in their sequences alike. Call the model on one device, or remove() the handle"
        )


def refuse_other_inputs(name: str, shards: Shards, call: CallArguments) -> None:
    """Raise, on all ranks, if they were given different latents for the first call of a generation.

    Args:
        name: of the model.
        shards: which ranks compute it together.
        call: what it was given.

    Raises:
        UnsupportedCallError: they differ.
    """
    if not shards.agree_on(call.latents):
        raise UnsupportedCallError(
            f"{name}: expected the same latents on all {shards.size} ranks that compute the model together, got others "
            f"on some; give the pipeline a generator of the same seed, or the same latents, on each"
        )
