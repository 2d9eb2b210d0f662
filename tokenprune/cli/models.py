"""The model that a command is asked about, how its pipeline calls it, and the plan to prune it with."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import socket
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from tokenprune.bench.rehearsal import Call
from tokenprune.bench.subjects import RANDOM
from tokenprune.errors import ConfigurationError
from tokenprune.modulemap import ModuleMap
from tokenprune.plans import Plan
from tokenprune.policies import CATPolicy
from tokenprune.presets import plan as best_plan
from tokenprune.registry import transformer_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
GUIDANCE = ("batched", "separate", "none")
TEXT = {"shapes-sd3": 49, "shapes-pixart": 48}
"""Text tokens that the embedded pipelines, by name, give their transformers."""
BYPASSING = ("Sliced", "XFormers")
"""What attention processors are called that have kernels of their own."""
OWNER_AND_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Loaded:
    """A model, and what is known of its calls.

    Attributes:
        model: without weights on the meta device, unless a factory made it.
        inputs: arguments of a call, if a factory gave them.
        scale: pixels for each row of latents, if the pipeline's autoencoder says so.
        text: text tokens, if the pipeline is known to give so many.
    """

    model: nn.Module
    inputs: Mapping[str, Any] | None = None
    scale: int | None = None
    text: int | None = None


@dataclass(frozen=True)
class Wanted:
    """What the user says of the calls; None leaves it to the model's pipeline."""

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    text: int | None = None
    batch: int | None = None
    guidance: str | None = None

    def given(self) -> list[str]:
        """Names of what is not left open, guidance aside."""
        return [name for name, value in vars(self).items() if value is not None and name != "guidance"]


@dataclass(frozen=True)
class Called:
    """How the model is called, in words, too; `text` is None where a factory gave the arguments."""

    call: Call
    size: str
    text: int | None
    guidance: str


def load(target: str) -> Loaded:
    """The model that the user means.

    Args:
        target: directory of a diffusers pipeline or transformer, name of an embedded pipeline, random:sd3-medium and
            the like, module.path:factory, name of a transformer class of diffusers, or owner/name on the hub.

    Raises:
        ConfigurationError: there is no such model, or it cannot be built.
    """
    import diffusers

    if Path(target).is_dir():
        return _from_directory(Path(target))
    if target in TEXT:
        return _from_directory(Path(str(files("tokenprune.embedded") / "weights" / target)), TEXT[target])
    if target.startswith(RANDOM):
        return Loaded(_of_published_size(target))
    if ":" in target:
        return _from_factory(target)
    if hasattr(diffusers, target):
        return Loaded(_build(target, {"_class_name": target}))
    if OWNER_AND_NAME.fullmatch(target):
        return Loaded(_build(target, _hub_config(target)))
    raise ConfigurationError(
        f"{target}: neither a directory, an embedded model ({', '.join(TEXT)}), module.path:factory, a class of "
        f"diffusers, nor owner/name on the hub"
    )


def call_of(loaded: Loaded, found: ModuleMap, wanted: Wanted) -> Called | None:
    """How the model is called; None where neither a factory nor the package's examples say.

    Raises:
        ConfigurationError: a size or guidance that the model cannot have.
    """
    from tokenprune_adapters.examples import EXAMPLES

    if wanted.guidance not in (None, *GUIDANCE):
        raise ConfigurationError(f"guidance: expected one of {', '.join(GUIDANCE)}, got {wanted.guidance!r}")
    if loaded.inputs is not None:
        if wanted.given():
            raise ConfigurationError(f"{', '.join(wanted.given())}: the factory's arguments say that already")
        guidance = wanted.guidance or "none"
        call = Call(loaded.inputs, 2 if guidance == "separate" else 1, guidance == "batched")
        return Called(call, "as the factory gives it", None, guidance)
    names = [ancestor.__name__ for ancestor in type(loaded.model).__mro__ if ancestor.__name__ in EXAMPLES]
    if not names:
        return None
    example = EXAMPLES[names[0]]
    guidance = wanted.guidance or example.guidance
    batch = (wanted.batch or 1) * (2 if guidance == "batched" else 1)
    text = loaded.text if wanted.text is None else wanted.text
    try:
        at = example.latents(loaded.model, wanted.height, wanted.width, wanted.frames, text, batch, loaded.scale)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    scale = loaded.scale or example.scale
    size = f"{at.height * scale} x {at.width * scale} pixels" + (
        f", {at.frames} latent frames" if at.frames > 1 else ""
    )
    arguments = example.arguments(loaded.model, at, "cpu", torch.float32)
    return Called(Call(arguments, 2 if guidance == "separate" else 1, guidance == "batched"), size, at.text, guidance)


