"""An image's result does not depend on what else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenprune
from tokenprune import CATPolicy, Memory, NoisePolicy, Observation, RandomPolicy, Selection, SelectionPolicy

GUIDANCE = ["batched", "sequential", "none"]
SEEDS = st.lists(st.integers(0, 10_000), min_size=2, max_size=3, unique=True).map(tuple)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@settings(max_examples=4)
@given(
    seeds=SEEDS,
    kind=st.sampled_from(["sd3", "sd3-plain", "pixart"]),
    grid=st.sampled_from([(4, 6), (3, 5)]),
    guidance=st.sampled_from(GUIDANCE),
)
def test_an_image_of_a_batch_equals_the_image_alone(
    policy: SelectionPolicy,
    seeds: tuple[int, ...],
    kind: str,
    grid: tuple[int, int],
    guidance: str,
    make_model: Callable[[str], nn.Module],
    generate_fresh: Callable[..., Tensor],
) -> None:
    model = make_model(kind)
    together = generate_fresh(model, policy, seeds=seeds, guidance=guidance, grid=grid)
    for image, seed in enumerate(seeds):
        alone = generate_fresh(model, policy, seeds=(seed,), guidance=guidance, grid=grid)
        close(together[:, image : image + 1], alone)


@settings(max_examples=3)
@given(seeds=SEEDS, kind=st.sampled_from(["sd3", "pixart"]), guidance=st.sampled_from(GUIDANCE), data=st.data())
def test_permuting_a_batch_permutes_the_result(
    policy: SelectionPolicy,
    seeds: tuple[int, ...],
    kind: str,
    guidance: str,
    data: st.DataObject,
    make_model: Callable[[str], nn.Module],
    generate_fresh: Callable[..., Tensor],
) -> None:
    order = data.draw(st.permutations(range(len(seeds))))
    model = make_model(kind)
    result = generate_fresh(model, policy, seeds=seeds, guidance=guidance)
    permuted = generate_fresh(model, policy, seeds=tuple(seeds[i] for i in order), guidance=guidance)
    close(permuted, result[:, order])


def test_images_have_selections_of_their_own(
    sd3: nn.Module, generate_fresh: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(monkeypatch)
    generate_fresh(sd3, CATPolicy(0.3, 3), seeds=(0, 1))
    assert len(made) == 3
    assert all(selection.batch_size == 2 for selection in made)
    assert any(not torch.equal(selection.index[0], selection.index[1]) for selection in made)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_nan_in_one_image_stays_there(
    sd3: nn.Module, policy: SelectionPolicy, guidance: str, generate_fresh: Callable[..., Tensor], make_condition: Any
) -> None:
    """A text that gives NaN predictions; whatever becomes of that image, the other one is as if it were alone."""

    def broken(seeds: tuple[int, ...], length: int, dtype: torch.dtype = torch.float32) -> Any:
        condition = make_condition(seeds, length, dtype)
        condition.text[[i for i, seed in enumerate(seeds) if seed == 7]] = float("nan")
        return condition

    alone = generate_fresh(sd3, policy, seeds=(3,), guidance=guidance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_condition.__self__, "of_seeds", broken)
        together = generate_fresh(sd3, policy, seeds=(7, 3), guidance=guidance)
    assert together[:, 0].isnan().all()
    close(together[:, 1:], alone)


def record(monkeypatch: pytest.MonkeyPatch) -> list[Selection]:
    made: list[Selection] = []
    select = CATPolicy.select

    def recording(policy: CATPolicy, seen: Observation, memory: Memory) -> Selection:
        made.append(select(policy, seen, memory))
        return made[-1]

    monkeypatch.setattr(CATPolicy, "select", recording)
    return made


@pytest.mark.parametrize(("guidance", "halves"), [(None, 1), ("uncond-first", 1), ("none", 2)])
def test_guidance_halves_share_a_selection(
    sd3: nn.Module,
    generate: Callable[..., Tensor],
    guidance: Any,
    halves: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = record(monkeypatch)
    with tokenprune.apply(sd3, CATPolicy(0.3, 3), guidance=guidance):
        generate(sd3, seeds=(0, 1), guidance="batched")
    assert [selection.batch_size for selection in made] == [2 * halves] * 3


@pytest.mark.parametrize("scale", [None, 3.0])
def test_both_kinds_of_guidance_show_policies_the_same(
    sd3: nn.Module, generate: Callable[..., Tensor], scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batched guidance holds the unconditional half first, the sequential one calls the conditional branch first."""
    made = record(monkeypatch)
    for guidance in ("batched", "sequential"):
        with tokenprune.apply(sd3, CATPolicy(0.3, 3), guidance_scale=scale):
            generate(sd3, seeds=(0, 1), guidance=guidance)
    assert len(made) == 6
    assert all(torch.equal(a.index, b.index) for a, b in zip(made[:3], made[3:], strict=True))


