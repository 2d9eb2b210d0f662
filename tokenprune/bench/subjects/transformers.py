"""Transformers by name: an embedded one, a saved one, one of published size, one of a factory."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from tokenprune.bench.subjects.pipelines import RANDOM
from tokenprune.embedded.load import EMBEDDED, Embedded
from tokenprune.errors import ConfigurationError
from tokenprune.macs.example_calls import Wanted
from tokenprune.plans.imported import imported
from tokenprune.targets import transformer_of

NOTHING = Wanted()


OWNER_AND_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Loaded:
    """A model, and what is known of its calls.

    Attributes:
        model: without weights on the meta device, unless a factory made it.
        inputs: arguments of a call, if a factory gave them.
        scale: pixels for each row of latents, if the pipeline's autoencoder says so.
        usual: what the pipeline is known to give, where nobody says anything else.
    """

    model: nn.Module
    inputs: Mapping[str, Any] | None = None
    scale: int | None = None
    usual: Wanted = NOTHING


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
    if target in EMBEDDED:
        return _embedded(EMBEDDED[target])
    if target.startswith(RANDOM):
        return Loaded(_of_published_size(target))
    if ":" in target:
        return _from_factory(target)
    if hasattr(diffusers, target):
        return Loaded(_build(target, {"_class_name": target}))
    if OWNER_AND_NAME.fullmatch(target):
        return Loaded(_build(target, _hub_config(target)))
    raise ConfigurationError(
        f"{target}: neither a directory, an embedded model ({', '.join(EMBEDDED)}), module.path:factory, a class of "
        f"diffusers, nor owner/name on the hub"
    )


def _embedded(model: Embedded) -> Loaded:
    """One that ships with the package, called as its pipeline is."""
    size = {name: model.arguments[name] for name in ("height", "width") if name in model.arguments}
    with as_file(model.folder) as folder:
        return _from_directory(folder, Wanted(**size, text=model.text_tokens))


def _from_directory(folder: Path, usual: Wanted = NOTHING) -> Loaded:
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
    return Loaded(_build(str(config), _read(config)), scale=scale, usual=usual)


def _of_published_size(target: str) -> nn.Module:
    """A model that `tokenprune bench` knows at its published size, on the meta device."""
    from tokenprune.bench.subjects.random_weights import SHAPES

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
    factory = imported(target)
    try:
        made = factory()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{target}: {type(error).__name__}: {error}") from error
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    model = transformer_of(model).eval()
    if inputs is not None:
        try:
            inspect.signature(model.forward).bind(**inputs)
        except TypeError as error:
            raise ConfigurationError(f"{target}: the arguments do not fit the model's forward: {error}") from error
    return Loaded(model, inputs)
