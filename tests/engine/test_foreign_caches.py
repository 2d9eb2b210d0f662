"""Caches and patches of other packages on the model: refused by name, whatever they replace, whenever they come."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import diffusers
import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import SD3Transformer2DModel
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from torch import Tensor, nn

import tokenprune
from tokenprune import CacheConflictError, ModuleMapError, NoisePolicy
from tokenprune.engine.foreign_forwards import WAYS_OUT
from tokenprune.schedule import ListSchedule

POLICY = NoisePolicy(0.4, 2)
STEPS = 5
LISTS = ("transformer_blocks", "single_transformer_blocks")
KINDS = ("sd3", "flux")
TINY = {found.name: found for found in tiny.ALL if found.name in (*KINDS, "pixart")}


def make(kind: str) -> nn.Module:
    return TINY[kind].make()


def draw(model: nn.Module, steps: int = STEPS, first: int = 0) -> Tensor:
    """What the model gives at each step from one on [steps, B, ...]."""
    kind = next(kind for kind in TINY if issubclass(type(model), getattr(diffusers, TINY[kind].model)))
    inputs = TINY[kind].inputs()
    found = []
    with torch.no_grad():
        for step in range(first, first + steps):
            given = {**inputs, "timestep": inputs["timestep"] * (1 - step / 10)}
            given["hidden_states"] = given["hidden_states"] + 0.1 * step
            found.append(model(**given, return_dict=False)[0])
    return torch.stack(found)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param)


# What packages do to a model, as they do it ---------------------------------------------------------------------------


class CachedBlocks(nn.Module):
    """Blocks of a list that run once, and then give what they gave (as in ParaAttention and cache-dit).

    Args:
        blocks: those.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks, self.kept = blocks, None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.kept is None:
            self.kept = hidden_states, kwargs.pop("encoder_hidden_states")
            for block in self.blocks:
                text, image = block(self.kept[0], *args, encoder_hidden_states=self.kept[1], **kwargs)
                self.kept = image, text
        return self.kept[::-1]


def cached_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The model's output of the step before (as in TeaCache, which adds the last change instead)."""
    if not hasattr(self, "kept"):
        self.kept = self.plain(*args, **kwargs)
    return self.kept


def on_instance(model: nn.Module) -> str:
    model.plain = model.forward
    model.forward = types.MethodType(cached_forward, model)
    return r"forward is replaced by cached_forward of .*test_foreign_caches .*Take it off first \(del model\.forward\)"


def as_partial(model: nn.Module) -> str:
    model.plain = model.forward
    model.forward = functools.partial(cached_forward, model)
    return r"forward is replaced by cached_forward of .*test_foreign_caches .*Take it off first \(del model\.forward\)"


def on_class(model: nn.Module) -> str:
    kind = type(model)
    kind.plain = kind.forward
    kind.forward = cached_forward
    return (
        rf"{kind.__name__}\.forward is replaced by cached_forward of .*give {kind.__name__}\.forward the function back"
    )


def on_block(model: nn.Module) -> str:
    block = model.transformer_blocks[1]
    block.plain = block.forward
    block.forward = types.MethodType(cached_forward, block)
    return (
        r"transformer_blocks\.1\.forward is replaced by cached_forward .*\(del .*'transformer_blocks\.1'\)\.forward\)"
    )


def on_class_of_blocks(model: nn.Module) -> str:
    kind = type(model.transformer_blocks[0])
    kind.plain = kind.forward
    kind.forward = cached_forward
    return rf"{type(model).__name__}: {kind.__name__}\.forward is replaced by cached_forward"


def take_off(model: nn.Module) -> None:
    for part in (model, *model.transformer_blocks):
        vars(part).pop("forward", None)
        vars(part).pop("kept", None)
        if "plain" in vars(type(part)):
            type(part).forward = type(part).plain
            del type(part).plain
        vars(part).pop("plain", None)


PATCHES = (on_instance, as_partial, on_class, on_block, on_class_of_blocks)


@contextmanager
def patched(model: nn.Module, patch: Callable[[nn.Module], str]) -> Iterator[str]:
    try:
        yield patch(model)
    finally:
        take_off(model)


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patched_forward_that_came_first(model: nn.Module, patch: Callable[[nn.Module], str]) -> None:
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    with patched(model, patch) as message, pytest.raises(CacheConflictError, match=message):
        tokenprune.apply(model, POLICY)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before
    with tokenprune.apply(model, POLICY):
        draw(model)


