"""Every transformer that diffusers makes pictures or videos with is served, or refused by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

import diffusers
import diffusers.models.transformers as transformers
from torch import nn
from versions import needs

from tokenprune.registry import known_models
from tokenprune.targets import PARTS
from tokenprune_adapters.unsupported import OTHERS, REFUSALS


def models_of_diffusers() -> set[str]:
    """Names of all its transformers."""
    exported = {name: getattr(transformers, name) for name in dir(transformers)}
    return {name for name, kind in exported.items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}


def names_in(annotation: object) -> Iterator[str]:
    """Classes that an annotation allows, by name; some modules of diffusers keep theirs as text."""
    for kind in typing.get_args(annotation) or (annotation,):
        if inspect.isclass(kind) and issubclass(kind, nn.Module):
            yield kind.__name__
        elif isinstance(kind, str):
            yield from (name.strip() for name in kind.split("|") if name.strip() != "None")


def denoisers_of_pipelines() -> set[str]:
    """Names of the classes that pipelines take as a transformer."""
    found: set[str] = set()
    for name in dir(diffusers):
        if name.endswith("Pipeline"):
            parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
            for part in set(PARTS) & set(parameters):
                found.update(names_in(parameters[part].annotation))
    return found


@needs("Gemma4ForConditionalGeneration")
def test_every_transformer_has_its_place() -> None:
    """A release of diffusers that adds one fails here: write an adapter, or say in unsupported.py why not."""
    served = set(known_models()) - set(REFUSALS)
    found = models_of_diffusers() | denoisers_of_pipelines()
    assert len(found) > 70
    assert found - served - set(REFUSALS) - set(OTHERS) == set(), "neither served nor refused nor of other things"


def test_the_places_exclude_each_other() -> None:
    """All refused classes have an adapter that says why; those of other things have none."""
    assert set(REFUSALS) <= set(known_models())
    assert set(OTHERS) & set(known_models()) == set()
    for name in (*REFUSALS, *OTHERS):
        assert issubclass(getattr(diffusers, name, None) or getattr(transformers, name), nn.Module), name
