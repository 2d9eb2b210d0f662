"""CAT Pruning's selection against its rules in plain Python, and against what its authors' code selected.

`cat_published.npz` holds three generations of shapes-sd3 (28 steps, 8 of them full): the conditional half's predictions
of steps 6 to 26 [steps, N, C], the labels of scikit-learn's k-means [N], and at each step from 8 on the tokens that the
authors' code selected (`selected_k`, -1 pads), having seen those predictions and its own former selections. Where
frequencies are equal, that code takes what `topk` happens to give. So the file also has an order of the tokens for each
step (`ties_k`), found by search, under which the rules select what the code selected.
"""

from __future__ import annotations

from pathlib import Path

import cat_rules
import numpy as np
import pytest
import torch
from cat_rules import COMPILED, PAPER, PUBLISHED, Rules
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenprune import CATPolicy, Memory, Observation, Selection

POLICIES: dict[str, tuple[CATPolicy, Rules]] = {
    "paper": (CATPolicy(), PAPER),
    "published": (CATPolicy.published(), PUBLISHED),
    "published, compiled": (CATPolicy.published(compiled=True), COMPILED),
}


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=30)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    clusters=st.integers(1, 9),
    share=st.floats(0, 1),
    quiet=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 10_000),
)
@example(grid=(9, 9), clusters=2, share=1.0, quiet=0.0, seed=0)
@example(grid=(9, 9), clusters=9, share=0.7, quiet=0.9, seed=1)
@example(grid=(9, 9), clusters=5, share=0.5, quiet=1.0, seed=2)
@example(grid=(9, 9), clusters=1, share=0.5, quiet=0.0, seed=2)
def test_selections_follow_the_rules(
    name: str, grid: tuple[int, int], clusters: int, share: float, quiet: float, seed: int
) -> None:
    """Five selections of two images, with clusters of any size, some empty, and a share of tokens without noise."""
    policy, rules = POLICIES[name]
    tokens = grid[0] * grid[1]
    count = max(1, int(share * tokens))
    generator = torch.Generator().manual_seed(seed)
    skewed = torch.rand(2, tokens, generator=generator).square() * clusters
    labels = (2 * skewed.long() + 1).clamp_max(min(policy.num_clusters, tokens) - 1)
    memory: Memory = {"labels": labels}
    frequency = [[0.0] * tokens for _ in range(2)]
    previous = None
    for step in range(5):
        noise = torch.randn(2, tokens, 4, generator=generator)
        noise *= torch.rand(2, tokens, 1, generator=generator) >= quiet
        seen = Observation(noise, torch.zeros_like(noise), count, grid, 8 + step, step, 500.0, previous)
        selection = policy.select(seen, memory)
        for image in range(2):
            if previous is not None:
                chosen = previous.index[image].tolist()
                frequency[image] = [f / 2 + (token in chosen) for token, f in enumerate(frequency[image])]
            own = noise[image].tolist()
            by_noise = [-cat_rules.norm(vector) for vector in own]
            arguments = (own, labels[image].tolist(), grid, count, step, frequency[image], by_noise, rules)
            expected = cat_rules.filled(*cat_rules.select(*arguments), count)
            assert selection.index[image].tolist() == expected, (step, image)
        previous = selection


RUNS = np.load(Path(__file__).with_name("cat_published.npz"))
FIRST = 8


def recorded(run: int) -> list[set[int]]:
    """What the authors' code selected, step by step."""
    return [{token for token in row if token >= 0} for row in RUNS[f"selected_{run}"].tolist()]


@pytest.mark.parametrize("run", range(3))
def test_selects_what_the_authors_code_selected(run: int) -> None:
    """All of it, at all 60 selections; where that is fewer than n tokens, the others are those of lowest frequency."""
    predictions = torch.tensor(RUNS[f"predictions_{run}"])
    height, width = RUNS[f"grid_{run}"].tolist()
    tokens = height * width
    count = int(RUNS[f"alpha_{run}"] * tokens)
    policy, theirs = CATPolicy.published(), recorded(run)
    frequency, previous = np.zeros(tokens), None
    for pruned, expected in enumerate(theirs):
        memory: Memory = {"labels": torch.tensor(RUNS[f"labels_{run}"]).long().unsqueeze(0)}
        if previous is not None:
            chosen = np.isin(np.arange(tokens), list(previous))
            frequency = frequency / 2 + chosen
            # Ranks, without ties, in the place of frequencies; less what the policy adds for the last selection.
            rank = np.lexsort((RUNS[f"ties_{run}"][pruned], frequency)).argsort()
            memory["frequency"] = torch.tensor(2.0 * (rank - chosen)).float().unsqueeze(0)
            index = torch.tensor([sorted(previous)])
        seen = Observation(
            prediction=predictions[pruned + 1].unsqueeze(0),
            reference=predictions[:1],
            count=count,
            grid=(height, width),
            step=FIRST + pruned,
            pruned_steps=pruned,
            time=500.0,
            previous=None if previous is None else Selection(index, tokens),
        )
        found = policy.select(seen, memory).index[0].tolist()
        stalest = range(tokens) if previous is None else rank.argsort().tolist()
        assert found == cat_rules.filled(expected, stalest, count), pruned
        previous = expected
