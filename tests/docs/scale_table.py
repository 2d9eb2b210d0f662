"""The tables of docs/scale.md: what large models need on one GPU and on several, by arithmetic.

python tests/docs/scale_table.py            # print the tables
python tests/docs/scale_table.py --write    # put them into the page
python tests/docs/scale_table.py --measure  # count the models' sizes anew, on torch's meta device, into a JSON file
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import tokenprune
from tokenprune.bench.measuring.memory import peak_memory
from tokenprune.bench.measuring.run import stamp
from tokenprune.bench.subjects.transformers import Loaded, load
from tokenprune.bench.tables.cells import renew
from tokenprune.cli.targets import call_of, find_map
from tokenprune.engine.on_meta import MetaWins, meta_twin, stand_in
from tokenprune.macs.example_calls import Wanted
from tokenprune.macs.rehearsal import counts_of, rehearse
from tokenprune.plans.plan import Plan

DOCS = Path(tokenprune.__file__).parents[1] / "docs"
PAGE, SIZES = DOCS / "scale.md", DOCS / "results" / "scale.json"
DTYPE, STEPS = torch.bfloat16, 28
GIB = 2**30
GPUS = (24, 48, 80)
"""Memory of GPUs, in GiB."""
SPARE = 0.9
"""Share of a GPU's memory that is reckoned with; the rest is for the CUDA context and fragmentation."""
RANKS = (2, 4, 8)
PCIE, ACHIEVED = 25e9, 400e12
"""Assumptions: bytes a second from the host, and floating-point operations a second that a GPU reaches."""
PROMPTS = 100_000
Row: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """What is counted of a model without weights.

    Attributes:
        parameters: of the transformer.
        tokens: N of a picture or video at the pipeline's own size.
        text: T, text tokens in the same attention.
        rows: B of a call, both halves of guidance counted.
        calls: of a step.
        attentions: attention modules that keep keys and values.
        width: C of keys.
        block: parameters of the largest block.
        activations: bytes that live at once in a full call, beside weights, with a fused attention kernel.
        macs: multiply-accumulate operations of the plain model's generation.
        cat_macs: those with CATPolicy().
        plan_bytes, cat_bytes: what `tokenprune.plan` at half of the operations and CATPolicy() keep.
    """

    parameters: int
    tokens: int
    text: int
    rows: int
    calls: int
    attentions: int
    width: int
    block: int
    activations: int
    macs: float
    cat_macs: float
    plan_bytes: int
    cat_bytes: int

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * DTYPE.itemsize

    def sent(self, tokens: int, ranks: int) -> float:
        """Bytes that a rank sends in one call of one layer under Ulysses, for `tokens` computed image tokens.

        Queries, keys, values and outputs of the rank's share of the computed tokens, of which all but its own heads'
        part go to the other ranks.
        """
        rows_of_rank = self.rows * (tokens + self.text) / ranks
        return 4 * rows_of_rank * self.width * DTYPE.itemsize * (ranks - 1) / ranks

    def sent_in_all(self, counts: Sequence[int], ranks: int) -> float:
        """Bytes that a rank sends in a generation with so many computed tokens at each step; skipped steps send 0."""
        return sum(self.sent(count, ranks) for count in counts if count) * self.attentions * self.calls

    def passed(self, tokens: int) -> float:
        """Bytes that one GPU hands to the next in a step, where layers are spread over GPUs: its blocks' output."""
        return self.rows * (tokens + self.text) * self.width * DTYPE.itemsize * self.calls


def wan_small() -> nn.Module:
    """Wan 2.1 T2V-1.3B, by its published config."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(num_layers=30, num_attention_heads=12, ffn_dim=8960)


def built(make: Callable[[], nn.Module]) -> Loaded:
    with torch.device("meta"):
        return Loaded(make().eval())


MODELS: dict[str, Callable[[], Loaded]] = {
    "FLUX.1-dev": lambda: load("FluxTransformer2DModel"),
    "Qwen-Image": lambda: load("QwenImageTransformer2DModel"),
    "Wan 2.1 1.3B": lambda: built(wan_small),
    "Wan 2.1 14B": lambda: load("WanTransformer3DModel"),
    "HunyuanVideo": lambda: load("HunyuanVideoTransformer3DModel"),
}
"""Their configs are the defaults of diffusers' classes, but for the smaller Wan."""


