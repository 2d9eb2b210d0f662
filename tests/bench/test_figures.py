"""Figures of any trace, and of policies of a user's own; those of the paper are in tests/cli/test_figures.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tokenprune
from tokenprune import (
    CATPolicy,
    DensePolicy,
    ListSchedule,
    Memory,
    NoisePolicy,
    Observation,
    Plan,
    ScorePolicy,
    SelectionPolicy,
    Trace,
    TraceError,
)
from tokenprune.bench import figures
from tokenprune.bench.figures.runs import Settings
from tokenprune.bench.figures.strategies import STRATEGIES, own_strategies
from tokenprune.errors import ConfigurationError
from tokenprune.policies.description import Description, Variant

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


class Leftmost(ScorePolicy):
    """Of a user's own: the leftmost of the oldest."""

    def score(self, observation: Observation, memory: Memory) -> Tensor:
        return observation.age - torch.arange(observation.age.shape[1]) / 1000


@pytest.fixture
def trace_of(sd3: nn.Module, generate: Callable[..., Tensor]) -> Callable[[SelectionPolicy | Plan], Trace]:
    def draw(policy: SelectionPolicy | Plan) -> Trace:
        with tokenprune.apply(sd3, policy, trace=True) as handle:
            generate(sd3, seeds=(0, 1), steps=8)
            return handle.trace

    return draw


@pytest.mark.parametrize("policy", [CATPolicy(0.3, 3, num_clusters=5), Leftmost(0.3, 3), NoisePolicy(0.3, 3)])
@pytest.mark.parametrize("picture", [None, PICTURE], ids=["bare", "picture"])
def test_any_trace_is_drawn(
    policy: SelectionPolicy, picture: np.ndarray | None, trace_of: Callable[..., Trace], tmp_path: Path
) -> None:
    trace = trace_of(policy)
    plot = figures.draw(trace, picture, image=1, title="mine")
    computed, old = trace.computed[:, 1], torch.stack([step.staleness[1] for step in trace.steps[3:]]).float()
    assert plot.numbers == {
        "steps_shown": [3, 4, 5, 6, 7],
        "tokens_ratio": pytest.approx((3 * 24 + 5 * 7) / (8 * 24), abs=1e-3),
        "never_computed": pytest.approx(float((computed.sum(0) == 0).float().mean()), abs=1e-3),
        "mean_age": pytest.approx(float(old.mean()), abs=0.01),
        "oldest": int(old.max()),
    }
    assert plot.figure.get_suptitle() == "mine"
    above, *_ = plot.figure.subfigs
    assert [axis.get_title() for axis in above.axes] == [f"step {step}: 7" for step in range(3, 8)] + [""]
    shown = above.axes[0].images[0].get_array()
    mask = trace.computed[3, 1].view(4, 6).numpy()
    if picture is None:
        assert np.array_equal(shown, mask)
    else:
        over = mask.repeat(2, 0).repeat(2, 1)
        assert np.array_equal((shown == picture).all(-1), over)
    plot.figure.savefig(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 5000


def test_full_and_skipped_steps_are_told_apart(trace_of: Callable[..., Trace]) -> None:
    dense = figures.draw(trace_of(DensePolicy()))
    assert (dense.numbers["tokens_ratio"], dense.numbers["mean_age"], dense.numbers["oldest"]) == (1, None, 0)
    assert dense.summary == "100% of the tokens"
    skipping = figures.draw(trace_of(Plan(NoisePolicy(), ListSchedule((1, 1, 0, 1, 0, 0, 1, 0)))))
    assert skipping.numbers["steps_shown"] == [2, 4, 5, 7]
    assert skipping.numbers["oldest"] == 2


@pytest.mark.parametrize("grid", [(3, 4, 2), (24,), (1, 24)])
def test_any_grid_is_drawn(grid: tuple[int, ...], trace_of: Callable[..., Trace]) -> None:
    """Of a video the frame in the middle, of a row of tokens rows of them."""
    trace = Trace(trace_of(NoisePolicy(0.3, 3)).steps, grid)
    shown = figures.draw(trace, PICTURE).figure.subfigs[0].axes[0].images[0].get_array()
    mask = trace.computed[3, 0]
    if len(grid) == 3:
        assert np.array_equal(shown, mask.view(grid)[1])
    else:
        assert shown.shape == (5, 5)
        assert np.array_equal(np.asarray(shown).flatten()[:24], mask)


def test_what_cannot_be_drawn_is_refused(trace_of: Callable[..., Trace]) -> None:
    with pytest.raises(TraceError, match="expected one with steps, got none; draw a picture before"):
        figures.draw(Trace((), ()))
    trace = trace_of(NoisePolicy(0.3, 3))
    with pytest.raises(ValueError, match="image: expected one of 0 to 1, got 2"):
        figures.draw(trace, image=2)
    with pytest.raises(ValueError, match=r"that divide the picture's 9 x 12 pixels, got \(4, 6\)"):
        figures.draw(trace, np.zeros((9, 12, 3), np.uint8))


class Described(Leftmost):
    """Of a user's own, in two forms."""

    description = Description(
        "the leftmost", "mine", "none", variants=(Variant("left", "mine"), Variant("far left", "mine", {"alpha": 0.1}))
    )


class Taken(Leftmost):
    """Of a name that is taken."""

    description = Description("x", "mine", "none", variants=(Variant("noise", "mine"),))


@dataclass(frozen=True)
class Needy(Leftmost):
    """Cannot be hashed with what it is made with."""

    kept: list[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", [1])


def test_policies_of_ones_own_are_strategies() -> None:
    settings = Settings("x", 8, 3, 0.4)
    assert own_strategies([Leftmost], settings) == {"Leftmost": Leftmost(0.4, 3)}
    with pytest.raises(ConfigurationError, match="policy: Taken: expected a name that is not taken, got 'noise'"):
        own_strategies([Taken], settings)
    with pytest.raises(ConfigurationError, match="policy: Leftmost: expected a name that is not taken"):
        own_strategies([Leftmost, Leftmost], settings)
    with pytest.raises(ConfigurationError, match="policy: Needy: unhashable type: 'list'"):
        own_strategies([Needy], settings)
    assert "noise" in STRATEGIES
