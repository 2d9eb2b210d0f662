"""What two watched calls tell of a model: its attention modules, and blocks with their arguments."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tokenprune.discovery.watch import Changed, Digest, Event, Place
from tokenprune.errors import UnknownModelError
from tokenprune.modulemap import AttentionSite, BlockSite, Layout, TokenArgument

Pair = tuple[Event, Event]
"""The same event of two calls that differ in one thing."""

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Undiscovered(UnknownModelError):  # noqa: N818
    """What is missing of a model's map; `discover` adds the model's name and what was found."""


@dataclass(frozen=True)
class Sizes:
    """Lengths of sequences.

    Attributes:
        tokens: N, the image tokens.
        joint: the lengths of sequences of image and text tokens.
        images: B, or how many images the latents have.
    """

    tokens: int
    joint: frozenset[int]
    images: int


def pairs_of(one: list[Event], other: list[Event], apart: str = "other latents") -> list[Pair]:
    """The events of two calls, side by side.

    Args:
        one: of one call.
        other: of the other.
        apart: what the other call had, for the error.

    Raises:
        Undiscovered: they are not the same.
    """
    ran = "its start"
    for first, second in itertools.zip_longest(one, other):
        if first is None or second is None or (first.kind, first.path) != (second.kind, second.path):
            raise Undiscovered(
                f"a path through the model that does not depend on its inputs: after {ran} a call with {apart} ran "
                f"{_step(second)} in place of {_step(first)}"
            )
        ran = first.path
    return list(zip(one, other, strict=True))


def _step(event: Event | None) -> str:
    return "no further module" if event is None else f"{event.path or 'the model itself'} ({event.kind})"


def changes(pair: Pair) -> dict[Place, tuple[Digest, Changed]]:
    """For every tensor of an event, its digest and the rows in which it differs between the two calls."""
    one, other = pair[0].tensors, pair[1].tensors
    shared = (place for place in one if place in other and one[place].shape == other[place].shape)
    return {place: (one[place], one[place].changed(other[place])) for place in shared}


def layout_of(rows: tuple[int, ...], length: int) -> Layout | None:
    """The layout of a sequence of this length with image tokens in these rows; None: neither first nor last."""
    if len(rows) == length:
        return "image"
    orders: tuple[tuple[Layout, range], ...] = (
        ("image-text", range(len(rows))),
        ("text-image", range(length - len(rows), length)),
    )
    return next((layout for layout, places in orders if rows == tuple(places)), None)


# Attention modules -------------------------------------------------------------------------------------------------


def find_attentions(moved: list[Pair], images: int) -> tuple[tuple[AttentionSite, ...], Sizes]:
    """The modules whose attention calls have keys that change with the latents, and the lengths of those."""
    modules: dict[str, set[int]] = defaultdict(set)
    for one, _ in moved:
        for path, call in one.running:
            modules[path].add(call)
    calls: dict[str, list[tuple[Event, tuple[int, ...]]]] = defaultdict(list)
    for pair in moved:
        if pair[0].kind == "attention":
            key, changed = changes(pair)["key",]
            calls[_own_module(pair[0], modules)].append((pair[0], changed[-2]))
            _refuse_compressed(pair, changed[-2])
            if key.shape[-2] == 0:
                raise Undiscovered(f"keys in all attention calls: {pair[0].path or 'the model itself'} attends to none")
    with_images = {path: found for path, found in calls.items() if any(rows for _, rows in found)}
    if not with_images:
        total = sum(len(found) for found in calls.values())
        raise Undiscovered(
            f"attention to the image: of {total} calls of torch.nn.functional.scaled_dot_product_attention, none has "
            f"keys that change with the latents (attention written with softmax, nn.MultiheadAttention, flash-attn and "
            f"other packages, recurrent and linear attention are not seen)"
        )
    counts = {len(rows) for found in with_images.values() for _, rows in found if rows}
    if len(counts) > 1:
        raise Undiscovered(
            f"one set of image tokens: attention sees {', '.join(map(str, sorted(counts)))} image keys in different "
            f"modules (stages of several resolutions, windows or frames cannot be described)"
        )
    (tokens,) = counts
    sites = tuple(_site(path, found, tokens, images) for path, found in with_images.items())
    lengths = {event.tensors["key",].shape[-2] for found in with_images.values() for event, rows in found if rows}
    return sites, Sizes(tokens, frozenset(lengths - {tokens}), images)


def _refuse_compressed(pair: Pair, rows: tuple[int, ...]) -> None:
    """Raise where several image tokens share a key: those not computed have none to keep."""
    seen = changes(pair)
    if ("query",) not in seen or not rows:
        return
    query, moving = seen["query",]
    if len(moving[-2]) > len(rows):
        raise Undiscovered(
            f"a key for each image token: {pair[0].path or 'the model itself'} attends with {query.shape[-2]} queries "
            f"to {len(rows)} keys that change with the image (keys made of several tokens each, by a convolution or "
            f"pooling, or of another sequence that sees the image, cannot be computed from some of the tokens)"
        )


def _own_module(event: Event, modules: dict[str, set[int]]) -> str:
    """The innermost running module that runs once in a call of the model."""
    own = (path for path, _ in reversed(event.running) if len(modules[path]) == 1)
    path = next(own, None)
    if path is None:
        raise Undiscovered(
            f"a module of its own for each attention: {event.path or 'the model itself'} makes attention calls, and no "
            f"module around them runs just once"
        )
    return path


def _site(path: str, calls: list[tuple[Event, tuple[int, ...]]], tokens: int, images: int) -> AttentionSite:
    with_images = [(event, rows) for event, rows in calls if rows]
    event, rows = with_images[0]
    key = event.tensors["key",]
    per_image = len(with_images) == images > 1 and all(e.tensors["key",].shape[0] == 1 for e, _ in with_images)
    layout = layout_of(rows, key.shape[-2])
    if any(event.causal for event, _ in with_images):
        raise Undiscovered(f"attention without order: {path} attends causally")
    if calls[0][1] != rows or (len(with_images) > 1 and not per_image):
        raise Undiscovered(
            f"one attention to the image in each module, before any other: {path} makes {len(calls)} calls, "
            f"{len(with_images)} of them with image keys"
        )
    if not per_image and key.shape[0] != images:
        raise Undiscovered(
            f"attention over whole images: {path} attends to a batch of {key.shape[0]} for {images} images (windows, "
            f"or frames of a video, in the batch cannot be described)"
        )
    if layout is None:
        raise Undiscovered(
            f"image keys before or behind the text: in {path} they are {len(rows)} of {key.shape[-2]}, rows {rows[0]} "
            f"to {rows[-1]}"
        )
    return AttentionSite(path, layout)


# Blocks ------------------------------------------------------------------------------------------------------------


def find_blocks(
    model: nn.Module, moved: list[Pair], sites: Iterable[AttentionSite], sizes: Sizes
) -> tuple[BlockSite, ...]:
    """The blocks around the attention modules, and modules of the same lists, in the order they run."""
    layouts = {site.path: site.layout for site in sites}
    called: dict[str, Pair] = {}
    for pair in moved:
        if pair[0].kind == "call":
            called.setdefault(pair[0].path, pair)
    arguments = {path: _token_arguments(pair, sizes, _layout_in(path, layouts)) for path, pair in called.items()}
    taking = {path for path, (moving, _) in arguments.items() if moving}
    blocks = {_block_of(model, path, taking) for path in layouts}
    lists = {path.rpartition(".")[0] for path in blocks if _is_listed(model, path)}
    first = next(place for place, path in enumerate(called) if path in blocks)
    siblings = {
        path
        for path in list(called)[first:]
        if _is_listed(model, path) and path.rpartition(".")[0] in lists & _parents(path)
    }
    chosen = [path for path in called if path in blocks | (siblings & taking)]
    return tuple(BlockSite(path, (*arguments[path][0], *arguments[path][1])) for path in chosen)


def _parents(path: str) -> set[str]:
    return {path.rpartition(".")[0]}


def _is_listed(model: nn.Module, path: str) -> bool:
    return isinstance(model.get_submodule(path.rpartition(".")[0]), CONTAINERS) and "." in path


def _block_of(model: nn.Module, attention: str, taking: set[str]) -> str:
    words = attention.split(".")
    around = [".".join(words[: count + 1]) for count in range(len(words))]
    fitting = [path for path in around if path in taking]
    if not fitting:
        raise Undiscovered(f"a block around {attention} that takes a tensor with a row for each image token")
    return next((path for path in fitting if _is_listed(model, path)), fitting[0])


def _layout_in(path: str, layouts: dict[str, Layout]) -> Layout:
    """How the joint sequences of a block lie: as the keys of its attention, or of any."""
    own = [layout for site, layout in layouts.items() if f"{site}.".startswith(f"{path}.") and layout != "image"]
    rest = [layout for layout in layouts.values() if layout != "image"]
    return next(iter([*own, *rest]), "image")


def _token_arguments(
    pair: Pair, sizes: Sizes, joint: Layout
) -> tuple[tuple[TokenArgument, ...], tuple[TokenArgument, ...]]:
    """A module's arguments with a row for each token: those that change with the latents, and the others."""
    found: dict[tuple[str, bool], dict[Place, TokenArgument]] = defaultdict(dict)
    places: dict[str, set[Any]] = defaultdict(set)
    for (name, *inner), (digest, changed) in changes(pair).items():
        places[name].add(inner[0] if inner else None)
        moving = any(changed)
        dim, layout = _moving_rows(digest, changed, sizes) if moving else _constant_rows(digest, sizes, joint)
        if dim is not None:
            batch = _batch_of(digest, dim, sizes.images)
            found[name, moving][tuple(inner)] = TokenArgument(name, layout, dim, batch)
    groups: dict[bool, list[TokenArgument]] = {True: [], False: []}
    for (name, moving), by_place in found.items():
        items = {inner[0] if inner else None for inner in by_place}
        only = items.pop() if len(items) == 1 and len(places[name]) > 1 else None
        item = only if isinstance(only, int) else None
        groups[moving] += [replace(argument, item=item) for argument in dict.fromkeys(by_place.values())]
    return tuple(groups[True]), tuple(groups[False])


def _moving_rows(digest: Digest, changed: Changed, sizes: Sizes) -> tuple[int | None, Layout]:
    for dim in (*range(1, len(digest.shape)), 0):
        length, rows = digest.shape[dim], changed[dim]
        if length in (sizes.tokens, *sizes.joint) and len(rows) == sizes.tokens:
            layout = layout_of(rows, length)
            if layout is not None:
                return dim, layout
    return None, "image"


def _constant_rows(digest: Digest, sizes: Sizes, joint: Layout) -> tuple[int | None, Layout]:
    lengths: list[tuple[int, Layout]] = [(sizes.tokens, "image"), *((length, joint) for length in sizes.joint)]
    for dim, extent in enumerate(digest.shape):
        key_mask = dim == len(digest.shape) - 1 and len(digest.shape) == 4
        for length, layout in lengths:
            if extent == length and not key_mask and not (dim == 0 and extent == sizes.images):
                return dim, layout
    return None, "image"


def _batch_of(digest: Digest, dim: int, images: int) -> int | None:
    return 0 if dim > 0 and digest.shape[0] in (1, images) else None
