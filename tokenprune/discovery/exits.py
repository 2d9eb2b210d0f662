"""Where else than in attention tokens meet, and the last projection."""

from __future__ import annotations

from tokenprune.discovery.parts import Pair, Sizes, Undiscovered, changes, layout_of
from tokenprune.discovery.watch import Place
from tokenprune.modulemap import BlockSite, ExitSite


def _reached(pair: Pair, sizes: Sizes) -> dict[Place, tuple[int, int]]:
    """For the tensors with a row for each token, which dimension that is and how many rows the others reached."""
    found = {}
    for place, (digest, changed) in changes(pair).items():
        dims = [dim for dim, extent in enumerate(digest.shape) if extent in (sizes.tokens, *sizes.joint)]
        if dims and any(changed):
            best = min(dims, key=lambda dim: len(changed[dim]))
            found[place] = best, len(changed[best])
    return found


def find_exit(
    nudged: list[Pair], tokens: int, moved: list[Pair], blocks: tuple[BlockSite, ...], sizes: Sizes
) -> ExitSite:
    """The last module that gives one tensor with a row for each token.

    Args:
        nudged: two calls of which one had other tokens at the first block.
        tokens: how many others.
        moved: two calls with different latents.
        blocks: as found.
        sizes: lengths of sequences.
    """
    paths = {site.path for site in blocks}
    begin = next(place for place, (event, _) in enumerate(nudged) if event.path == blocks[0].path)
    end = max(place for place, (event, _) in enumerate(nudged) if event.path in paths and event.kind == "return")
    found: tuple[int, int] | None = None
    for place in range(begin, len(nudged)):
        event = nudged[place][0]
        reached = _reached(nudged[place], sizes) if event.kind != "attention" else {}
        if any(count > tokens for _, count in reached.values()):
            if place > end:
                break
            inner = event.path if event.kind == "return" else event.path.rpartition(".")[0]
            around = event.running[-2][0] if event.kind == "call" and len(event.running) > 1 else inner
            raise Undiscovered(
                f"tokens that meet in attention alone: {around or 'the model itself'} lets image tokens change "
                f"others (a convolution, a pooled statistic, or attention that does not go through torch's "
                f"scaled_dot_product_attention)"
            )
        whole = event.kind == "return" and () in reached and len(event.tensors[()].shape) == 3
        outside = not any(f"{path}.".startswith(f"{event.path}.") and path != event.path for path in paths)
        if whole and outside and place >= end:
            found = place, reached[()][0]
    if found is None:
        raise Undiscovered(
            "a last projection: no module behind the blocks gives a tensor with a row for each token (or it gives "
            "zeros, as an untrained model's last layer may)"
        )
    place, dim = found
    shape, rows = nudged[place][0].tensors[()].shape, changes(moved[place])[()][1][dim]
    layout = layout_of(rows, shape[dim])
    if layout is None or dim > 1:
        raise Undiscovered(
            f"image tokens first or last in the output of {nudged[place][0].path}, of shape {list(shape)}"
        )
    return ExitSite(nudged[place][0].path, layout, dim=dim, batch=1 - dim)
