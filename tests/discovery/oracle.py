"""What a pruned generation must give, worked out without the engine: all tokens, and what is stale put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenprune import Memory, Observation, Selection, SelectionPolicy


@dataclass(frozen=True)
class Places:
    """Where tokens are in a model, written down by a person who read its code.

    Args:
        exit: name of the last projection.
        keys: how many keys the attention calls with image tokens have.
        first: where image tokens begin among those keys, and in the exit's output.
        first_out: the latter, where it differs.
        tokens: N.
        alike: whether all images have the same tokens selected.
    """

    exit: str
    keys: int = 24
    first: int = 0
    first_out: int = 0
    tokens: int = 24
    alike: bool = False


def chosen(step: int, image: int, count: int, tokens: int) -> Tensor:
    """Which tokens an image computes at a step: sorted indices [n]."""
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(100 * step + image))
    return order[:count].sort().values


@dataclass(frozen=True)
class Scripted(SelectionPolicy):
    """Selects what `chosen` says."""

    def select(self, seen: Observation, memory: Memory) -> Selection:
        images, tokens, _ = seen.prediction.shape
        index = torch.stack([chosen(seen.step, image, seen.count, tokens) for image in range(images)])
        return Selection.from_index(index, tokens)


class Oracle:
    """Runs a plain model on all tokens of every step.

    Keys and values of image tokens that a step does not compute are put back to what they were when last computed, and
    so is what the last projection gave for them.
    """

    def __init__(self, model: nn.Module, places: Places) -> None:
        self._model, self._places = model, places
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._held: Tensor | None = None

    def step(self, number: int, count: int, inputs: dict[str, Any]) -> Any:
        """The model's output at a step that computes so many tokens of each image."""
        places, images = self._places, len(next(iter(inputs.values())))
        stale = torch.ones(images, places.tokens, dtype=torch.bool)
        for image in range(images):
            stale[image, chosen(number, 0 if places.alike else image, count, places.tokens)] = False
        if count == places.tokens:
            stale[:] = False
        plain, calls = F.scaled_dot_product_attention, 0

        def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal calls
            if key.shape[-2] == places.keys and key.shape[0] == images:
                old = self._kept.get(calls, (key, value))
                key, value = (self._restored(new, kept, stale) for new, kept in zip((key, value), old, strict=True))
                self._kept[calls] = key, value
                calls += 1
            return plain(query, key, value, *args, **kwargs)

        def exit_hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            held = output if self._held is None else self._held
            mask = torch.zeros(output.shape[:2], dtype=torch.bool)
            mask[:, places.first_out : places.first_out + places.tokens] = stale
            self._held = torch.where(mask[..., None], held, output)
            return self._held

        hook = self._model.get_submodule(places.exit).register_forward_hook(exit_hook)
        try:
            with pytest.MonkeyPatch.context() as patch, torch.no_grad():
                patch.setattr(F, "scaled_dot_product_attention", attention)
                output = self._model(**inputs)
        finally:
            hook.remove()
        assert calls
        return output

    def _restored(self, new: Tensor, old: Tensor, stale: Tensor) -> Tensor:
        mask = torch.zeros(len(new), new.shape[-2], dtype=torch.bool)
        mask[:, self._places.first : self._places.first + self._places.tokens] = stale
        return torch.where(mask[:, None, :, None], old, new)


def oracle_outputs(
    model: nn.Module, places: Places, calls: Sequence[dict[str, Any]], counts: Sequence[int]
) -> list[Any]:
    """The outputs of a whole generation."""
    oracle = Oracle(model, places)
    pairs = zip(calls, counts, strict=True)
    return [oracle.step(number, count, inputs) for number, (inputs, count) in enumerate(pairs)]