def test_policies_see_the_guided_prediction_if_asked(
    sd3: nn.Module, generate: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(monkeypatch)
    for scale in (None, 1.0, 3.0):
        with tokenprune.apply(sd3, CATPolicy(0.3, 3), guidance_scale=scale):
            generate(sd3, seeds=(0, 1), guidance="batched")
    conditional, same, guided = (torch.stack([s.index for s in made[i : i + 3]]) for i in (0, 3, 6))
    assert torch.equal(conditional, same)
    assert not torch.equal(conditional, guided)


def test_random_selections_differ_from_step_to_step_and_seed_to_seed(
    sd3: nn.Module, generate_fresh: Callable[..., Tensor]
) -> None:
    results = [generate_fresh(sd3, RandomPolicy(0.3, 3, seed=seed))[-1] for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Watching(NoisePolicy):
    """Keeps what it sees."""

    def score(self, seen: Observation, memory: Memory) -> Tensor:
        memory["step"] = torch.tensor(seen.step)
        WATCHED.append(seen)
        return super().score(seen, memory)


WATCHED: list[Observation] = []
CHANGES = {"loses": (True, False), "gains": (False, True)}


@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("guided", CHANGES.values(), ids=CHANGES.keys())
def test_a_batch_that_changes_its_guidance_half_takes_one_full_step(
    sd3: nn.Module,
    guided: tuple[bool, bool],
    scale: float | None,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Callable[..., Any],
) -> None:
    """What policies saw of the former batch, its conditional prediction, is the next one's reference."""
    WATCHED.clear()
    latents, predictions = make_latents((0, 1), (4, 6)), []
    cond, uncond = make_condition((0, 1), 5), make_condition((7, 7), 5)
    with torch.no_grad(), tokenprune.apply(sd3, Watching(0.3, 2), guidance_scale=scale) as handle:
        for step, time in enumerate(torch.linspace(1000, 20, 8)):
            both = guided[step >= 4]
            batch, given = (torch.cat([latents] * 2), uncond + cond) if both else (latents, cond)
            output = predict(sd3, batch, time.expand(len(batch)), given)
            latents = latents - 0.2 * output[-2:]
            generation = handle._masked.generation
            assert generation.conditional_branch is not None
            predictions.append(generation.branches[generation.conditional_branch].prediction)
            assert generation.guidance == ("uncond-first" if both else "none")
        report = handle.report()
        assert list(generation.branches) == [generation.conditional_branch]
    assert report.generations == 1
    assert [step.tokens for step in report.steps] == [24, 24, 7, 7, 24, 7, 7, 7]
    assert report.token_counts is not None
    assert report.token_counts.sum(1).tolist() == [3 * 24 + 5 * 7] * 2
    after = next(seen for seen in WATCHED if seen.step == 5)
    assert after.pruned_steps == 0
    assert torch.equal(after.reference, predictions[3][-2:])
    if not guided[1] or scale is None:
        assert torch.equal(after.prediction, predictions[4][-2:])


def test_a_branch_that_missed_a_step_is_computed_in_full(
    sd3: nn.Module,
    predict: Callable[..., Tensor],
    make_latents: Callable[..., Tensor],
    make_condition: Callable[..., Any],
) -> None:
    latents = make_latents((0,), (4, 6))
    given = [make_condition((seed,), 5) for seed in (0, 7)]
    with torch.no_grad(), tokenprune.apply(sd3, NoisePolicy(0.3, 2)) as handle:
        for calls, time in zip([2, 2, 2, 1, 2, 2, 1, 1], torch.linspace(1000, 20, 8), strict=True):
            outputs = [predict(sd3, latents, time.expand(1), text) for text in given[:calls]]
            latents = latents - 0.2 * outputs[0]
        generation = handle._masked.generation
        found = [[call.tokens for call in record.calls] for record in generation.records]
        assert found == [[24, 24], [24, 24], [7, 7], [7], [7, 24], [7, 7], [7], [7]]
        assert len(generation.branches) == 1
