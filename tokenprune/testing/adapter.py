"""A check for adapters, one's own ones above all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tokenprune.engine.copies import shapes_of
from tokenprune.engine.on_meta import fault_on_meta
from tokenprune.engine.oracle import Inputs, difference, far_times, play
from tokenprune.errors import TokenPruneError, UnsupportedCallError, one_line
from tokenprune.ops.grid import num_tokens
from tokenprune.registry import Adapter, find_adapter
from tokenprune.reports.checks import CheckResult, Finding
from tokenprune.reports.remaining import Remaining
from tokenprune.testing.plain import outputs_behind, outputs_of, rows_of_image, state_of

AdapterProperty = Literal[
    "map", "full", "pruned", "held text", "exit", "stale", "noise level", "constants", "batch", "operations", "remove"
]

UNSEEN = (
    "whether the token grid has the right shape for its number of tokens",
    "time_rises: whether the timestep grows as the noise falls",
    "guidance: which half of a batch is the unconditional one",
    "noise_channels: which channels of the last projection are the prediction",
    "what the model does with its tokens behind the exit in code that is no module",
    "other noise levels than these, other sizes, numbers of text tokens and optional arguments",
)
"""What the kit cannot tell of an adapter."""


class AdapterCheckError(AssertionError):
    """An adapter breaks a property that the engine relies on; the message names it and the model.

    Attributes:
        broken: the property's name.
        result: all that was found, the broken property last.
    """

    def __init__(self, broken: AdapterProperty, message: str, result: CheckResult | None = None) -> None:
        super().__init__(message)
        self.broken, self.result = broken, result


class NotChecked(Exception):  # noqa: N818
    """Why a property cannot be checked with this model or these arguments."""


def check_adapter(
    model_factory: Callable[[], nn.Module],
    inputs: Inputs,
    *,
    adapter: Adapter | None = None,
    fraction: float = 0.4,
    tolerance: float = 1e-4,
    seed: int = 0,
    image_of: Callable[[Inputs, int], Inputs] | None = None,
    tell: Callable[[str], None] | None = None,
) -> CheckResult:
    """Prune a small model with an adapter and raise unless it has every property that the engine relies on.

    The properties, by their names in the error:

    - "map": the adapter serves the model, and everything that it names is there;
    - "full": a step that computes all tokens gives the plain model's output bit for bit;
    - "pruned": so does, up to rounding, a step that computes some tokens of the same input, although what is cached
      of their predictions has been overwritten with NaN. What such a step takes from its caches is then just what it
      would have computed, so it shows that all places are found and every token is treated on its own. One step
      computes a single token, or the map's `least_tokens`;
    - "held text": where the map names text rows, so does a step that computes some image tokens and one
      text token;
    - "exit": no layer behind the exit works on its tokens one by one: it is the last projection;
    - "stale": with the cached keys and values of any attention module changed, the output does change, so every
      module reads its cache;
    - "noise level": "full" and "pruned" hold at one or two other noise levels, with other latents;
    - "constants": they give the same there, as the text is the same;
    - "batch": each image of a batch gets the same output alone;
    - "operations": calls run on torch's meta device, where they are counted, unless the map has `reads_values`;
    - "remove": afterwards the model is as before.

        print(check_adapter(lambda: MyTransformer(layers=2, width=32), {"x": latents, "t": times}, adapter=module_map))

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
        tell: given a line for each property that was checked, with how long the rest may take; `print`, for example.

    Returns:
        What was checked of each property, what could not be, and what no such check can tell; printed, a table.

    Raises:
        AdapterCheckError: a property does not hold; it has the `result` so far.
    """
    with torch.no_grad():
        return _Check(model_factory().eval(), inputs, adapter, fraction, tolerance, seed, image_of).run(tell)


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
        self.adapter, self.fraction = adapter, fraction
        self.image_of = image_of or (lambda given, image: rows_of_image(given, image, self.images))
        self.before = state_of(model)

    def run(self, tell: Callable[[str], None] | None) -> CheckResult:
        findings: list[Finding] = []
        names = get_args(AdapterProperty)
        remaining = Remaining(len(names))
        for name in names:
            check: Callable[[], str] = getattr(self, f"check_{name.replace(' ', '_')}")
            try:
                findings.append(Finding(name, "passed", check()))
            except NotChecked as reason:
                findings.append(Finding(name, "not checked", str(reason)))
            except AdapterCheckError as error:
                findings.append(Finding(name, "failed", str(error)))
                error.result = self.result(findings)
                raise
            remaining.finish_one()
            if tell is not None:
                tell(f"{name}: {findings[-1].outcome} ({remaining})")
        return self.result(findings)

    def result(self, findings: Sequence[Finding]) -> CheckResult:
        return CheckResult(f"adapter of {type(self.model).__name__}", tuple(findings), UNSEEN)

    def check_map(self) -> str:
        try:
            self.map = (self.adapter or find_adapter(self.model))(self.model)
            self.map.check(self.model)
            self.tokens = num_tokens(self.map.grid(self.inputs))
            self.images = len(self.inputs[self.map.latents])
        except (TokenPruneError, AttributeError, KeyError) as error:
            raise self.error("map", f"{type(error).__name__}: {error}") from error
        self.count = min(max(self.map.least_tokens, round(self.fraction * self.tokens)), self.tokens - 1)
        blocks, attentions = len(self.map.blocks), len(self.map.attentions)
        return f"{blocks} blocks, {attentions} attention modules, {self.tokens} tokens, {self.images} images"

    def check_full(self) -> str:
        self.plain = self.model(**self.inputs)
        for output in self.play("full", [self.inputs] * 2, [self.tokens] * 2):
            if difference(output, self.plain) != 0:
                apart = difference(output, self.plain)
                raise self.error("full", f"a full step differs from the plain model by {apart:.2g}")
        return "2 full steps, bit for bit the plain model's"

    def check_pruned(self) -> str:
        least = min(self.map.least_tokens, self.count)
        self.same_pruned("pruned", self.inputs, [self.tokens, self.count, self.count, self.tokens, least], self.plain)
        return f"steps of {self.count} tokens and of {least}, the plain model's up to rounding"

    def same_pruned(
        self,
        wanted: AdapterProperty,
        inputs: Inputs,
        counts: Sequence[int],
        plain: Any,
        when: str = "",
        held: Sequence[int] = (),
    ) -> None:
        """Raise unless steps that compute so many tokens of one input give the plain model's output for it."""
        outputs = self.play(wanted, [inputs] * len(counts), counts, held=held)
        for output, count in zip(outputs, counts, strict=True):
            apart = difference(output, plain)
            if not apart <= self.tolerance:
                raise self.error(
                    wanted,
                    f"{when}with {count} of {self.tokens} tokens of the same input the output differs by {apart:.2g} "
                    f"of its largest value from that of all tokens; some place where tokens meet is missing or wrong",
                )

    def check_held_text(self) -> str:
        if not self.map.may_leave_out_text:
            raise NotChecked("the map names no arguments with the layout 'text'")
        counts = [self.tokens, self.count, self.count, self.count]
        try:
            self.same_pruned("held text", self.inputs, counts, self.plain, "with one text token, ", held=(1, 3))
        except AdapterCheckError as error:
            if isinstance(error.__cause__, UnsupportedCallError):
                raise NotChecked(str(error.__cause__)) from error
            raise
        return f"steps of {self.count} image tokens and one text token, the plain model's up to rounding"

    def check_exit(self) -> str:
        site = self.map.exit_site
        references = sum(self.map.references(self.inputs)) if self.map.references else 0
        behind = outputs_behind(self.model, self.inputs, site.path, site.dim, self.tokens + references)
        if behind:
            raise self.error(
                "exit",
                f"{', '.join(behind)} still works on the tokens that {site.path} gives, one by one: what is kept and "
                f"forecast is then no prediction, and pruned steps compute it for all tokens; name the last such "
                f"layer as the exit",
            )
        return f"no layer behind {site.path} works on its tokens one by one"

    def check_stale(self) -> str:
        for path in (site.path for site in self.map.attentions):
            outputs = self.play("stale", [self.inputs] * 2, [self.tokens, self.count], corrupted=path)
            if difference(outputs[1], self.plain) <= self.tolerance:
                raise self.error("stale", f"{path}: other cached keys and values do not change the output")
        return f"each of {len(self.map.attentions)} attention modules reads its cache"

    def check_noise_level(self) -> str:
        for when, far in self.far():
            try:
                plain = self.model(**far)
            except Exception as error:  # the model's own code, which may know some timesteps alone
                raise NotChecked(f"at {when} the model raises {_said(error)}") from error
            self.same_pruned("noise level", far, [self.tokens, self.count], plain, f"at {when}, ")
        return f"full and pruned steps at {' and '.join(when for when, _ in self.far())}, with other latents"

    def check_constants(self) -> str:
        if not self.map.constants:
            raise NotChecked("the map names none")
        kept = outputs_of(self.model, self.inputs, self.map.constants)
        try:
            others = outputs_of(self.model, self.far()[0][1], self.map.constants)
        except Exception as error:
            raise NotChecked(f"at another noise level the model raises {_said(error)}") from error
        for path in self.map.constants:
            if path not in kept or path not in others or difference(others[path], kept[path]) != 0:
                raise self.error(
                    "constants",
                    f"{path}: expected the same output as long as {self.map.text!r} is the same; at another noise "
                    f"level it gave another, or none",
                )
        return f"{len(self.map.constants)} layers give the same at another noise level"

    def check_batch(self) -> str:
        if self.images < 2:
            raise NotChecked("the arguments are for one image")
        counts = [self.tokens, self.count, self.count]
        steps = [self.noised(step) for step in range(len(counts))]
        together = self.play("batch", steps, counts)
        for image in range(self.images):
            drawn = 0 if self.map.shared else image  # all images have the first one's tokens selected
            alone = self.play("batch", [self.image_of(step, image) for step in steps], counts, images=[drawn])
            for one, all_images in zip(alone, together, strict=True):
                apart = difference(one, rows_of_image(all_images, image, self.images))
                if not apart <= self.tolerance:
                    raise self.error("batch", f"image {image} alone differs by {apart:.2g} from the same in the batch")
        return f"each of {self.images} images gets alone what it gets in the batch"

    def check_operations(self) -> str:
        if self.map.reads_values:
            raise NotChecked("the map says that the model reads values; reports run it to count")
        fault = fault_on_meta(self.model, self.map, shapes_of(((), dict(self.inputs))), self.count)
        if fault is not None:
            raise self.error(
                "operations",
                f"calls cannot be counted on torch's meta device, so that a report fails: {fault}. Where the model "
                f"looks at values of its tensors, the map needs reads_values=True",
            )
        return "a full and a pruned call run on torch's meta device"

    def check_remove(self) -> str:
        if state_of(self.model) != self.before:
            raise self.error("remove", "removing the hooks leaves attributes or hooks behind")
        if difference(self.model(**self.inputs), self.plain) != 0:
            raise self.error("remove", "after removing the hooks the output differs from what it was")
        return "attributes, hooks and output are as before"

    def noised(self, step: int) -> Inputs:
        """The inputs with other latents at each step."""
        generator = torch.Generator().manual_seed(self.seed + step)

        def noised(tensor: Tensor) -> Tensor:
            return tensor + 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor)

        return {**self.inputs, self.map.latents: tree_map(noised, self.inputs[self.map.latents])}

    def far(self) -> list[tuple[str, Inputs]]:
        """The inputs with other latents, at other noise levels, and at which."""
        name = self.map.time
        if name not in self.inputs:
            raise NotChecked(f"the arguments say nothing of {name!r}")
        times = far_times(self.inputs[name])
        values = (float(time.max()) if isinstance(time, Tensor) else time for time in times)
        return [(f"{name} = {v:g}", {**self.noised(0), name: t}) for v, t in zip(values, times, strict=True)]

    def play(
        self,
        wanted: AdapterProperty,
        steps: Sequence[Inputs],
        counts: Sequence[int],
        corrupted: str | None = None,
        images: Sequence[int] | None = None,
        held: Sequence[int] = (),
    ) -> list[Any]:
        """The outputs of a generation that computes so many tokens at each step."""
        outputs: list[Any] = []
        numbers = range(self.images) if images is None else images
        played = play(self.model, self.map, steps, counts, self.seed, numbers, [corrupted], held=held)
        try:
            outputs.extend(played)
        except Exception as error:
            raise self.error(
                wanted, f"step {len(outputs)} ({counts[len(outputs)]} tokens) raised {type(error).__name__}: {error}"
            ) from error
        return outputs

    def error(self, broken: AdapterProperty, detail: str) -> AdapterCheckError:
        return AdapterCheckError(broken, f"{type(self.model).__name__}: the adapter breaks {broken!r}: {detail}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
