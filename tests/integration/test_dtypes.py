"""Half precision, autocast, layers stored in eight bits: pruning adds no error of its own to theirs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import tokenprune
from tokenprune import CATPolicy, DensePolicy, Plan, SelectionPolicy, SequentialPolicy, Taylor

FACTOR = 2.0
"""The error of a pruned picture may be this much of a plain one's, as tokens that are computed at other steps round
otherwise; an index, cache or cast gone wrong shows as a multiple of it."""
CONFIGURATIONS: dict[str, SelectionPolicy | Plan] = {
    "held": SequentialPolicy(0.4, warmup_steps=2),
    "forecast": Plan(SequentialPolicy(0.4, warmup_steps=2), reuse=Taylor(keys=True)),
}


def half(dtype: torch.dtype) -> Callable[[DiffusionPipeline], None]:
    def prepare(pipe: DiffusionPipeline) -> None:
        pipe.to(dtype)

    return prepare


def casting(pipe: DiffusionPipeline) -> None:
    pipe.to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)


def nothing(pipe: DiffusionPipeline) -> None:
    """The model stays in single precision."""


# how the pipeline is prepared, the dtype of the latents, and whether autocast is on
PRECISIONS = {
    "bfloat16": (half(torch.bfloat16), torch.bfloat16, False),
    "float16": (half(torch.float16), torch.float16, False),
    "autocast": (nothing, torch.float32, True),
    "autocast of bfloat16 latents": (nothing, torch.bfloat16, True),
    "layerwise casting": (casting, torch.bfloat16, False),
}


def noise(dtype: torch.dtype) -> Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


def error(picture: Tensor, exact: Tensor) -> float:
    return float((picture.float() - exact).square().mean().sqrt())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(pipe: DiffusionPipeline, precision: str, draw: Callable[..., Tensor]) -> None:
    prepare, dtype, autocast = PRECISIONS[precision]
    exact_plain, exact = draw(pipe, latents=noise(torch.float32)), {}
    for name, configuration in CONFIGURATIONS.items():
        with tokenprune.apply(pipe, configuration):
            exact[name] = draw(pipe, latents=noise(torch.float32))
    prepare(pipe)

    def draw_so() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return draw(pipe, latents=noise(dtype))

    plain = draw_so()
    allowed = FACTOR * error(plain, exact_plain)
    assert allowed > 0
    with tokenprune.apply(pipe, DensePolicy()):
        assert torch.equal(draw_so(), plain)
    with tokenprune.apply(pipe, CATPolicy(alpha=1.0, warmup_steps=1)):
        assert torch.equal(draw_so(), plain)
    for name, configuration in CONFIGURATIONS.items():
        with tokenprune.apply(pipe, configuration) as handle:
            pruned = draw_so()
            report = handle.report()
        assert pruned.dtype == plain.dtype
        assert not torch.equal(pruned, plain)
        assert error(pruned, exact[name]) < allowed
        assert report.macs.total < report.dense_macs.total
    assert torch.equal(draw_so(), plain)


@pytest.mark.parametrize("precision", ["bfloat16", "layerwise casting"])
def test_keys_are_kept_in_the_precision_they_are_computed_in(
    sd3: DiffusionPipeline, precision: str, draw: Callable[..., Tensor]
) -> None:
    prepare, dtype, _ = PRECISIONS[precision]
    prepare(sd3)
    with tokenprune.apply(sd3, CONFIGURATIONS["held"]) as handle:
        draw(sd3, latents=noise(dtype))
        branches = handle._masked.generation.branches.values()
        kept = {b.key.dtype for branch in branches for b in branch.buffers.values() if b.key is not None}
    assert kept == {torch.bfloat16}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_operations_do_not_depend_on_the_precision(
    sd3: DiffusionPipeline, precision: str, draw: Callable[..., Tensor]
) -> None:
    prepare, dtype, autocast = PRECISIONS[precision]
    counts = []
    for prepared in (nothing, prepare):
        prepared(sd3)
        changed = prepared is not nothing or autocast
        with tokenprune.apply(sd3, CONFIGURATIONS["held"]) as handle:
            with torch.autocast("cpu", torch.bfloat16, enabled=changed and autocast):
                draw(sd3, latents=noise(dtype if changed else torch.float32))
            counts.append(handle.report().macs)
    assert counts[0] == counts[1]
