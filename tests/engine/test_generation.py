"""A generation does not depend on the ones before it: each equals the same one under a fresh handle, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, SelectionPolicy

POLICY = CATPolicy(0.3, 3, num_clusters=5)
GUIDANCE = ["batched", "sequential", "none"]


@pytest.mark.parametrize("guidance", ["batched", "sequential"])
def test_a_second_generation(
    sd3: nn.Module,
    policy: SelectionPolicy,
    guidance: str,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    state = torch.random.get_rng_state()
    fresh = [generate_fresh(sd3, policy, seeds=(seed,), guidance=guidance) for seed in (0, 1)]
    with tokenprune.apply(sd3, policy):
        for seed in (0, 1, 0):
            assert torch.equal(generate(sd3, seeds=(seed,), guidance=guidance), fresh[seed])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_second_generation_of_every_model(
    model: nn.Module, guidance: str, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    fresh = [generate_fresh(model, POLICY, seeds=(seed,), guidance=guidance) for seed in (0, 1)]
    with tokenprune.apply(model, POLICY):
        for seed in (0, 1, 0):
            assert torch.equal(generate(model, seeds=(seed,), guidance=guidance), fresh[seed])


@settings(max_examples=3)
@given(
    stop=st.integers(1, 6),
    seed=st.sampled_from([0, 1]),
    warmup=st.integers(1, 4),
    same_table=st.booleans(),
    kind=st.sampled_from(["sd3", "pixart"]),
)
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("times", ["table", "fresh"])
def test_after_an_interrupted_generation(
    guidance: str,
    times: str,
    stop: int,
    seed: int,
    warmup: int,
    same_table: bool,
    kind: str,
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    model, policy, table = make_model(kind), CATPolicy(0.3, warmup, num_clusters=5), torch.linspace(1000, 20, 6)
    wanted = {"guidance": guidance, "times": times}
    fresh = generate_fresh(model, policy, seeds=(seed,), **wanted)
    with tokenprune.apply(model, policy):
        generate(model, **wanted, table=table, stop=stop)
        assert torch.equal(generate(model, seeds=(seed,), **wanted, table=table if same_table else None), fresh)


@pytest.mark.parametrize("times", ["table", "fresh"])
@pytest.mark.parametrize("warmup", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1], ids=["same", "other"])
def test_after_one_step(
    sd3: nn.Module,
    times: str,
    warmup: int,
    seed: int,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    policy = CATPolicy(0.3, warmup, num_clusters=5)
    fresh = generate_fresh(sd3, policy, seeds=(seed,), times=times)
    with tokenprune.apply(sd3, policy):
        generate(sd3, times=times, stop=1)
        assert torch.equal(generate(sd3, seeds=(seed,), times=times), fresh)


@pytest.mark.parametrize("times", ["table", "fresh"])
@pytest.mark.parametrize("warmup", [1, 2, 3])
def test_after_one_step_of_the_same_noise_with_another_prompt(
    sd3: nn.Module, times: str, warmup: int, generate: Callable[..., Tensor], generate_fresh: Callable[..., Tensor]
) -> None:
    policy = CATPolicy(0.3, warmup, num_clusters=5)
    fresh = generate_fresh(sd3, policy, prompts=(5,), times=times)
    with tokenprune.apply(sd3, policy) as handle:
        generate(sd3, times=times, stop=1)
        handle.reset()
        assert torch.equal(generate(sd3, prompts=(5,), times=times), fresh)
        generate(sd3, times=times, stop=1)
        assert torch.equal(generate(sd3, prompts=(5,), times=times), fresh)


@pytest.mark.parametrize("guidance", ["batched", "sequential"])
@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize(
    "change",
    [{"grid": (3, 5)}, {"grid": (6, 4)}, {"seeds": (0, 1)}, {"length": 9}, {"steps": 9}, {"guidance": "other"}],
    ids=["resolution", "shape", "batch", "text", "steps", "guidance"],
)
def test_after_a_generation_of_another_kind(
    sd3: nn.Module,
    guidance: str,
    stop: int | None,
    change: dict[str, Any],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    if "guidance" in change:
        change = {"guidance": GUIDANCE[GUIDANCE.index(guidance) - 1]}
    wanted = {"guidance": guidance, **change}
    fresh = generate_fresh(sd3, POLICY, **wanted)
    with tokenprune.apply(sd3, POLICY):
        generate(sd3, guidance=guidance, stop=stop)
        assert torch.equal(generate(sd3, **wanted), fresh)


@pytest.mark.parametrize("stop", [1, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd3", "pixart"])
def test_after_a_generation_in_another_dtype(
    kind: str,
    make_model: Callable[[str], nn.Module],
    dtype: torch.dtype,
    stop: int | None,
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    model = make_model(kind)
    fresh = {used: generate_fresh(model.to(used), POLICY, dtype=used) for used in (dtype, torch.float32)}
    assert fresh[dtype].dtype == dtype
    with tokenprune.apply(model, POLICY):
        for used, other in ((dtype, torch.float32), (torch.float32, dtype)):
            generate(model.to(other), dtype=other, stop=stop)
            assert torch.equal(generate(model.to(used), dtype=used), fresh[used])


@pytest.mark.parametrize("table", [[1000, 700, 700, 400, 400, 100, 100], [1000, 900, 900, 900, 500, 500, 500]])
@pytest.mark.parametrize("times", ["table", "fresh"])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_repeated_timesteps_are_steps(
    sd3: nn.Module,
    table: list[int],
    times: str,
    guidance: str,
    generate: Callable[..., Tensor],
) -> None:
    """Every repeat counts: 3 full steps, the others pruned."""
    counts = []

    def watch(module: nn.Module, args: tuple[Tensor]) -> None:
        counts.append(args[0].shape[1])

    with tokenprune.apply(sd3, POLICY), sd3.proj_out.register_forward_pre_hook(watch):
        for seed in range(2):
            generate(sd3, seeds=(seed,), table=torch.tensor(table).float(), times=times, guidance=guidance)
    calls = 2 if guidance == "sequential" else 1
    assert counts == ([24] * 3 * calls + [7] * 4 * calls) * 2


def test_reset_in_the_middle(model: nn.Module, generate: Callable[..., Tensor]) -> None:
    """After reset() the next call starts a generation, though its timestep looks like the next step's."""
    table = torch.linspace(1000, 20, 6)
    with tokenprune.apply(model, POLICY) as handle:
        fresh = generate(model, table=table[4:])
        handle.reset()
        generate(model, stop=4)
        handle.reset()
        assert torch.equal(generate(model, table=table[4:]), fresh)


@pytest.mark.parametrize(
    ("kind", "times", "modes"),
    [
        ("sd3", "table", (True, True)),
        ("sd3", "table", (True, False)),
        ("sd3", "table", (False, True)),
        ("sd3", "fresh", (True, False)),
        ("pixart", "table", (True, False)),
        ("pixart", "fresh", (False, True)),
    ],
)
def test_inference_mode(
    kind: str,
    times: str,
    modes: tuple[bool, bool],
    make_model: Callable[[str], nn.Module],
    generate: Callable[..., Tensor],
    generate_fresh: Callable[..., Tensor],
) -> None:
    """Tensors made in inference mode have no version and cannot be written to outside of it."""
    model = make_model(kind)
    fresh = generate_fresh(model, POLICY, times=times)
    with tokenprune.apply(model, POLICY):
        for mode in modes:
            with torch.inference_mode(mode):
                assert torch.equal(generate(model, times=times), fresh)
