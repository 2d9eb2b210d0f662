"""The model card's tables come from the committed figures, and the figures from real runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tokenprune import CATPolicy
from tokenprune.embedded import evaluate, scenes
from tokenprune.embedded.load import load_shapes_sd3

DOCS = Path(__file__).parents[2] / "docs"


def test_the_cards_tables_are_those_of_the_json() -> None:
    results = json.loads((DOCS / "shapes-sd3.json").read_text())
    shown = (DOCS / "shapes-sd3.md").read_text().split(evaluate.START)[1].split(evaluate.END)[0]
    assert shown == evaluate.tables(results)


def test_a_pruned_run_is_measured_against_the_plain_one() -> None:
    pipe = load_shapes_sd3()
    pipe.set_progress_bar_config(disable=True)
    captions = list(scenes.captions("tuning", 2))
    prompts = [caption for caption, _ in captions]
    plain, plain_ratio = evaluate._draw(pipe, prompts, evaluate.Configuration("plain", 6), 4.0)
    policy = CATPolicy(alpha=0.3, warmup_steps=3)
    pruned, ratio = evaluate._draw(pipe, prompts, evaluate.Configuration("pruned", 6, policy), 4.0)
    assert plain_ratio == 1
    assert 0.5 < ratio < 0.9
    assert plain.shape == pruned.shape == (2, 64, 64, 3)
    psnr = evaluate._psnr(pruned, plain)
    assert psnr is not None
    assert 10 < psnr["mean"] < 80
    assert evaluate._psnr(plain, plain) is None


def test_psnr_by_hand() -> None:
    reference = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    psnr = evaluate._psnr(np.full_like(reference, 10), reference)
    assert psnr == {"mean": pytest.approx(20 * np.log10(25.5)), "ci95": 0.0}