class FusedAttention(TorchFunctionMode):
    """Attention that makes nothing but its output, as fused kernels do; the meta device's makes the whole map."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attended(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it out


def measure(loaded: Loaded) -> Size:
    """Count a model at the size that its pipeline draws by default."""
    found = find_map(loaded).map
    called = call_of(loaded, Wanted())
    assert called is not None
    twin, make = meta_twin(loaded.model, DTYPE), stand_in(DTYPE)
    given = tree_map(lambda leaf: make(leaf) if isinstance(leaf, Tensor) else leaf, dict(called.call.arguments))
    with torch.no_grad(), MetaWins(), FusedAttention(), peak_memory(torch.device("meta")) as peak:
        twin(**given)
    plan, cat = (
        rehearse(loaded.model, found, called.call, each, STEPS, DTYPE)
        for each in (tokenprune.plan(loaded.model), Plan(tokenprune.CATPolicy()))
    )
    length, nbytes = max(cat.keys)
    return Size(
        parameters=_parameters(loaded.model),
        tokens=cat.tokens,
        text=length - cat.tokens,
        rows=cat.images,
        calls=cat.calls,
        attentions=len(found.attentions),
        width=nbytes // (2 * length * cat.images * DTYPE.itemsize),
        block=max(_parameters(loaded.model.get_submodule(site.path)) for site in found.block_sites),
        activations=peak.nbytes,
        macs=cat.dense.total,
        cat_macs=cat.macs.total,
        plan_bytes=plan.cache_bytes,
        cat_bytes=cat.cache_bytes,
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def read() -> dict[str, Size]:
    """What was counted, from the file."""
    return {name: Size(**size) for name, size in json.loads(SIZES.read_text())["models"].items()}


def write() -> None:
    """Count all models into the file; takes minutes."""
    models = {name: asdict(measure(make())) for name, make in MODELS.items()}
    content = {"models": models, "command": "python tests/docs/scale_table.py --measure", **stamp()}
    SIZES.write_text(json.dumps(content, indent=1) + "\n")


def counts(tokens: int) -> dict[str, tuple[int, ...]]:
    """Image tokens computed at each step, by the kind of generation."""
    plan, cat = tokenprune.PlacedSchedule(0.5), tokenprune.CATPolicy().schedule()
    return {
        "plain": (tokens,) * STEPS,
        "plan": counts_of(plan, tokens, STEPS),
        "CAT": counts_of(cat, tokens, STEPS),
    }


def amount(number: float) -> str:
    for unit, name in ((2**40, "TiB"), (GIB, "GiB"), (2**20, "MiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 2**10:.1f} KiB"


def duration(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "h"), (1, "s")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.2f} s"


def way(size: Size, gib: int, caches: int) -> str:
    """The first way that needs no more than a GPU has: one GPU, offloading, several GPUs."""
    room = gib * GIB * SPARE
    if size.weights + size.activations + caches <= room:
        return "whole"
    if 2 * size.block * DTYPE.itemsize + size.activations + caches <= room:
        return "offloaded"
    for ranks in RANKS:
        if size.weights + (size.activations + caches) / ranks <= room:
            return f"Ulysses, {ranks} GPUs"
    for ranks in RANKS:
        if (size.weights + caches) / ranks + size.activations <= room:
            return f"`device_map`, {ranks} GPUs"
    return f"not on {RANKS[-1]}"


def needs(models: dict[str, Size]) -> Iterator[Row]:
    yield ("model", "a call", "weights", "activations of a full call", "caches of the plan", "caches of CAT")
    for name, size in models.items():
        sizes = (size.weights, size.activations, size.plan_bytes, size.cat_bytes)
        called = f"{size.rows} x ({size.tokens:,} + {size.text} text)" + (", twice a step" if size.calls == 2 else "")
        yield (name, called, *map(amount, sizes))


def fits(models: dict[str, Size]) -> Iterator[Row]:
    yield ("model", *(f"{gib} GiB, {kind}" for gib in GPUS for kind in ("plan", "CAT")))
    for name, size in models.items():
        yield (name, *(way(size, gib, caches) for gib in GPUS for caches in (size.plan_bytes, size.cat_bytes)))


def offloading(models: dict[str, Size]) -> Iterator[Row]:
    yield ("model", "weights, each call", "they take", "a full call computes", "generation: plain", "plan", "CAT")
    for name, size in models.items():
        calls = {kind: size.calls * sum(map(bool, each)) for kind, each in counts(size.tokens).items()}
        computes = 2 * size.macs / (STEPS * size.calls) / ACHIEVED
        sent = (amount(number * size.weights) for number in calls.values())
        yield (name, amount(size.weights), duration(size.weights / PCIE), duration(computes), *sent)


def ulysses(models: dict[str, Size]) -> Iterator[Row]:
    yield ("model", "GPUs", "full step", "pruned step", "generation: plain", "plan", "CAT", "caches of CAT")
    for name, size in models.items():
        for ranks in RANKS:
            kinds = counts(size.tokens)
            steps = (size.sent_in_all((count,), ranks) for count in (size.tokens, min(kinds["CAT"])))
            sent = (size.sent_in_all(each, ranks) for each in kinds.values())
            yield (name, str(ranks), *map(amount, (*steps, *sent, size.cat_bytes / ranks)))


def spread(models: dict[str, Size]) -> Iterator[Row]:
    yield (
        "model",
        *(f"{what}, {ranks} GPUs" for ranks in RANKS[:2] for what in ("weights", "caches of CAT")),
        "full step",
        "pruned step",
    )
    for name, size in models.items():
        held = (part / ranks for ranks in RANKS[:2] for part in (size.weights, size.cat_bytes))
        passed = (size.passed(count) for count in (size.tokens, min(counts(size.tokens)["CAT"])))
        yield (name, *map(amount, (*held, *passed)))


def many(models: dict[str, Size]) -> Iterator[Row]:
    yield (
        "model",
        *(f"{kind}: {what}" for kind in ("plain", "plan") for what in ("each", "all, 1 GPU", "all, 8 GPUs")),
    )
    for name, size in models.items():
        cells = []
        for share in (1.0, 0.5):
            seconds = 2 * size.macs * share / ACHIEVED
            cells += [seconds, seconds * PROMPTS, seconds * PROMPTS / 8]
        yield (name, *map(duration, cells))


TABLES = {"needs": needs, "fits": fits, "offloading": offloading, "ulysses": ulysses, "spread": spread, "many": many}
"""By their marks on the page."""


def table(name: str, models: dict[str, Size]) -> str:
    header, *rows = TABLES[name](models)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ("---",) * len(header), *rows))


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        write()
    for mark in TABLES:
        if sys.argv[1:] == ["--write"]:
            renew(PAGE, f"scale-{mark}", table(mark, read()))
        else:
            print(table(mark, read()))
