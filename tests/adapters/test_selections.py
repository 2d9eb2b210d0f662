"""What policies see of models with reference tokens, shared selections, frames; and what is then computed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tiny import ALL, B, ids
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import tokenprune
from tokenprune import Memory, NoisePolicy, Observation, Selection, SelectionPolicy, Taylor, UnsupportedCallError
from tokenprune.testing import no_waiting
from tokenprune_adapters.common import grid_of_ids

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
]
TINY = {tiny.name: tiny for tiny in ALL}


@dataclass(frozen=True)
class Watching(SelectionPolicy):
    """Selects by noise and keeps what it saw."""

    alpha: float = 0.3
    warmup_steps: int = 2
    seen: list[Observation] = field(default_factory=list)

    def select(self, seen: Observation, memory: Memory) -> Selection:
        self.seen.append(seen)
        return NoisePolicy().select(seen, memory)


def generate(model: nn.Module, inputs: dict[str, Any], time: str, latents: str, rises: bool = False) -> list[Any]:
    """The outputs of four steps; each has its own latents."""
    outputs = []
    for step in range(4):
        factor = 0.2 + 0.2 * step if rises else 1 - 0.2 * step
        noised = tree_map(lambda x, s=step: x + 0.2 * s * x.flip(0), inputs[latents])
        timestep = (inputs[time] * factor).to(inputs[time].dtype)
        with torch.no_grad():
            outputs.append(model(**{**inputs, time: timestep, latents: noised}))
    return outputs


def played(name: str, **options: Any) -> tuple[nn.Module, Watching, Any]:
    tiny = TINY[name]
    model, policy = tiny.make(), Watching()
    with tokenprune.apply(model, policy, **options) as handle:
        found = handle._masked.map
        generate(model, tiny.inputs(), found.time, found.latents, found.time_rises)
        report = handle.report()
    return model, policy, report


@pytest.mark.parametrize(
    ("name", "grid", "shape"),
    [
        ("sd3", (4, 6), (B, 24, 16)),
        ("pixart", (4, 6), (B, 24, 16)),
        ("flux-kontext", (4, 6), (1, 24, 8)),
        ("flux2", (4, 6), (1, 24, 8)),
        ("longcat", (4, 6), (1, 24, 8)),
        ("krea2", (4, 6), (1, 24, 8)),
        ("qwenimage-edit", (4, 6), (1, 24, 32)),
        ("z-image", (4, 6), (B, 24, 16)),
        ("hidream-padded", (3, 5), (B, 15, 16)),
        ("lumina2", (4, 6), (B, 24, 16)),
        ("ernie", (4, 6), (B, 24, 4)),
        ("kandinsky5", (2, 3, 4), (B, 24, 16)),
        ("hunyuan-video-i2v", (2, 3, 4), (1, 24, 32)),
        ("wan-ti2v", (3, 3, 4), (B, 36, 16)),
        ("ltx-i2v", (2, 3, 4), (B, 24, 4)),
        ("cogvideox-2b", (3, 3, 4), (B, 36, 16)),
        ("mochi", (3, 3, 4), (1, 36, 32)),
        ("latte", (3, 4), (B, 12, 48)),
        ("flux3-edit", (4, 6), (1, 24, 8)),
        ("bria-fibo", (4, 6), (1, 24, 8)),
        ("bria-fibo2-texts", (4, 6), (B, 24, 16)),
        ("qwenimage-2.1-edit", (4, 6), (1, 24, 8)),
        ("ideogram4", (4, 6), (B, 24, 4)),
        ("joyimage-edit", (4, 6), (1, 24, 32)),
        ("joyimage-edit-plus", (4, 6), (B, 24, 16)),
        ("hunyuan-framepack", (3, 3, 4), (1, 36, 32)),
        ("helios", (3, 3, 4), (B, 36, 16)),
        ("anyflow", (3, 3, 4), (B, 36, 16)),
        ("kandinsky6", (2, 3, 4), (1, 24, 32)),
        ("motif-i2v", (3, 3, 4), (1, 36, 32)),
    ],
)
def test_policies_see_the_grid(name: str, grid: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    _, policy, report = played(name)
    assert [seen.grid for seen in policy.seen] == [grid, grid]
    assert [tuple(seen.prediction.shape) for seen in policy.seen] == [shape, shape]
    assert report.grid == grid
    computed = int(shape[1] * 0.3)
    assert [step.tokens for step in report.steps] == [shape[1]] * 2 + [computed] * 2
    assert report.macs.total < report.dense_macs.total


def test_one_selection_for_all_images_counts_them_all() -> None:
    """A token that changes in the second image alone is selected for both."""
    tiny = TINY["flux"]
    inputs = tiny.inputs() | {"controlnet_block_samples": None}
    model, policy = tiny.make(), Watching()
    with tokenprune.apply(model, policy), torch.no_grad():
        for step in range(3):
            latents = inputs["hidden_states"].clone()
            latents[1, 7] += 50 * step
            model(**{**inputs, "hidden_states": latents, "timestep": inputs["timestep"] * (1 - 0.1 * step)})
    (seen,) = policy.seen
    second = seen.relative_noise.unflatten(-1, (B, -1))[0, :, 1].norm(dim=-1)
    assert int(second.argmax()) == 7
    assert 7 in NoisePolicy().select(seen, {}).index.tolist()[0]


@pytest.mark.parametrize(
    ("name", "references", "text"),
    [
        ("flux-kontext", 6, 0),
        ("qwenimage-edit", 6, 0),
        ("hidream-padded", 9, 0),
        ("z-image", 8, 64),
        ("ltx-extra", 5, 0),
    ],
)
def test_reference_tokens_are_computed_at_full_steps_only(name: str, references: int, text: int) -> None:
    tiny, rows = TINY[name.replace("-extra", "")], []
    model, inputs, policy = tiny.make(), tiny.inputs(), Watching()
    if name == "ltx-extra":
        inputs["hidden_states"] = torch.cat([inputs["hidden_states"][:, :references], inputs["hidden_states"]], dim=1)
        inputs["video_coords"] = torch.rand(B, 3, 24 + references)
    with tokenprune.apply(model, policy) as handle:
        found = handle._masked.map
        watched = model.get_submodule(found.exit_site.path)

        def watch(module: nn.Module, args: tuple[Tensor]) -> None:
            rows.append(args[0].shape[1])

        hook = watched.register_forward_pre_hook(watch)
        generate(model, inputs, found.time, found.latents, found.time_rises)
        hook.remove()
    tokens = policy.seen[0].prediction.shape[1]
    assert rows == [tokens + references + text] * 2 + [int(tokens * 0.3) + text] * 2


def test_steps_go_by_the_timestep_of_the_image() -> None:
    """MiniMax-H3 is given those of all rows; that of the frames before is the largest, and stays as it is."""
    tiny, policy = TINY["minimax-h3"], Watching()
    model, inputs = tiny.make(), tiny.inputs()
    with tokenprune.apply(model, policy) as handle, torch.no_grad():
        for step in range(4):
            times = torch.tensor([0.2 + 0.2 * step, 0.3 + 0.2 * step, 1.0])
            model(**{**inputs, "timestep": times, "hidden_states": inputs["hidden_states"] * (1 - 0.1 * step)})
        steps = handle.report().steps
    assert [step.tokens for step in steps] == [24, 24, 7, 7]
    assert [seen.time for seen in policy.seen] == pytest.approx([0.6, 0.8])
    assert {seen.grid for seen in policy.seen} == {(2, 3, 4)}


def test_pictures_of_different_sizes_are_refused() -> None:
    tiny = TINY["z-image"]
    inputs = tiny.inputs()
    inputs["x"] = [inputs["x"][0], inputs["x"][1][..., :8]]
    model, sizes = tiny.make(), r"all of one size, in 'x', got \[\[4, 1, 8, 12\], \[4, 1, 8, 8\]\]"
    refused = pytest.raises(tokenprune.UnsupportedCallError, match=sizes)
    with tokenprune.apply(model, NoisePolicy(0.3, 2)), torch.no_grad(), refused:
        model(**inputs)


def test_pictures_to_draw_of_different_sizes_are_refused() -> None:
    tiny = TINY["joyimage-edit-plus"]
    inputs = tiny.inputs()
    inputs["shape_list"] = [[(1, 4, 6)], [(1, 4, 8)]]
    model, sizes = tiny.make(), r"shape_list: expected pictures of one size to draw, got \(1, 4, 6\), \(1, 4, 8\)"
    refused = pytest.raises(tokenprune.UnsupportedCallError, match=sizes)
    with tokenprune.apply(model, NoisePolicy(0.3, 2)), torch.no_grad(), refused:
        model(**inputs)


def test_the_grid_follows_the_positions() -> None:
    """Reference tokens elsewhere, shifted positions, and tokens in no rectangle."""

    grid = grid_of_ids("ids")

    def of(positions: Tensor) -> tuple[int, ...]:
        return grid({"ids": positions, "hidden_states": torch.empty(1, len(positions), 1)})

    assert of(ids(3, 5)) == (3, 5)
    assert of(ids(3, 5, offset=7)) == (3, 5)
    assert of(0.5 * ids(3, 5)) == (3, 5)
    assert of(torch.cat([ids(3, 5), ids(4, 4, group=1)])) == (3, 5)
    assert of(ids(3, 5)[:-1]) == (1, 14)
    assert grid({"ids": ids(3, 5)[None], "hidden_states": torch.empty(2, 15, 1)}) == (3, 5)
    assert of(ids(3, 5).to("meta")) == (1, 15)


@pytest.mark.parametrize(
    "name",
    [
        "sd3.5",
        "auraflow",
        "flux",
        "krea2",
        "lumina-next",
        "hunyuan-dit",
        "cogview4",
        "prx",
        "wan-vace",
        "hunyuan-video-i2v",
        "cogvideox-5b",
        "allegro",
        "cosmos",
        "skyreels-v2",
        "latte",
    ],
)
def test_pruned_steps_do_not_wait_for_the_device(name: str) -> None:
    """Models that read values themselves are left out."""
    tiny = TINY[name]
    model, inputs = tiny.make(), tiny.inputs()
    with tokenprune.apply(model, NoisePolicy(0.3, 2)) as handle, torch.no_grad():
        found = handle._masked.map
        table = torch.linspace(0.2, 1, 4) if found.time_rises else torch.linspace(900, 100, 4)
        for step, time in enumerate(table):
            with no_waiting() if step > 1 else nullcontext():
                model(**{**inputs, found.time: time.expand(B)})
        assert [call.tokens for record in handle._masked.generation.records for call in record.calls][-1] < 24


@pytest.mark.parametrize("name", TINY)
def test_keys_are_forecast_in_every_layout(name: str) -> None:
    """Before their third value keys are held: pruned steps find all rows in the places where other rules have them."""
    outputs = {}
    for keys in (False, True):
        tiny = TINY[name]
        model = tiny.make()
        with tokenprune.apply(model, Watching(), reuse=Taylor(keys=keys)) as handle:
            found = handle._masked.map
            outputs[keys] = generate(model, tiny.inputs(), found.time, found.latents, found.time_rises)
    for step, (held, forecast) in enumerate(zip(outputs[False], outputs[True], strict=True)):
        for one, other in zip(tree_leaves(held), tree_leaves(forecast), strict=True):
            assert other.isfinite().all()
            assert step == 3 or torch.equal(one, other)


class Weighing(Watching):
    """Asks for attention, too."""

    needs = frozenset({"attention"})

    def weigh_attention(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        return (query @ key.mT * scale).softmax(-1).mean((1, 2))


def test_attention_is_weighed_behind_each_text() -> None:
    """Lumina's images begin where their own texts end: together they weigh what each weighs alone."""
    tiny = TINY["lumina2"]
    inputs = tiny.inputs()
    lengths = inputs["encoder_attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    singles = []
    for image, length in enumerate(lengths):
        own = {name: value[image : image + 1] for name, value in inputs.items()}
        texts = ("encoder_hidden_states", "encoder_attention_mask")
        singles.append(own | {name: own[name][:, :length] for name in texts})
    weights = []
    for given in (inputs, *singles):
        model, policy = tiny.make(), Weighing()
        with tokenprune.apply(model, policy), torch.no_grad():
            for step in range(3):
                latents = given["hidden_states"] * (1 + step)
                model(**{**given, "hidden_states": latents, "timestep": given["timestep"] * (0.2 + 0.2 * step)})
        weights.append(policy.seen[0].attention)
    torch.testing.assert_close(weights[0], torch.cat(weights[1:]))


@pytest.mark.parametrize("alpha", [0.001, 0.04])
def test_a_pruned_step_computes_the_least_that_the_model_can(alpha: float) -> None:
    """Allegro's blocks squeeze the dimension of a single token away; PixArt's do with one token as with others."""
    for name, least in (("allegro", 2), ("pixart", 1)):
        tiny = TINY[name]
        model = tiny.make()
        with tokenprune.apply(model, Watching(alpha=alpha)) as handle:
            generate(model, tiny.inputs(), handle.map.time, handle.map.latents)
            report = handle.report()
        assert [step.tokens for step in report.steps[2:]] == [least] * 2
        assert report.macs.total < report.dense_macs.total


def hunyuan_inputs(frames: int) -> dict[str, Any]:
    inputs = TINY["hunyuan-video-i2v"].inputs()
    return {**inputs, "hidden_states": inputs["hidden_states"][:, :, :1].repeat(1, 1, frames, 1, 1)}


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_a_given_picture_alone_is_refused(alpha: float) -> None:
    """One frame, which is given, leaves nothing to choose from: at alpha = 1, too, and nothing stays behind."""
    model, inputs = TINY["hunyuan-video-i2v"].make(), hunyuan_inputs(1)
    with torch.no_grad():
        plain = model(**inputs, return_dict=False)[0]
    message = (
        r"HunyuanVideoTransformer3DModel: hidden_states: expected at least 2 latent frames, .* got \[2, 4, 1, 6, 8\] "
        r".*remove\(\) the handle"
    )
    with tokenprune.apply(model, Watching(alpha=alpha)):
        for _ in range(2):
            with torch.no_grad(), pytest.raises(UnsupportedCallError, match=message):
                model(**inputs)
        generate(model, hunyuan_inputs(3), "timestep", "hidden_states")
    with torch.no_grad():
        assert torch.equal(model(**inputs, return_dict=False)[0], plain)


def test_a_single_frame_to_draw_is_a_picture() -> None:
    model, policy = TINY["hunyuan-video-i2v"].make(), Watching(alpha=0.5)
    with tokenprune.apply(model, policy) as handle:
        generate(model, hunyuan_inputs(2), "timestep", "hidden_states")
        assert [step.tokens for step in handle.report().steps] == [12, 12, 6, 6]
    assert {seen.grid for seen in policy.seen} == {(3, 4)}


@pytest.mark.parametrize(
    "name",
    [
        "wan",
        "wan-i2v",
        "wan-vace",
        "hunyuan-video",
        "hunyuan-video-1.5",
        "mochi",
        "cosmos",
        "easyanimate",
        "skyreels-v2",
    ],
)
def test_videos_of_a_single_frame(name: str) -> None:
    tiny = TINY[name]
    inputs, policy = tiny.inputs(), Watching(alpha=0.5)
    frames = inputs["hidden_states"].shape[2]
    inputs = tree_map(
        lambda x: x[:, :, :1] if isinstance(x, Tensor) and x.ndim == 5 and x.shape[2] == frames else x, inputs
    )
    model = tiny.make()
    with tokenprune.apply(model, policy) as handle:
        generate(model, inputs, "timestep", "hidden_states")
        assert [step.tokens for step in handle.report().steps] == [12, 12, 6, 6]
    assert {seen.grid for seen in policy.seen} == {(3, 4)}