@pytest.mark.parametrize("steps", [0, 1, 4], ids=["before the first step", "in the warm-up", "between pruned steps"])
@pytest.mark.parametrize("patch", PATCHES)
def test_a_patched_forward_that_came_later(model: nn.Module, patch: Callable[[nn.Module], str], steps: int) -> None:
    """Refused at the next step, and at each one until it is off; then all is as it was."""
    plain = draw(model)
    with tokenprune.apply(model, POLICY):
        pruned = draw(model)
        if steps:
            draw(model, steps)
        with patched(model, patch) as message:
            for _ in range(2):
                with pytest.raises(CacheConflictError, match=message):
                    draw(model, 1, first=steps)
        assert torch.equal(draw(model), pruned)
    assert torch.equal(draw(model), plain)
    assert not torch.equal(pruned, plain)


def test_a_patch_beside_steps_that_are_skipped(model: nn.Module) -> None:
    """Where steps are skipped, a stand-in of ours lies before the forward: theirs is found before it and behind it."""
    with patched(model, on_instance) as message, pytest.raises(CacheConflictError, match=message):
        tokenprune.apply(model, POLICY, schedule=ListSchedule((1, 0, 0.5)))
    with tokenprune.apply(model, POLICY, schedule=ListSchedule((1, 0, 0.5))):
        draw(model)
        ours = model.forward
        message = on_instance(model)
        with pytest.raises(CacheConflictError, match=message):
            draw(model)
        take_off(model)
        model.forward = ours
        draw(model)
    assert "forward" not in vars(model)


# What does not say what it is -----------------------------------------------------------------------------------------


def replacing_blocks(model: nn.Module) -> Any:
    """A forward that puts other blocks in the place of the model's while it runs, and says that it is the model's."""
    forward = model.forward
    lists = {name: nn.ModuleList([CachedBlocks(getattr(model, name))]) for name in LISTS if hasattr(model, name)}

    @functools.wraps(type(model).forward)
    def new_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for name, blocks in lists.items():
                stack.enter_context(mock.patch.object(self, name, blocks))
            return forward(*args, **kwargs)

    return types.MethodType(new_forward, model)


@pytest.mark.parametrize("first", [True, False])
def test_blocks_that_are_replaced_while_the_model_runs(first: bool) -> None:
    model = make("sd3")
    plain = draw(model)
    if first:
        model.forward = replacing_blocks(model)
    with tokenprune.apply(model, POLICY):
        if not first:
            draw(model)
            model.forward = replacing_blocks(model)
        for _ in range(2):
            with pytest.raises(
                CacheConflictError, match=r"transformer_blocks is replaced by CachedBlocks of .*test_for"
            ):
                draw(model, 1)
        del model.forward
        draw(model)
    assert torch.equal(draw(model), plain)


def wrapper_of(package: str, wrapped: Any) -> Any:
    """A wrapper whose code comes from a package, and that goes by the name of what it wraps."""
    space: dict[str, Any] = {"__name__": f"{package}.adapters", "wrapped": wrapped}
    exec("def new_forward(*args, **kwargs):\n    return wrapped(*args, **kwargs)", space)
    return functools.update_wrapper(space["new_forward"], wrapped)


@pytest.mark.parametrize("package", WAYS_OUT)
def test_known_packages_are_found_under_the_names_of_what_they_wrap(model: nn.Module, package: str) -> None:
    model.forward = wrapper_of(package, model.forward)
    with pytest.raises(CacheConflictError, match=rf"of {package}\.adapters \({package}\)") as caught:
        tokenprune.apply(model, POLICY)
    assert f"Take it off first ({WAYS_OUT[package]}; if that leaves it behind: del model.forward)" in str(caught.value)


def test_wrappers_of_the_user_are_served(model: nn.Module) -> None:
    with tokenprune.apply(model, POLICY):
        pruned = draw(model)
    model.forward = wrapper_of("mine", model.forward)
    model.transformer_blocks[0].forward = wrapper_of("mine", model.transformer_blocks[0].forward)
    with tokenprune.apply(model, POLICY):
        assert torch.equal(draw(model), pruned)


@contextmanager
def another_class(module: nn.Module, kind: type[nn.Module]) -> Iterator[None]:
    former, module.__class__ = module.__class__, kind
    try:
        yield
    finally:
        module.__class__ = former


def skipping(model: nn.Module, calls: set[int], skip: Callable[[nn.Module], dict[nn.Module, Any]]) -> None:
    """Lets some calls of the model, by number, run other forwards of some modules."""
    forward, made = model.forward, 0

    @functools.wraps(forward)
    def new_forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made - 1 not in calls:
            return forward(*args, **kwargs)
        with ExitStack() as stack:
            for module, other in skip(model).items():
                stack.enter_context(another_class(module, other))
            return forward(*args, **kwargs)

    model.forward = new_forward


