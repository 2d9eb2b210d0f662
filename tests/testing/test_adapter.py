"""The kit notices adapters that are wrong, each in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from tiny import ALL, Tiny
from torch import Tensor, nn

from tokenprune import AttentionSite, BlockSite, ExitSite, ModuleMap, TokenArgument, latent_grid
from tokenprune.registry import find_adapter
from tokenprune.testing import AdapterCheckError, AdapterProperty, check_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
]
TINY = {tiny.name: tiny for tiny in ALL}
WIDTH = 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp((x + self.attn(x)).tanh())


class Plain(nn.Module):
    """A transformer with as little as possible; `twist` changes what its second block gets."""

    def __init__(self, twist: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.final = nn.Conv2d(4, WIDTH, 2, stride=2), nn.Linear(WIDTH, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.spare = Attention()
        self.twist = twist

    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        x = self.embed(latents)
        height, width = x.shape[-2:]
        x = self.blocks[0](x.flatten(2).transpose(1, 2) + t.view(-1, 1, 1))
        x = self.blocks[1](self.twist(x))
        return self.final(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)


def module_map(model: nn.Module) -> ModuleMap:
    return ModuleMap(
        blocks=("blocks.0", "blocks.1"),
        attentions=(AttentionSite("blocks.0.attn"), AttentionSite("blocks.1.attn")),
        exit="final",
        grid=latent_grid("latents", 2),
        hidden="x",
        latents="latents",
        time="t",
        text=None,
    )


def call() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"latents": torch.randn(3, 4, 6, 8, generator=generator), "t": torch.tensor([0.5, 0.5, 0.5])}


def broken(make: Callable[[], nn.Module], inputs: Any, adapter: Any = module_map, **options: Any) -> tuple[str, str]:
    """Which property the kit finds broken, and its message."""
    with pytest.raises(AdapterCheckError) as caught:
        check_adapter(make, inputs, adapter=adapter, **options)
    return caught.value.broken, str(caught.value)


def changed(**fields: Any) -> Callable[[nn.Module], ModuleMap]:
    """The adapter of the plain model with something else in it."""
    return lambda model: replace(module_map(model), **fields)


def test_the_plain_model_passes() -> None:
    told: list[str] = []
    check_adapter(Plain, call(), adapter=module_map, tell=told.append)
    assert [line.partition(":")[0] for line in told] == list(get_args(AdapterProperty))
    assert told[0].startswith("map: passed (1 of 11, about ")
    assert told[-1] == "remove: passed (11 of 11)"


def test_a_model_without_adapter() -> None:
    assert broken(Plain, call(), adapter=None)[0] == "map"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"exit": "projection"}, "no module named projection"),
        ({"hidden": "hidden_states"}, "blocks.0.forward has no argument 'hidden_states' (the map's `hidden`), only x"),
        ({"time": "timestep"}, "forward has no argument 'timestep' (the map's `time`), only latents, t"),
        ({"token_inputs": ("ids",)}, "forward has no argument 'ids' (the map's `token_inputs`)"),
        ({"latents": "x"}, "forward has no argument 'x' (the map's `latents`)"),
        ({"blocks": (BlockSite("blocks.0", leading="count"),)}, "no argument 'count' (the map's `leading`)"),
        ({"blocks": (BlockSite("blocks.0", (TokenArgument("x", batch=None),)),)}, "x has no dimension for images"),
        ({"exit": ExitSite("final", expand="blocks.2")}, "no module named blocks.2"),
        ({"blocks": ("blocks.0", "blocks.1", "blocks.0")}, "blocks.0 named twice in `blocks`"),
        ({"attentions": (AttentionSite("blocks.0.attn"),) * 2}, "blocks.0.attn named twice in `attentions`"),
        ({"least_tokens": 0}, "least_tokens: expected a whole number of at least 1, got 0"),
        ({"blocks": (BlockSite("blocks.0", counting="count"),)}, "no argument 'count' (the map's `counting`)"),
        ({"exit": ExitSite("final", "image-text", references=False)}, "references=False) needs the layout 'image'"),
    ],
)
def test_a_map_that_names_what_is_not_there(fields: dict[str, Any], hint: str) -> None:
    found, message = broken(Plain, call(), changed(**fields))
    assert found == "map"
    assert hint in message
    assert message.startswith("Plain: the adapter breaks 'map': ")


def test_a_grid_of_another_size() -> None:
    found, message = broken(Plain, call(), changed(grid=latent_grid("latents", 1)))
    assert found == "full"
    assert "blocks.0.attn: expected 48 image keys, got 12 keys" in message


def test_an_exit_that_is_never_called() -> None:
    found, message = broken(Plain, call(), changed(exit="spare.out"))
    assert found == "full"
    assert "its exit spare.out did not run in a call of the model" in message


def test_an_attention_that_is_never_called() -> None:
    sites = (*module_map(Plain()).attentions, AttentionSite("spare"))
    found, message = broken(Plain, call(), changed(attentions=sites))
    assert found == "stale"
    assert "spare: other cached keys and values do not change the output" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"attentions": (AttentionSite("blocks.0.attn"),)},
        {"attentions": (AttentionSite("blocks.1.attn"),)},
        {"blocks": ("blocks.1",)},
        {"exit": "blocks.1.mlp"},
    ],
    ids=["the second attention", "the first attention", "the entry", "the exit"],
)
def test_a_map_that_misses_a_place(fields: dict[str, Any]) -> None:
    assert broken(Plain, call(), changed(**fields))[0] == "pruned"


def test_a_model_that_mixes_tokens_outside_of_attention() -> None:
    assert broken(lambda: Plain(lambda x: x - x.mean(1, keepdim=True)), call())[0] == "pruned"


def squeezing() -> nn.Module:
    """A model that squeezes the dimension of tokens away where there is one token alone."""
    return Plain(lambda x: x.squeeze(1))


def test_a_model_that_needs_more_than_one_token() -> None:
    found, message = broken(squeezing, call())
    assert found == "pruned"
    assert "step 4 (1 tokens) raised" in message
    check_adapter(squeezing, call(), adapter=changed(least_tokens=2))
    check_adapter(squeezing, call(), adapter=changed(least_tokens=2), fraction=0.01)


def test_an_attention_that_does_not_matter() -> None:
    def make() -> nn.Module:
        model = Plain()
        model.blocks[1].attn.out.weight.data.zero_()
        return model

    found, message = broken(make, call())
    assert found == "stale"
    assert "blocks.1.attn" in message


def test_a_model_that_mixes_images() -> None:
    found, message = broken(lambda: Plain(lambda x: x + len(x)), call())
    assert found == "batch"
    assert "image 0 alone differs by" in message


def test_images_found_otherwise() -> None:
    def last(inputs: Any, image: int) -> Any:
        return {name: value[-1:] for name, value in inputs.items()}

    assert broken(Plain, call(), image_of=last)[0] == "batch"


def test_a_model_that_changes_between_calls() -> None:
    calls: list[int] = []

    def twist(x: Tensor) -> Tensor:
        calls.append(0)
        return x + len(calls)

    assert broken(lambda: Plain(twist), call())[0] == "full"


def test_an_adapter_that_leaves_something_behind() -> None:
    def leaving(model: nn.Module) -> ModuleMap:
        calls: list[int] = []

        def grid(arguments: Any) -> tuple[int, ...]:
            calls.append(0)
            if len(calls) > 1:
                model.__dict__["left"] = True
            return latent_grid("latents", 2)(arguments)

        return replace(module_map(model), grid=grid)

    assert broken(Plain, call(), leaving)[0] == "remove"


def wrong(tiny: Tiny, change: Callable[[ModuleMap], ModuleMap]) -> str:
    """What the kit says of a model's adapter after a change."""

    def adapter(model: nn.Module) -> ModuleMap:
        return change(find_adapter(model)(model))

    return broken(tiny.make, tiny.inputs(), adapter, image_of=tiny.image_of)[0]


