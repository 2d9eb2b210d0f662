"""The table of docs/supported-models.md, from the registry and the small models of the tests.

python tests/adapters/table.py          # print the page
python tests/adapters/table.py --write  # write it
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from tiny import IMAGES, VIDEOS, Tiny

from tokenprune.registry import find_adapter
from tokenprune_adapters.unsupported import OTHERS, REFUSALS

PAGE = Path(__file__).parents[2] / "docs" / "supported-models.md"
TOP = """# Supported models

Written by `python tests/adapters/table.py --write` from the installed adapters and the small models that
`tests/adapters` checks them with; do not edit. diffusers 0.42.

Every row passes `tokenprune.testing.check_adapter` on a small model with random weights: full steps are the plain
model bit for bit, and pruned ones equal it when nothing they reuse is stale. That shows that a model is served
correctly, not how good its pictures are; the README says on which models those were measured. The column "guidance"
says how the pipelines call the model, from their code; `tests/adapters/test_pipelines.py` and `test_guidance.py` run
a pipeline of each pattern, with guidance that starts or ends in mid-run, too. "selection": whether each image of a
batch has its own tokens selected, or all share one selection, because the model's rotary embeddings have no dimension
for images; then policies see the batch as one image with the channels of all. "`HeldText`": whether pruned steps may
hold the text tokens that share a sequence with the image (see schedules-and-forecasts.md).
"""
HEADER = """| transformer | pipelines | guidance | selection | token grid | `HeldText` | notes | test |
|---|---|---|---|---|---|---|---|"""
REFUSED = """## Refused

`tokenprune.apply` raises an `UnsupportedModelError` that says why:

| transformer | why |
|---|---|"""
ELSEWHERE = """## Of other things

These transformers of diffusers make neither images nor video. No adapter is registered for them:

| transformer | of |
|---|---|"""
PARTLY = {
    "`Kandinsky5Transformer3DModel`, other than `regular` attention": "it attends in tiles of 64 tokens through flex "
    "attention, chosen from all tokens anew at each step",
    "`QwenImage21Transformer2DModel` with `QwenImage21FlexAttnProcessor`": "it attends through flex attention with "
    "masks made for blocks of the whole sequence; its default processor works",
    "`Transformer2DModel` without `patch_size`": "it goes back to a picture before its last projection",
}


def row(tiny: Tiny) -> str:
    """One line of the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny.make()
    found = find_adapter(model)(model)
    axes = {2: "h x w", 3: "t x h x w"}[len(found.grid(tiny.inputs()))]
    selection = "shared" if found.shared else "per image"
    text = "yes" if found.may_leave_out_text else "-"
    cells = (f"`{tiny.model}`", tiny.pipelines, tiny.guidance, selection, axes, text, tiny.notes, f"`{tiny.name}`")
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    parts = [TOP]
    for title, models in (("Images", IMAGES), ("Video", VIDEOS)):
        parts.append("\n".join([f"## {title}\n", HEADER, *(row(tiny) for tiny in models)]) + "\n")
    reasons = [f"| `{name}` | {refusal.why} |" for name, refusal in sorted(REFUSALS.items())]
    partly = [f"| {name} | {why} |" for name, why in sorted(PARTLY.items())]
    parts.append("\n".join([REFUSED, *reasons, *partly]) + "\n")
    parts.append("\n".join([ELSEWHERE, *(f"| `{name}` | {what} |" for name, what in sorted(OTHERS.items()))]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page(), end="")
