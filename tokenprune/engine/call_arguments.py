"""What one call of the model was given."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tokenprune.engine.rows import Rows, gather
from tokenprune.errors import UnsupportedCallError
from tokenprune.modulemap import ModuleMap

Form = tuple[Hashable, ...]
"""What calls are told apart by that compute different things for the same tokens."""


Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model's forward."""


class CallArguments:
    """The arguments of one call, by the names that the module map has for them.

    Args:
        name: of the model, for errors.
        module_map: the model's.
        signature: of its forward.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    def __init__(
        self,
        name: str,
        module_map: ModuleMap,
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._name = name
        self._map = module_map
        self._signature = signature
        self.given: Given = (args, kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        self.arguments: Mapping[str, Any] = bound.arguments

    @property
    def time(self) -> Any:
        """The timestep of the image tokens."""
        given = self._needed(self._map.time)
        if self._map.noise_level is None:
            return given
        level = self._map.noise_level(self.arguments)
        return level.clone() if isinstance(level, Tensor) else level  # a value, not a place in the sampler's table

    @property
    def latents(self) -> Tensor:
        """The noisy latents; a list of images of one size is taken for their batch.

        Raises:
            UnsupportedCallError: they are missing, or images of several sizes.
        """
        latents = self._needed(self._map.latents)
        if self._map.image_latents is not None:
            latents = self._map.image_latents(self.arguments)
        if isinstance(latents, Tensor):
            return latents
        if not all(isinstance(image, Tensor) and image.shape == latents[0].shape for image in latents):
            came = [list(i.shape) if isinstance(i, Tensor) else type(i).__name__ for i in latents]
            raise UnsupportedCallError(
                f"{self._name}: expected one tensor for each image, all of one size, in {self._map.latents!r}, got "
                f"{came}; call the model for each size"
            )
        return torch.stack(list(latents))

    @property
    def text(self) -> Any:
        """The text, where the map names it."""
        return self.arguments.get(self._map.text) if self._map.text else None

    @property
    def conditions(self) -> dict[str, Any]:
        """All arguments but latents and timestep, by name."""
        return {
            name: value for name, value in self.arguments.items() if name not in (self._map.latents, self._map.time)
        }

    @property
    def form(self) -> Form:
        """What the call's operations go by: shapes of tensors, words and switches, kinds of all else."""
        return tuple(
            leaf.shape if isinstance(leaf, Tensor) else leaf if isinstance(leaf, (str, bool)) else type(leaf).__name__
            for value in self.arguments.values()
            for leaf in tree_leaves(value)
        )

    @property
    def image_starts(self) -> Tensor | None:
        """Where each image begins in its joint sequence [B], if that differs."""
        return self._map.text_lengths(self.arguments) if self._map.text_lengths else None

    @property
    def frames(self) -> int:
        """F, how many sequences of the batch belong to each image."""
        return self._map.frames(self.arguments) if self._map.frames else 1

    def gathered(self, rows: Rows | None) -> Given:
        """The arguments with the computed rows only of those that have a row for each token; None is all rows."""
        if rows is None:
            return self.given
        bound = self._signature.bind(*self.given[0], **self.given[1])
        present = [given for given in self._map.inputs if bound.arguments.get(given.name) is not None]
        if not present:
            return self.given
        for given in present:  # some arguments have several parts, each with an entry of its own
            bound.arguments[given.name] = gather(rows, given, bound.arguments[given.name])
        return bound.args, bound.kwargs

    def _needed(self, name: str) -> Any:
        value = self.arguments.get(name)
        if value is None:
            raise UnsupportedCallError(f"{self._name}: expected the argument {name!r}, got none")
        return value
