"""Steps that compute nothing: the model's output made from forecast tokens, without running the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tokenprune.errors import UnsupportedCallError


class OutputMap:
    """How a model lays out its exit's tokens [B, N, C] as its output; found once for each shape.

    Between the exit and the output a model only rearranges numbers. So it is given numbered ones, as often as their
    digits need in the output's precision, and where they come out is the rearrangement.

    Args:
        tokens: the exit's tokens of a full call [B, N, C].
        output: what the model made of them.
        rearrange: runs the model with other tokens at its exit.
        mixed: whether the output may have rows of text or of given frames, too; those are then 0.

    Raises:
        UnsupportedCallError: the output is not one tensor, or not a rearrangement.
    """

    def __init__(self, tokens: Tensor, output: Any, rearrange: Callable[[Tensor], Any], mixed: bool = False) -> None:
        known, self._leaves, self._structure, self._apart = _whole(output, len(tokens))
        self._shape, self._device = known.shape, known.device
        base = int(2 / torch.finfo(tokens.dtype).eps)
        numbers = torch.arange(tokens[0].numel(), device=tokens.device)
        self._places = torch.zeros(self._shape[1:].numel(), dtype=torch.int64, device=tokens.device)
        weight = 1
        while weight <= tokens[0].numel():
            digits = (numbers // weight % base).to(tokens.dtype).view(tokens.shape[1:])
            found, *_ = _whole(rearrange(digits.repeat(len(tokens), *[1] * digits.ndim)), len(tokens))
            places = found[0].flatten().round().long().clamp(0, base - 1)
            self._places += weight * places.to(tokens.device)
            weight *= base
        self._places.clamp_(max=tokens[0].numel() - 1)
        self._of_text: Tensor | None = None
        if mixed:
            one, other = (_whole(rearrange(torch.full_like(tokens, value)), len(tokens))[0][0] for value in (-1, -2))
            self._of_text = (one.nan_to_num() == other.nan_to_num()).flatten().to(tokens.device)
        made, *_ = _whole(self(tokens), len(tokens))
        expected = known.nan_to_num()
        if self._of_text is not None:
            expected = expected.masked_fill(self._of_text.view(expected.shape[1:]).to(expected.device), 0)
        if not torch.equal(made.nan_to_num(), expected):
            raise UnsupportedCallError(
                "a schedule with fraction 0 needs a model whose output is a rearrangement of its exit's tokens; this "
                "one computes with them. Use a fraction above 0, or tokenprune.plan(..., skips=False)"
            )

    def __call__(self, tokens: Tensor) -> Any:
        """The model's output for tokens [B, N, C]."""
        output = tokens.flatten(1)[:, self._places]
        if self._of_text is not None:
            output = output.masked_fill(self._of_text, 0)
        output = output.view(len(tokens), *self._shape[1:]).to(self._device)
        found = iter(output if self._apart else [output])
        return tree_unflatten([next(found) if leaf else None for leaf in self._leaves], self._structure)


def _whole(output: Any, batch: int) -> tuple[Tensor, list[bool], TreeSpec, bool]:
    """A model's output [B, ...], which of its values are given, its structure, and whether it came image by image."""
    every, structure = tree_flatten(output)
    given = [leaf is not None for leaf in every]
    leaves = [leaf for leaf in every if leaf is not None]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) == len(leaves) == 1 and len(tensors[0]) == batch:
        return tensors[0], given, structure, False
    if len(tensors) == len(leaves) == batch and len({leaf.shape for leaf in tensors}) == 1:
        return torch.stack(tensors), given, structure, True
    raise UnsupportedCallError(
        f"a schedule with fraction 0 needs a model whose output is one tensor, or one for each of its {batch} images, "
        f"got {len(leaves)} values; use a fraction above 0, or tokenprune.plan(..., skips=False)"
    )
