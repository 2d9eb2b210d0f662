"""A plain model: what its layers give in a call, what its arguments are for one image, what its modules hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tokenprune.engine.oracle import Inputs, difference


def outputs_of(model: nn.Module, inputs: Inputs, paths: Iterable[str]) -> dict[str, Any]:
    """The outputs of layers in a call of the model, by path; those that are called several times, the last."""
    found: dict[str, Any] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[path] = tree_map(_copy, output)

        return hook

    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(model.get_submodule(path).register_forward_hook(keep(path)))
        model(**inputs)
    return found


def outputs_behind(model: nn.Module, inputs: Inputs, path: str, dim: int, tokens: int) -> list[str]:
    """The layers behind one that work on its tokens: they begin after it, and give a row for each token from its rows.

    Args:
        model: the model.
        inputs: arguments of a call, by name.
        path: of the layer.
        dim: the dimension of its output that counts tokens.
        tokens: N; sequences may have text tokens, too.
    """
    layers = {name: module for name, module in model.named_modules() if [*module.parameters(recurse=False)]}
    late: list[str] = []
    lengths = {tokens}
    with _after(model.get_submodule(path), layers, late, lengths, dim):
        model(**inputs)
    if not late:
        return []
    before = outputs_of(model, inputs, late)
    with _shifted(model.get_submodule(path)):
        after = outputs_of(model, inputs, late)
    rows = {name: output for name, output in before.items() if _has_rows(output, lengths)}
    return [name for name in late if name in rows and difference(after[name], rows[name]) > 0]


@contextmanager
def _after(
    layer: nn.Module, layers: dict[str, nn.Module], late: list[str], lengths: set[int], dim: int
) -> Iterator[None]:
    """Notes which layers begin after one has given its output, and how long that is."""
    ended: list[bool] = []

    def end(_: nn.Module, __: Any, output: Any) -> None:
        ended.append(True)
        if isinstance(output, Tensor) and output.ndim > dim:
            lengths.add(output.shape[dim])

    def begin(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any) -> None:
            if ended and name not in late:
                late.append(name)

        return hook

    with ExitStack() as hooks:
        hooks.enter_context(layer.register_forward_hook(end))
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_pre_hook(begin(name)))
        yield


@contextmanager
def _shifted(layer: nn.Module) -> Iterator[None]:
    """The layer gives other numbers."""

    def shift(_: nn.Module, __: Any, output: Any) -> Any:
        return tree_map(lambda leaf: leaf * 1.5 + 0.5 if isinstance(leaf, Tensor) else leaf, output)

    with layer.register_forward_hook(shift):
        yield


def _has_rows(output: Any, lengths: set[int]) -> bool:
    return isinstance(output, Tensor) and output.ndim == 3 and bool(lengths & set(output.shape[:2]))


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def rows_of_image(value: Any, image: int, batch: int) -> Any:
    """Row or item `image` of every tensor and list that is as long as the batch."""
    if isinstance(value, Mapping):
        return {name: rows_of_image(item, image, batch) for name, item in value.items()}
    if isinstance(value, Tensor):
        return value[image : image + 1] if value.ndim and len(value) == batch else value
    if isinstance(value, list) and len(value) == batch:
        return value[image : image + 1]
    return (
        type(value)(rows_of_image(item, image, batch) for item in value) if isinstance(value, (list, tuple)) else value
    )


def state_of(model: nn.Module) -> list[tuple[list[str], int, int]]:
    """Attributes and hooks of all modules."""
    return [
        (sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ]
