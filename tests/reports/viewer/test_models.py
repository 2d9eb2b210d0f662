"""Traces of real models of several kinds as pages: videos, flux, one selection for a whole batch, no grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import ALL
from torch import Tensor, nn

import tokenprune
from tokenprune import Memory, Observation, ScorePolicy, SequentialPolicy, Trace
from tokenprune.ops.grid import num_tokens
from tokenprune.reports.viewer import tokens

PICTURE = Image.new("RGB", (8, 8), (10, 20, 30))
TINY = {tiny.name: tiny for tiny in ALL}


def traced(model: nn.Module, inputs: dict[str, Any], time: str) -> Trace:
    """Five steps, the first two of them full."""
    with tokenprune.apply(model, SequentialPolicy(0.4, 2), trace=True) as handle, torch.no_grad():
        for step in range(5):
            model(**{**inputs, time: inputs[time] * (1 - step / 10)})
        return handle.trace


@pytest.mark.parametrize(
    ("name", "images", "video"),
    [("wan", 2, True), ("cogvideox-5b", 1, True), ("flux", 1, False), ("sd3", 2, False), ("qwenimage", 1, False)],
)
def test_a_model(
    name: str, images: int, video: bool, tmp_path: Path, data_of: Callable[[Path], dict[str, Any]]
) -> None:
    tiny = TINY[name]
    trace = traced(tiny.make(), tiny.inputs(), "timestep")
    given = [[PICTURE] * 5] * 2 if video else [PICTURE] * 2
    trace.save_html(tmp_path / "run.html", picture=given, dense=given)
    (run,) = data_of(tmp_path / "run.html")["runs"]
    assert (run["images"], len(run["picture"]), run["ofPicture"]) == (images, 2, True)
    assert run["frames"] * run["height"] * run["width"] == num_tokens(trace.grid)
    assert (run["frames"] > 1) is video
    assert len(run["picture"][0]) == run["frames"]
    assert [step["kind"] for step in run["steps"]] == ["full"] * 2 + ["pruned"] * 3


class Stripes(ScorePolicy):
    """A policy of a user's own, by clusters of its own."""

    def score(self, observation: Observation, memory: Memory) -> Tensor:
        memory["labels"] = (torch.arange(24) % 6 // 2).expand_as(observation.age).clone()
        return observation.age + memory["labels"] / 10


def test_a_policy_of_ones_own(
    sd3: nn.Module,
    generate: Callable[..., Tensor],
    tmp_path: Path,
    data_of: Callable[[Path], dict[str, Any]],
) -> None:
    with tokenprune.apply(sd3, Stripes(0.3, 3), trace=True) as handle:
        generate(sd3)
    handle.trace.save_html(tmp_path / "run.html", name="Stripes")
    (run,) = data_of(tmp_path / "run.html")["runs"]
    assert run["ages"] == tokens.ages(handle.trace)
    assert run["clusters"]["labels"]["of_step"] == [None] * 3 + [0] * 3


def test_a_video_whose_frames_share_their_selection(tmp_path: Path, data_of: Callable[[Path], dict[str, Any]]) -> None:
    """Latte's frames are a batch to it: the grid is that of one."""
    tiny, given = TINY["latte"], [[PICTURE] * 5] * 2
    trace = traced(tiny.make(), tiny.inputs(), "timestep")
    trace.save_html(tmp_path / "run.html", picture=given, dense=given)
    data = data_of(tmp_path / "run.html")
    (run,) = data["runs"]
    assert (run["frames"], data["frames"], run["images"]) == (1, 5, 2)
    assert [len(video) for video in run["picture"]] == [len(video) for video in data["dense"]] == [5, 5]


class Row(nn.Module):
    """A transformer of tokens in a row: thirteen of them fit no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(16, 16)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        hidden = hidden_states + timestep.view(-1, 1, 1) / 1000
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(hidden)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.attention(hidden_states)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, hidden_states: Tensor) -> Tensor:
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.project(found.transpose(1, 2).flatten(2))


def test_a_discovered_model_without_a_grid(tmp_path: Path, data_of: Callable[[Path], dict[str, Any]]) -> None:
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 13, 16), "timestep": torch.tensor([900.0, 900.0])}
    trace = traced(Row().eval(), inputs, "timestep")
    assert trace.grid == (1, 13)
    trace.save_html(tmp_path / "run.html", picture=[PICTURE] * 2)
    (run,) = data_of(tmp_path / "run.html")["runs"]
    assert (run["frames"], run["height"], run["width"], run["ofPicture"]) == (1, 4, 4, False)
    assert run["ages"] == tokens.ages(trace)
    assert "This model has no grid of tokens" in (tmp_path / "run.html").read_text()
