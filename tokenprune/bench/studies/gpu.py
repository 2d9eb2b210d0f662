"""Checks and times pruned steps of full-size models on a GPU: `python -m tokenprune.bench.studies.gpu`.

What to run, and to send to the project, by whoever has a GPU for ten minutes. Weights are random, as times do not
depend on them. With `--device cpu --layers 1` it shows on any machine what it does.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils._pytree import tree_map

from tokenprune.bench.commands import run
from tokenprune.bench.measuring.on_device import Case, Timed, checks, timed
from tokenprune.bench.subjects.pipelines import DEVICES, DTYPES
from tokenprune.bench.subjects.transformers import load
from tokenprune.embedded.load import quiet
from tokenprune.errors import ConfigurationError
from tokenprune.macs.example_calls import Wanted, example_call
from tokenprune.plans.plan import Plan
from tokenprune.policies import CATPolicy
from tokenprune.registry import find_adapter
from tokenprune.reports.checks import CheckResult
from tokenprune.reports.outputs import check_output

MODELS = ("random:sd3-medium", "random:pixart-sigma", "FluxTransformer2DModel", "WanTransformer3DModel")
"""Of pictures with joint attention and without, of pictures with guidance learnt, and of video."""

SIZES = (512, 1024, 2048)
"""Height and width in pixels of the first two; the others have their own."""

WARMUP = 4
"""Full steps at the start of a generation."""

HEADER = """| | pixels | tokens | plain step, ms | full | pruned | speed | allowed | a block | outside | peak | kept |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Size:
    """A model at a size.

    Attributes:
        model: as of `tokenprune inspect`.
        pixels: height and width; None is the model's own.
    """

    model: str
    pixels: int | None = None


def main(
    model: Annotated[
        list[str] | None, typer.Option(help=f"As of `tokenprune inspect`; may be repeated. Else {', '.join(MODELS)}.")
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option(help="Height and width in pixels; may be repeated. Else each model's.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Blocks of each kind, fewer than the model's own.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; else cuda where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    alpha: Annotated[float, typer.Option(help="Fraction of image tokens at a pruned step.")] = 0.3,
    turns: Annotated[int, typer.Option(min=1, help="Pairs of generations, plain and pruned.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file of all that was found.")] = None,
) -> None:
    """Print, for each model and size, what holds on this device, and then a Markdown table of times."""
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for option, value, known in (("device", where, DEVICES), ("dtype", dtype, tuple(DTYPES))):
        if value not in known:
            raise ConfigurationError(f"{option}: expected one of {', '.join(known)}, got {value!r}")
    if where == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device: expected cpu, as torch sees no CUDA device here, got 'cuda'")
    if not 0 < alpha < 1:
        raise ConfigurationError(f"alpha: expected a fraction of image tokens between 0 and 1, got {alpha}")
    if out is not None:
        check_output("out", out)
    quiet()
    machine = torch.cuda.get_device_name() if where == "cuda" else f"{platform.machine()} CPU"
    found: list[tuple[Size, CheckResult, Timed]] = []
    for each in sizes(model, size):
        case = case_of(each, layers, torch.device(where), DTYPES[dtype])
        plan = Plan(CATPolicy(alpha, WARMUP))
        found.append((each, CheckResult(case.name, tuple(checks(case, plan))), timed(case, plan, turns)))
        print(found[-1][1], flush=True)
        del case
        if out is not None:  # what was measured so far stays, whatever comes
            out.write_text(json.dumps(as_data(machine, dtype, layers, alpha, found), indent=1))
    print(f"\n{machine}, {dtype}, torch {torch.__version__}, CAT Pruning with alpha {alpha}\n\n{HEADER}")
    for each, _, times in found:
        print(f"| {' | '.join(cells(each, times))} |")


def sizes(models: Sequence[str] | None, given: Sequence[int] | None) -> Iterator[Size]:
    """What is measured: each model at each of the sizes."""
    for model in models or MODELS:
        for pixels in given or (SIZES if model.startswith("random:") else (None,)):
            yield Size(model, pixels)


def case_of(size: Size, layers: int | None, device: torch.device, dtype: torch.dtype) -> Case:
    """The model with random weights on the device, and a call of it.

    Raises:
        ConfigurationError: it cannot be built, or nothing says how it is called.
    """
    loaded = load(size.model)
    kind, config = type(loaded.model), dict(getattr(loaded.model, "config", {}))
    fewer = {name: layers for name in ("num_layers", "num_single_layers") if layers is not None and name in config}
    torch.manual_seed(0)
    with torch.device(device):
        model = kind.from_config({**config, **fewer}).to(dtype).eval()  # type: ignore[attr-defined]
    adapter = find_adapter(model)
    called = example_call(model, adapter, Wanted(size.pixels, size.pixels), loaded.scale)
    if called is None:
        raise ConfigurationError(f"{size.model}: no example says how its pipeline calls it")

    def placed(tensor: Tensor) -> Tensor:
        drawn = torch.randn(tensor.shape) if tensor.is_floating_point() and tensor.ndim > 2 else tensor
        return drawn.to(device, dtype if tensor.is_floating_point() else None)

    module_map, call = adapter(model), called.call
    arguments = tree_map(lambda leaf: placed(leaf) if isinstance(leaf, Tensor) else leaf, dict(call.arguments))
    arguments[module_map.time] = call.arguments[module_map.time].to(device)
    return Case(
        f"{size.model}, {called.size}", model, module_map, type(call)(arguments, call.times, call.halves), device
    )


def cells(size: Size, times: Timed) -> tuple[str, ...]:
    """The cells of one row."""
    plain, pruned = times.kernels
    peak = "-" if times.peak_bytes is None else f"{times.peak_bytes / 2**30:.1f} GiB"
    return (
        size.model,
        "its own" if size.pixels is None else str(size.pixels),
        f"{times.tokens:,}",
        *(f"{1e3 * seconds:.1f}" for seconds in (times.plain, times.full, times.pruned)),
        str(times.speed),
        f"{times.allowed:.2f}",
        f"{plain.per_block:.0f} / {pruned.per_block:.0f}",
        f"{plain.outside} / {pruned.outside}",
        peak,
        f"{times.cache_bytes / 2**20:.0f} MiB",
    )


def as_data(
    machine: str, dtype: str, layers: int | None, alpha: float, found: Sequence[tuple[Size, CheckResult, Timed]]
) -> dict[str, Any]:
    """All that was found, as plain data."""
    return {
        "machine": machine,
        "torch": torch.__version__,
        "dtype": dtype,
        "layers": layers,
        "alpha": alpha,
        "rows": [
            {**asdict(size), "checks": [asdict(finding) for finding in result.findings], **asdict(times)}
            for size, result, times in found
        ],
    }


if __name__ == "__main__":
    run(main, "tokenprune.bench.studies.gpu")