def idle(kind: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    """A class whose modules are called without hooks."""
    return type(kind.__name__, (kind,), {"__call__": forward, "__module__": kind.__module__})


def no_blocks(model: nn.Module) -> dict[nn.Module, Any]:
    block = model.transformer_blocks[1]

    def forward(self: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        return encoder_hidden_states, hidden_states

    return {block: idle(type(block), forward)}


def no_attention(model: nn.Module) -> dict[nn.Module, Any]:
    attention = model.transformer_blocks[0].attn

    def forward(self: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        return hidden_states, encoder_hidden_states

    return {attention: idle(type(attention), forward)}


@pytest.mark.parametrize("call", [1, 4], ids=["full step", "pruned step"])
@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (no_blocks, r"left out transformer_blocks\.1 \(and 1 more\), which the first call .* reset\(\)"),
        (no_attention, r"left out transformer_blocks\.0\.attn, which the first call of its guidance branch ran"),
    ],
)
def test_parts_that_are_left_out(
    model: nn.Module, call: int, skip: Callable[[nn.Module], dict[nn.Module, Any]], message: str
) -> None:
    skipping(model, {call}, skip)
    with tokenprune.apply(model, POLICY):
        with pytest.raises(CacheConflictError, match=message):
            draw(model)
        again = draw(model)
    with tokenprune.apply(model, POLICY):
        assert torch.equal(draw(model), again)


def test_parts_that_every_call_leaves_out_are_the_model(model: nn.Module) -> None:
    skipping(model, set(range(100)), no_blocks)
    plain = draw(model)
    with tokenprune.apply(model, POLICY):
        pruned = draw(model)
    assert torch.equal(pruned[:2], plain[:2])
    assert not torch.equal(pruned, plain)


def no_self_attention(model: nn.Module) -> dict[nn.Module, Any]:
    attention = model.transformer_blocks[0].attn1

    def forward(self: nn.Module, hidden_states: Tensor, **kwargs: Any) -> Any:
        return hidden_states

    return {attention: idle(type(attention), forward)}


def test_layers_that_a_guider_leaves_out() -> None:
    """Hooks of diffusers that keep nothing may come in mid-generation; what else is left out then still counts."""
    model = make("pixart")
    with tokenprune.apply(model, POLICY):
        draw(model, 3)
        _apply_layer_skip_hook(model, LayerSkipConfig(indices=[1], fqn="transformer_blocks"), name="guider")
        draw(model, 1, first=3)
        skipping(model, {0}, no_self_attention)
        with pytest.raises(CacheConflictError, match=r"left out transformer_blocks\.0\.attn1, which"):
            draw(model, 1, first=4)


def test_layers_that_the_user_switches_off(model: nn.Module) -> None:
    """Served after a reset, as the message says."""
    skipping(model, set(range(2, 2 + STEPS)), no_blocks)
    with tokenprune.apply(model, POLICY) as handle:
        draw(model, 2)
        handle.reset()
        draw(model)


@pytest.mark.parametrize("call", [1, 3], ids=["full step", "pruned step"])
def test_an_output_that_is_kept(model: nn.Module, call: int) -> None:
    """A forward that runs nothing, and says that it is the model's."""
    forward, outputs = model.forward, []

    @functools.wraps(forward)
    def new_forward(*args: Any, **kwargs: Any) -> Any:
        outputs.append(outputs[-1] if len(outputs) == call else forward(*args, **kwargs))
        return outputs[-1]

    model.forward = new_forward
    with tokenprune.apply(model, POLICY), pytest.raises(CacheConflictError, match=r"left out proj_out, which"):
        draw(model)


# Blocks that were replaced for good -----------------------------------------------------------------------------------


def test_a_list_of_blocks_replaced_by_a_cache(model: nn.Module) -> None:
    plain, blocks = draw(model), model.transformer_blocks
    message = r"transformer_blocks\.0 is replaced by CachedBlocks of .*test_foreign_caches .*loading the model anew"
    model.transformer_blocks = nn.ModuleList([CachedBlocks(blocks)])
    with pytest.raises(CacheConflictError, match=message):
        tokenprune.apply(model, POLICY)
    model.transformer_blocks = blocks
    with tokenprune.apply(model, POLICY):
        pruned = draw(model)
        model.transformer_blocks = nn.ModuleList([CachedBlocks(blocks)])
        for _ in range(2):
            with pytest.raises(CacheConflictError, match=message):
                draw(model)
        model.transformer_blocks = blocks
        assert torch.equal(draw(model), pruned)
    assert torch.equal(draw(model), plain)


class InPlain(CachedBlocks):
    """Blocks in a plain list, which are no parts of the module."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__(nn.ModuleList())
        self.blocks = None
        self.plain = list(blocks)


def test_a_cache_that_holds_blocks_in_a_plain_list(model: nn.Module) -> None:
    model.transformer_blocks = nn.ModuleList([InPlain(model.transformer_blocks)])
    with pytest.raises(CacheConflictError, match=r"transformer_blocks\.0 is replaced by InPlain"):
        tokenprune.apply(model, POLICY)


def test_a_map_that_does_not_fit_is_no_cache(model: nn.Module) -> None:
    """Modules of other packages that hold nothing of the model's are parts of it."""
    model.transformer_blocks[0].extra = CachedBlocks(nn.ModuleList([nn.Linear(2, 2)]))
    del model.proj_out
    with pytest.raises(ModuleMapError, match=r"no module named proj_out"):
        tokenprune.apply(model, POLICY)


# What is the model's own ----------------------------------------------------------------------------------------------


def doubled(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return (2 * SD3Transformer2DModel.forward(self, *args, **kwargs)[0],)


doubled.__signature__ = inspect.signature(SD3Transformer2DModel.forward)


class Scaled(SD3Transformer2DModel):
    """A user's model, which runs it all."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        block_controlnet_hidden_states: list[Tensor] | None = None,
        return_dict: bool = False,
    ) -> Any:
        given = (hidden_states, encoder_hidden_states, pooled_projections, timestep, block_controlnet_hidden_states)
        return (2 * super().forward(*given, return_dict=False)[0],)


def test_a_subclass_with_a_forward_of_its_own() -> None:
    model = make("sd3")
    model.__class__ = Scaled
    for attention in (block.attn for block in model.transformer_blocks):
        attention.processor = type("MyProcessor", (type(attention.processor),), {})()
    plain = draw(model)
    with tokenprune.apply(model, POLICY):
        pruned = draw(model)
    assert torch.equal(pruned[:2], plain[:2])
    assert not torch.equal(pruned, plain)


def test_a_patch_under_a_subclass_is_found() -> None:
    model = make("sd3")
    model.__class__ = type("Plain", (SD3Transformer2DModel,), {"__module__": __name__})
    original = SD3Transformer2DModel.forward
    SD3Transformer2DModel.forward = cached_forward
    try:
        with pytest.raises(CacheConflictError, match=r"SD3Transformer2DModel\.forward is replaced"):
            tokenprune.apply(model, POLICY)
    finally:
        SD3Transformer2DModel.forward = original


def test_wrappers_that_run_the_model_are_served() -> None:
    """Of accelerate and torch.compile, on the model and on blocks, before and after."""
    model = make("sd3")
    with tokenprune.apply(model, POLICY):
        pruned = draw(model)
        add_hook_to_module(model, ModelHook())
        add_hook_to_module(model.transformer_blocks[0], ModelHook())
        assert torch.equal(draw(model), pruned)
    model.forward = torch.compile(model.forward, backend="eager")
    try:
        with tokenprune.apply(model, POLICY):
            torch.testing.assert_close(draw(model), pruned)
    finally:
        torch.compiler.reset()


def test_a_model_that_gives_itself_a_forward() -> None:
    """As models do that choose one of theirs when they are made."""
    model = make("sd3")
    model.__class__ = type("Chooses", (SD3Transformer2DModel,), {"__module__": __name__})
    model.forward = types.MethodType(doubled, model)
    with tokenprune.apply(model, POLICY):
        draw(model)


# The package itself ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed (extra 'peers')")
@pytest.mark.parametrize("first", [True, False])
def test_cache_dit(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves a forward of its own on FLUX when it is taken off, and the message says how that is.

    With pipelines: tests/integration/test_cache_conflicts.py.
    """
    monkeypatch.setenv("CACHE_DIT_LOG_LEVEL", "error")  # read when it is imported; it logs to the standard output
    import cache_dit

    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=10.0)
    message = (
        r"replaced by .*new_forward.* of cache_dit\..* \(cache_dit\).*first \(cache_dit\.disable_cache\(pipe\); if "
    )
    model = make("flux")
    plain = draw(model)
    if first:
        cache_dit.enable_cache(model, cache_config=config)
        with pytest.raises(CacheConflictError, match=message):
            tokenprune.apply(model, POLICY)
        cache_dit.disable_cache(model)
        with pytest.raises(CacheConflictError, match=r"functor_flux .*if that leaves it behind: del model\.forward"):
            tokenprune.apply(model, POLICY)
        del model.forward
    with tokenprune.apply(model, POLICY):
        pruned = draw(model)
        cache_dit.enable_cache(model, cache_config=config)
        with pytest.raises(CacheConflictError, match=message):
            draw(model)
        cache_dit.disable_cache(model)
        del model.forward
        assert torch.equal(draw(model), pruned)
    assert torch.equal(draw(model), plain)