def plan_of(
    model: nn.Module, file: Path | None, budget: str | None, alpha: float | None, warmup_steps: int | None
) -> Plan:
    """The plan that the user means: of a file, for a budget or preset, or CAT Pruning.

    Raises:
        ConfigurationError: several of these, or a file or number that means nothing.
    """
    from tokenprune.plan_files import load_plan

    of_cat = {"alpha": alpha, "warmup_steps": warmup_steps}
    given = [name for name, value in {"plan": file, "budget": budget, **of_cat}.items() if value is not None]
    if len(given) > 1 and not set(given) <= set(of_cat):
        raise ConfigurationError(f"{', '.join(given)}: expected only one of plan, budget, or alpha with warmup_steps")
    try:
        if file is not None:
            return load_plan(file)
        if budget is not None:
            return best_plan(model, _number(budget))
        cat = CATPolicy(0.3 if alpha is None else alpha, 8 if warmup_steps is None else warmup_steps)
        return Plan(cat)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error)) from error


def at_least(**numbers: int | None) -> None:
    """Raise ConfigurationError for a number below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigurationError(f"{name}: expected at least 1, got {number}")


def notes_of(model: nn.Module, found: ModuleMap) -> list[str]:
    """What a user of pruning should know of a model beforehand."""
    notes = []
    processors = [getattr(model.get_submodule(site.path), "processor", None) for site in found.attentions]
    backends = [os.environ.get("DIFFUSERS_ATTN_BACKEND"), *(getattr(p, "_attention_backend", None) for p in processors)]
    bypass = {str(getattr(name, "value", name)) for name in backends if name is not None}
    bypass = {name for name in bypass if "native" not in name}
    bypass |= {name for p in processors if (name := type(p).__name__).startswith(BYPASSING) or name == "AttnProcessor"}
    if bypass:
        notes.append(
            f"attention through {', '.join(sorted(bypass))} does not reach torch's scaled_dot_product_attention: "
            f"pruning will refuse it at the first step; call model.set_attention_backend('native')"
        )
    config: Any = getattr(model, "config", None) or {}
    if "quantization_config" in config:
        notes.append("the checkpoint is quantised: operations and caches are reckoned as if it were not")
    if model._compiled_call_impl is not None or hasattr(model, "_orig_mod"):
        notes.append("the whole model is compiled; compile its blocks instead, block.compile(fullgraph=True)")
    return notes


def _from_directory(folder: Path, text: int | None = None) -> Loaded:
    scale = None
    if (folder / "model_index.json").is_file():
        if not (folder / "transformer").is_dir():
            raise ConfigurationError(f"{folder}: expected a pipeline with a transformer, found none")
        autoencoder = folder / "vae" / "config.json"
        if autoencoder.is_file():
            settings = _read(autoencoder)
            if settings.get("_class_name") == "AutoencoderKL" and "block_out_channels" in settings:
                scale = 2 ** (len(settings["block_out_channels"]) - 1)
        folder = folder / "transformer"
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigurationError(f"{folder}: expected a diffusers model, found no config.json")
    return Loaded(_build(str(config), _read(config)), scale=scale, text=text)


def _of_published_size(target: str) -> nn.Module:
    """A model that `tokenprune bench` knows at its published size, on the meta device."""
    from tokenprune.bench.random_weights import SHAPES

    name = target.removeprefix(RANDOM)
    if name not in SHAPES:
        raise ConfigurationError(f"{target}: expected one of {', '.join(RANDOM + shape for shape in SHAPES)}")
    with torch.device("meta"):
        return SHAPES[name].build()


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigurationError(f"{file}: expected JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file}: expected settings by name, got {type(found).__name__}")
    return found


def _build(where: str, settings: dict[str, Any]) -> nn.Module:
    """The model of a config without its weights, on the meta device: an adapter needs no more."""
    import diffusers

    model: nn.Module
    try:
        kind: Any = getattr(diffusers, settings["_class_name"])
        if nn.Module not in getattr(kind, "__mro__", ()):
            raise TypeError(f"{settings['_class_name']} is no model")
        with torch.device("meta"):
            model = kind.from_config(settings)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{where}: {type(error).__name__}: {error}") from error
    return model.eval()


def _hub_config(name: str) -> dict[str, Any]:
    from diffusers import ConfigMixin

    class Config(ConfigMixin):  # type: ignore[misc]
        config_name = "config.json"

    online = _hub_answers()
    for folder in ("transformer", None):
        with contextlib.suppress(OSError, ValueError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*local_dir_use_symlinks", UserWarning)  # an argument of diffusers' own
            return dict(Config.load_config(name, subfolder=folder, local_files_only=not online))
    where = "on the hub" if online else "among downloaded models, and the hub does not answer"
    raise ConfigurationError(f"{name}: no such directory, and no config of a transformer {where}")


def _hub_answers() -> bool:
    """Whether a connection can be made, so that the client need not try for half a minute; a proxy is trusted."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return not constants.HF_HUB_OFFLINE
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _from_factory(target: str) -> Loaded:
    module, _, name = target.partition(":")
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{target}: {type(error).__name__}: {error}") from error
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    model = transformer_of(model).eval()
    if inputs is not None:
        try:
            inspect.signature(model.forward).bind(**inputs)
        except TypeError as error:
            raise ConfigurationError(f"{target}: the arguments do not fit the model's forward: {error}") from error
    return Loaded(model, inputs)


def _number(budget: str) -> float | str:
    try:
        return float(budget)
    except ValueError:
        return budget
