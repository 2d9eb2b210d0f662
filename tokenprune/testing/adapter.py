"""A check for adapters, one's own ones above all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tokenprune.engine.oracle import Inputs, difference, play
from tokenprune.errors import TokenPruneError
from tokenprune.ops.grid import num_tokens
from tokenprune.registry import Adapter, find_adapter

AdapterProperty = Literal["map", "full", "pruned", "stale", "batch", "remove"]


class AdapterCheckError(AssertionError):
    """An adapter breaks a property that the engine relies on; the message names it and the model.

    Attributes:
        broken: the property's name.
    """

    def __init__(self, broken: AdapterProperty, message: str) -> None:
        super().__init__(message)
        self.broken = broken


def check_adapter(
    model_factory: Callable[[], nn.Module],
    inputs: Inputs,
    *,
    adapter: Adapter | None = None,
    fraction: float = 0.4,
    tolerance: float = 1e-4,
    seed: int = 0,
    image_of: Callable[[Inputs, int], Inputs] | None = None,
) -> None:
    """Prune a small model with an adapter and raise unless it has every property that the engine relies on.

    The properties, by their names in the error:

    - "map": the adapter serves the model, and everything that it names is there;
    - "full": a step that computes all tokens gives the plain model's output bit for bit;
    - "pruned": so does, up to rounding, a step that computes some tokens of the same input, although what is cached
      of their predictions has been overwritten with NaN. What such a step takes from its caches is then just what it
      would have computed, so it shows that all places are found and every token is treated on its own. One step
      computes a single token, or the map's `least_tokens`;
    - "stale": with the cached keys and values of any attention module changed, the output does change, so every
      module reads its cache;
    - "batch": each image of a batch gets the same output alone (not checked where images share a selection);
    - "remove": afterwards the model is as before.

        check_adapter(lambda: MyTransformer(layers=2, width=32), {"x": latents, "t": times}, adapter=module_map)

    Args:
        model_factory: makes a small model with random weights (an untrained one whose last layer is zero shows
            nothing), in float32 or float64.
        inputs: arguments of a call of it, by name, for two images or more.
        adapter: writes the module map; None takes the installed one.
        fraction: how many tokens the pruned steps compute.
        tolerance: largest difference that counts as rounding, relative to the output's largest value.
        seed: seed of the noise and of the selections.
        image_of: the arguments for one image only. None takes row i of all tensors whose length is that of the
            latents, and item i of such lists.

    Raises:
        AdapterCheckError: a property does not hold.
    """
    with torch.no_grad():
        _Check(model_factory().eval(), inputs, adapter, fraction, tolerance, seed, image_of).run()


class _Check:
    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        adapter: Adapter | None,
        fraction: float,
        tolerance: float,
        seed: int,
        image_of: Callable[[Inputs, int], Inputs] | None,
    ) -> None:
        self.model, self.inputs, self.tolerance, self.seed = model, inputs, tolerance, seed
        try:
            self.map = (adapter or find_adapter(model))(model)
            self.map.check(model)
            self.tokens = num_tokens(self.map.grid(inputs))
            self.images = len(inputs[self.map.latents])
        except (TokenPruneError, AttributeError, KeyError) as error:
            raise self.error("map", f"{type(error).__name__}: {error}") from error
        self.image_of = image_of or (lambda given, image: _image_of(given, image, self.images))
        self.count = min(max(self.map.least_tokens, round(fraction * self.tokens)), self.tokens - 1)

    def run(self) -> None:
        before = _state_of(self.model)
        plain = self.model(**self.inputs)
        self.check_full(plain)
        self.check_pruned(plain)
        for site in self.map.attentions:
            self.check_stale(plain, site.path)
        if not self.map.shared:
            self.check_batch()
        if _state_of(self.model) != before:
            raise self.error("remove", "removing the hooks leaves attributes or hooks behind")
        if difference(self.model(**self.inputs), plain) != 0:
            raise self.error("remove", "after removing the hooks the output differs from what it was")

    def check_full(self, plain: Any) -> None:
        for output in self.play("full", [self.inputs] * 2, [self.tokens] * 2):
            if difference(output, plain) != 0:
                raise self.error("full", f"a full step differs from the plain model by {difference(output, plain):.2g}")

    def check_pruned(self, plain: Any) -> None:
        counts = [self.tokens, self.count, self.count, self.tokens, min(self.map.least_tokens, self.count)]
        outputs = self.play("pruned", [self.inputs] * len(counts), counts)
        for output, count in zip(outputs, counts, strict=True):
            apart = difference(output, plain)
            if not apart <= self.tolerance:
                raise self.error(
                    "pruned",
                    f"with {count} of {self.tokens} tokens of the same input the output differs by {apart:.2g} of its "
                    f"largest value from that of all tokens; some place where tokens meet is missing or wrong",
                )

    def check_stale(self, plain: Any, path: str) -> None:
        outputs = self.play("stale", [self.inputs] * 2, [self.tokens, self.count], corrupted=path)
        if difference(outputs[1], plain) <= self.tolerance:
            raise self.error("stale", f"{path}: other cached keys and values do not change the output")

    def check_batch(self) -> None:
        counts = [self.tokens, self.count, self.count]
        steps = [self.noised(step) for step in range(len(counts))]
        together = self.play("batch", steps, counts)
        for image in range(self.images):
            alone = self.play("batch", [self.image_of(step, image) for step in steps], counts, images=[image])
            for one, all_images in zip(alone, together, strict=True):
                apart = difference(one, _image_of(all_images, image, self.images))
                if not apart <= self.tolerance:
                    raise self.error("batch", f"image {image} alone differs by {apart:.2g} from the same in the batch")

    def noised(self, step: int) -> Inputs:
        """The inputs with other latents at each step."""
        generator = torch.Generator().manual_seed(self.seed + step)

        def noised(tensor: Tensor) -> Tensor:
            return tensor + 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor)

        return {**self.inputs, self.map.latents: tree_map(noised, self.inputs[self.map.latents])}

    def play(
        self,
        wanted: AdapterProperty,
        steps: Sequence[Inputs],
        counts: Sequence[int],
        corrupted: str | None = None,
        images: Sequence[int] | None = None,
    ) -> list[Any]:
        """The outputs of a generation that computes so many tokens at each step."""
        outputs: list[Any] = []
        numbers = range(self.images) if images is None else images
        played = play(self.model, self.map, steps, counts, self.seed, numbers, [corrupted])
        try:
            outputs.extend(played)
        except Exception as error:
            raise self.error(
                wanted, f"step {len(outputs)} ({counts[len(outputs)]} tokens) raised {type(error).__name__}: {error}"
            ) from error
        return outputs

    def error(self, broken: AdapterProperty, detail: str) -> AdapterCheckError:
        return AdapterCheckError(broken, f"{type(self.model).__name__}: the adapter breaks {broken!r}: {detail}")


def _image_of(value: Any, image: int, batch: int) -> Any:
    """Row or item `image` of every tensor and list that is as long as the batch."""
    if isinstance(value, Mapping):
        return {name: _image_of(item, image, batch) for name, item in value.items()}
    if isinstance(value, Tensor):
        return value[image : image + 1] if value.ndim and len(value) == batch else value
    if isinstance(value, list) and len(value) == batch:
        return value[image : image + 1]
    return type(value)(_image_of(item, image, batch) for item in value) if isinstance(value, (list, tuple)) else value


def _state_of(model: nn.Module) -> list[tuple[list[str], int, int]]:
    """Attributes and hooks of all modules."""
    return [
        (sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ]
