"""`apply` leaves no trace but hooks, and `remove` takes those off."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, ListSchedule, SelectionPolicy

HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hooks(model: nn.Module) -> dict[str, dict[str, dict[int, Any]]]:
    return {name: {kind: dict(getattr(module, kind)) for kind in HOOKS} for name, module in model.named_modules()}


def attributes(model: nn.Module) -> dict[str, list[str]]:
    return {name: list(module.__dict__) for name, module in model.named_modules()}


def identities(model: nn.Module) -> dict[str, tuple[type, int]]:
    """Class and `forward` of every module: nothing is replaced."""
    return {name: (type(module), id(type(module).forward)) for name, module in model.named_modules()}


def test_every_hook_dictionary_is_looked_at() -> None:
    assert {name for name in vars(nn.Linear(1, 1)) if "hooks" in name} - {"_is_full_backward_hook"} == set(HOOKS)


def check_remove(model: nn.Module, policy: SelectionPolicy, generations: int, generate: Callable[..., Tensor]) -> None:
    plain = generate(model)
    before = hooks(model), attributes(model), identities(model), list(model.state_dict())
    assert not any(any(kinds.values()) for kinds in before[0].values())
    handle = tokenprune.apply(model, policy)
    assert hooks(model) != before[0]
    for seed in range(generations):
        generate(model, seeds=(seed,))
    handle.remove()
    assert (hooks(model), attributes(model), identities(model), list(model.state_dict())) == before
    assert torch.equal(generate(model), plain)


@pytest.mark.parametrize("generations", [0, 1, 2])
def test_remove_takes_every_trace_away(model: nn.Module, generations: int, generate: Callable[..., Tensor]) -> None:
    check_remove(model, CATPolicy(0.3, 3), generations, generate)


def test_remove_with_every_policy(sd3: nn.Module, policy: SelectionPolicy, generate: Callable[..., Tensor]) -> None:
    check_remove(sd3, policy, 1, generate)


def test_remove_after_steps_that_skip_the_model(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    """A schedule with skipped steps wraps the model's forward; an own forward of the model's comes back."""
    plain, forward = generate(model), model.forward

    @functools.wraps(forward)
    def own(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    for wrapped in (False, True):
        if wrapped:
            model.forward = own
        before = hooks(model), [dict(vars(module)) for module in model.modules()]
        with tokenprune.apply(model, CATPolicy(0.3, 1), schedule=ListSchedule((1, 0.3, 0, 0.3))):
            assert not torch.equal(generate(model), plain)
        assert hooks(model) == before[0]
        assert [dict(vars(module)) for module in model.modules()] == before[1]
        assert torch.equal(generate(model), plain)


def test_state_dict_is_the_same_while_applied(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = [name for name, _ in model.named_buffers()]
    with tokenprune.apply(model, CATPolicy(0.3, 3)):
        generate(model)
        during = model.state_dict()
        assert list(during) == list(before)
        assert all(torch.equal(during[name], before[name]) for name in before)
        assert [name for name, _ in model.named_buffers()] == buffers
        assert identities(model).keys() == dict(model.named_modules()).keys()
        model.load_state_dict(before)


def test_hooks_of_the_user_stay(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    calls: list[str] = []
    for name in ("transformer_blocks.0", "transformer_blocks.1", "proj_out", ""):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        module.register_forward_pre_hook(lambda *_, name=name, **__: calls.append(name), with_kwargs=True)
    before = hooks(model)
    generate(model, steps=2)
    expected, calls[:] = list(calls), []
    with tokenprune.apply(model, CATPolicy(0.3, 1)):
        generate(model, steps=2)
        assert calls == expected
    assert hooks(model) == before


def test_removing_after_an_error(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    before, known, plain = hooks(model), attributes(model), generate(model)
    handle = tokenprune.apply(model, CATPolicy(0.3, 1))
    with model.transformer_blocks[1].register_forward_hook(lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        generate(model)
    handle.remove()
    assert (hooks(model), attributes(model)) == (before, known)
    assert torch.equal(generate(model), plain)


def test_an_error_inside_the_context_removes(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    before, plain = hooks(model), generate(model)

    def work() -> None:
        with tokenprune.apply(model, CATPolicy(0.3, 1)):
            generate(model, stop=3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert hooks(model) == before
    assert torch.equal(generate(model), plain)


def test_applied_again_after_remove(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    results = []
    for _ in range(2):
        with tokenprune.apply(model, CATPolicy(0.3, 3)):
            results.append(generate(model))
    assert torch.equal(*results)


def test_the_model_is_freed_with_its_handle(
    make_model: Callable[[str], nn.Module], kind: str, generate: Callable[..., Tensor]
) -> None:
    model = make_model(kind)
    handle = tokenprune.apply(model, CATPolicy(0.3, 1))
    generate(model)
    handle.remove()
    alive = weakref.ref(model)
    del handle, model
    gc.collect()
    assert alive() is None


def test_a_copy_of_a_removed_model_is_plain(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    plain = generate(model)
    tokenprune.apply(model, CATPolicy(0.3, 1)).remove()
    assert torch.equal(generate(copy.deepcopy(model)), plain)
