"""What a call was given beside latents and timestep, and whether a later one was given the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.weak import TensorWeakRef


class Conditions:
    """The tensors among a call's other arguments: texts, their pooled forms, positions. They are not kept alive.

    Pipelines make them once for a generation and hand the same ones to every step.

    Args:
        arguments: by name.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._tensors = {name: TensorWeakRef(value) for name, value in arguments.items() if isinstance(value, Tensor)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __bool__(self) -> bool:
        return bool(self._tensors)

    def shared_with(self, other: Conditions) -> set[str]:
        """Names of arguments that are the same tensors."""
        return {
            name
            for name, tensor in self._tensors.items()
            if name in other._tensors and tensor() is not None and tensor() is other._tensors[name]()
        }
