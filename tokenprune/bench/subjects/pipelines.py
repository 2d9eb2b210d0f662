"""The pipelines that a bench run can measure: embedded ones, and any of diffusers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokenprune.embedded.load import EMBEDDED
from tokenprune.errors import ConfigurationError, one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


DEVICES = ("cpu", "cuda")


RANDOM = "random:"
"""What names of models with random weights begin with."""


@dataclass(frozen=True)
class Subject:
    """A pipeline to measure, and how to call it.

    Attributes:
        name: an embedded model's, a directory or a hub name.
        load: a fresh pipeline, on its device.
        steps: its own number of steps.
        guidance_scale: its own; None leaves it to the pipeline.
        guided: whether it takes a guidance scale.
        arguments: further arguments of its call.
        settings: how it was loaded, for the result file.
        learnt: whether its pictures show anything.
        missing: components that its directory says it has none of, which `from_pretrained` must be told.
    """

    name: str
    load: Callable[[], Any]
    steps: int
    guidance_scale: float | None
    guided: bool
    arguments: Mapping[str, Any]
    settings: Mapping[str, str]
    learnt: bool = True
    missing: tuple[str, ...] = ()

    def scale(self, given: float | None) -> float | None:
        """The guidance scale to draw with: what is given, or its own.

        Raises:
            ConfigurationError: one is given, and it takes none.
        """
        if given is not None and not self.guided:
            raise ConfigurationError(f"guidance-scale: expected none, as {self.name} takes no guidance_scale")
        return self.guidance_scale if given is None else given

    @property
    def plain_arguments(self) -> dict[str, Any]:
        """The arguments as plain data, for files."""
        found: dict[str, Any] = json.loads(json.dumps(dict(self.arguments), default=str))
        return found


def find_subject(
    model: str,
    dtype: str = "float32",
    device: str | None = None,
    variant: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Subject:
    """The pipeline of that name; its weights are read when it is loaded.

    Args:
        model: an embedded pipeline's name; `random:NAME`, or `random:NAME,layers=L`, for a model at its published size
            with random weights; else the directory or the hub name of a diffusers pipeline.
        dtype: float32, bfloat16 or float16.
        device: cpu or cuda; None is cuda where there is one.
        variant: of the weights' files, such as "fp16".
        arguments: of the pipeline's call, by name.

    Raises:
        ConfigurationError: no such pipeline, one without a transformer or prompts, or arguments that it cannot take.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for option, value, known in (("dtype", dtype, DTYPES), ("device", device, DEVICES)):
        if value not in known:
            raise ConfigurationError(f"{option}: expected one of {', '.join(known)}, got {value!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device: expected cpu, as torch sees no CUDA device here, got 'cuda'")
    settings = {"dtype": dtype, "device": device, **({"variant": variant} if variant else {})}
    kind = _embedded if model in EMBEDDED else _random if model.startswith(RANDOM) else _diffusers
    return kind(model, settings, dict(arguments or {}))