def without_arguments(name: str) -> Callable[[ModuleMap], ModuleMap]:
    def change(found: ModuleMap) -> ModuleMap:
        sites = [replace(s, tokens=tuple(t for t in s.tokens if t.name != name)) for s in found.block_sites]
        return replace(found, blocks=tuple(sites))

    return change


def laid_out(layout: Any) -> Callable[[ModuleMap], ModuleMap]:
    def change(found: ModuleMap) -> ModuleMap:
        return replace(found, attentions=tuple(replace(site, layout=layout) for site in found.attentions))

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sd3", laid_out("text-image")),
        ("auraflow", laid_out("image-text")),
        ("sd3.5", lambda found: replace(found, token_inputs=())),
        ("sd3.5", lambda found: replace(found, attentions=found.attentions[:-1])),
        ("cogview4", without_arguments("image_rotary_emb")),
        ("qwenimage-edit", without_arguments("modulate_index")),
        ("flux", lambda found: replace(found, token_inputs=found.token_inputs[:1])),
        (
            "lumina-next",
            lambda found: replace(found, attentions=tuple(replace(s, keeps_scale=False) for s in found.attentions)),
        ),
        ("kandinsky5", lambda found: replace(found, exit=found.exit_site.path)),
        ("omnigen", lambda found: replace(found, exit="proj_out")),
        ("hidream-padded", lambda found: replace(found, references=None)),
        (
            "hunyuan-video-i2v",
            lambda found: replace(found, blocks=tuple(replace(b, leading=None) for b in found.block_sites)),
        ),
        ("skyreels-v2-df", without_arguments("temb")),
        ("cosmos-v2w", lambda found: replace(found, blocks=found.blocks[:-1])),
        ("latte", lambda found: replace(found, frames=None)),
        ("wan-ti2v", lambda found: replace(found, token_inputs=())),
        ("ernie", without_arguments("temb")),
        (
            "helios",
            lambda found: replace(found, blocks=tuple(replace(b, counting=None) for b in found.block_sites)),
        ),
        ("hunyuan-framepack", lambda found: replace(found, exit=found.exit_site.path)),
        ("motif-i2v", laid_out("image-text")),
        ("flux3-edit", lambda found: replace(found, text_lengths=None)),
        ("bria-fibo2-texts", lambda found: replace(found, text_lengths=None)),
        ("qwenimage-2.1-edit", lambda found: replace(found, text_lengths=None)),
        ("minimax-h3", lambda found: replace(found, exit=replace(found.exit_site, expand=None))),
        ("kandinsky6", lambda found: replace(found, attentions=found.attentions[::2])),
        ("anyflow", without_arguments("rotary_emb")),
        ("cosmos3", without_arguments("rotary_emb")),
        ("cosmos3-i2v", lambda found: replace(found, exit=replace(found.exit_site, references=True))),
        ("cosmos3-i2v", lambda found: replace(found, exit=replace(found.exit_site, expand=None))),
    ],
)
def test_an_adapter_without_one_of_its_parts(name: str, change: Callable[[ModuleMap], ModuleMap]) -> None:
    assert wrong(TINY[name], change) in ("full", "pruned")


def test_images_behind_texts_of_different_lengths() -> None:
    """Every place is then wrong in the same way, so that only another batch shows it."""
    assert wrong(TINY["lumina2"], lambda found: replace(found, text_lengths=None)) == "batch"