def read_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments given as `name=value`, with values as YAML reads them: 512, 0.5, false, [1, 2], text.

    Raises:
        ConfigurationError: one is not of this form.
    """
    import yaml

    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals or not name.isidentifier():
                raise ValueError(f"got {text!r}")
            found[name] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigurationError(f"argument: expected name=value, {one_line(error)}") from error
    return found


def _embedded(model: str, settings: dict[str, str], arguments: dict[str, Any]) -> Subject:
    embedded = EMBEDDED[model]
    passed = {**embedded.arguments, **arguments}
    _check_call(model, embedded.pipeline, passed)

    def load() -> Any:
        return _placed(embedded.load(), settings)

    return Subject(model, load, embedded.steps, embedded.guidance_scale, True, passed, settings)


def _random(model: str, settings: dict[str, str], arguments: dict[str, Any]) -> Subject:
    from tokenprune.bench.subjects.random_weights import SHAPES, RandomPipeline

    name, _, rest = model.removeprefix(RANDOM).partition(",")
    options = read_arguments([rest] if rest else [])
    layers = options.get("layers")
    if name not in SHAPES or set(options) - {"layers"} or not (layers is None or (type(layers) is int and layers > 0)):
        expected = f"{RANDOM} and one of {', '.join(SHAPES)}, for fewer blocks with ',layers=2'"
        raise ConfigurationError(f"model: expected {expected}, got {model!r}")
    defaults = _check_call(model, RandomPipeline, arguments)

    def load() -> Any:
        return RandomPipeline(name, layers, settings["device"], DTYPES[settings["dtype"]])

    steps, guidance_scale = defaults["num_inference_steps"], defaults["guidance_scale"]
    return Subject(model, load, steps, guidance_scale, True, arguments, settings, learnt=False)


def _diffusers(model: str, settings: dict[str, str], arguments: dict[str, Any]) -> Subject:
    import diffusers

    expected = f"{', '.join(EMBEDDED)}, {RANDOM}..., or the directory or hub name of a diffusers pipeline"
    try:
        described: dict[str, Any] = diffusers.DiffusionPipeline.load_config(model)
    except (OSError, ValueError) as error:
        reason = "has no model_index.json" if Path(model).is_dir() else "is no directory, and the hub does not give it"
        raise ConfigurationError(f"model: expected {expected}; {model!r} {reason}") from error
    name = described.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None or "transformer" not in described:
        lack = f"its class is {name!r}" if kind is None else f"{name} has no transformer"
        raise ConfigurationError(f"model: expected {expected}, of diffusers and with a transformer; {model!r}: {lack}")
    defaults = _check_call(model, kind, arguments)
    steps, guidance_scale = defaults["num_inference_steps"], defaults.get("guidance_scale")
    if not isinstance(steps, int):
        raise ConfigurationError(f"{model}: expected a pipeline with a default num_inference_steps, got {steps!r}")

    missing = tuple(part for part, source in described.items() if source == [None, None])

    def load() -> Any:
        options = {"dtype": DTYPES[settings["dtype"]], "variant": settings.get("variant")}
        try:
            pipe = kind.from_pretrained(model, **options, **dict.fromkeys(missing))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigurationError(f"{model}: cannot be loaded as {name}: {one_line(error)}") from error
        return _placed(pipe, settings)

    guided = "guidance_scale" in defaults
    return Subject(model, load, steps, guidance_scale, guided, arguments, settings, missing=missing)


def _placed(pipe: Any, settings: Mapping[str, str]) -> Any:
    from accelerate import PartialState

    pipe.set_progress_bar_config(disable=True)
    device = PartialState().device if settings["device"] == "cuda" else settings["device"]
    return pipe.to(device, DTYPES[settings["dtype"]])


def _check_call(model: str, kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a pipeline's call, where it takes prompts, steps and these arguments and needs no other."""
    taken = list(inspect.signature(kind.__call__).parameters.values())[1:]  # type: ignore[operator]
    named = {each.name: each for each in taken if each.kind is not each.VAR_KEYWORD}
    needed = {name for name, each in named.items() if each.default is each.empty} - {"prompt"}
    place = f"{model} ({kind.__name__})"
    if lacking := {"prompt", "num_inference_steps"} - set(named):
        raise ConfigurationError(f"{place}: expected a pipeline that takes {', '.join(sorted(lacking))}")
    if "num_frames" in named:
        raise ConfigurationError(f"{place}: expected a pipeline of pictures, got one of videos, with num_frames")
    if missing := sorted(needed - set(arguments)):
        raise ConfigurationError(f"{place}: needs {', '.join(missing)}: pass --argument {missing[0]}=...")
    if len(named) == len(taken) and (unknown := sorted(set(arguments) - set(named))):
        raise ConfigurationError(f"{place}: argument: expected one of {', '.join(named)}, got {', '.join(unknown)}")
    return {name: each.default for name, each in named.items()}
