"""Where things are in a model, as data: what an adapter provides."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tokenprune.errors import ModuleMapError
from tokenprune.ops.grid import TokenGrid
from tokenprune.ops.guidance import Guidance

Layout = Literal["image", "image-text", "text-image", "image-image"]
"""The order of a sequence's tokens; in the last the image has two rows for each token, one of each of two streams."""

Rowed = Layout | Literal["text"]
"""What rows belong to: the tokens of a sequence, or the text tokens of joint sequences alone."""


Arguments = Mapping[str, Any]
"""The arguments of a call of the model, by name."""


@dataclass(frozen=True)
class TokenArgument:
    """An argument that holds a row for each token: a tensor, or a tuple, list or dictionary of tensors.

    A pruned step gathers the computed rows of every such tensor whose length is that of the whole sequence; tensors
    of another length (or without that dimension) stay as they are. Rows of the layout "text" all stay; at
    steps that hold the text (`HeldText`) only the first one does.

    Args:
        name: of the argument.
        layout: what the rows belong to: the image tokens, the whole sequence of image and text tokens, or the text
            tokens of joint sequences alone.
        dim: the dimension that counts tokens.
        batch: the dimension that counts images, of size 1 or B. None: there is none, so all images of a batch must
            share one selection (`ModuleMap.shared`). The same as `dim`: both in one, [B * N, ...].
        item: the index of the only item of a tuple to gather from; None stands for all.
        ndim: how many dimensions the tensors have at least, where the same argument may come with fewer and no row for
            each token (modulation [B, C] or [B, N, C]).
    """

    name: str
    layout: Rowed = "image"
    dim: int = 1
    batch: int | None = 0
    item: int | None = None
    ndim: int = 0


@dataclass(frozen=True)
class BlockSite:
    """A block that takes tensors with a row for each token.

    Args:
        path: name of the module in the model, as in `model.get_submodule`.
        tokens: its arguments with a row for each token, hidden states and what goes with them. One that comes in
            several forms has an entry for each; the first that fits is taken.
        leading: name of its argument that counts the reference tokens at the start of the image tokens, if there is
            one: 0 at pruned steps, which compute none of them.
        counting: name of its argument that counts the tokens of the picture, if there is one: n at pruned steps.
    """

    path: str
    tokens: tuple[TokenArgument, ...] = ()
    leading: str | None = None
    counting: str | None = None


@dataclass(frozen=True)
class AttentionSite:
    """An attention module whose keys contain the image tokens.

    It may make several attention calls: for parts of the queries, the heads or the batch, with other text keys, or with
    keys other than the image's. Each is taken for what it was at the last full step.

    Args:
        path: name of the module in the model, as in `model.get_submodule`.
        layout: order of image and text keys.
        keeps_scale: whether the scale depends on the number of tokens, so that pruned steps need that of full ones.
        further: order of the keys of attention calls after the first with image keys, where it is another one (those of
            an image prompt come after them: SD3's IP-Adapter). None: `layout`.
    """

    path: str
    layout: Layout = "image"
    keeps_scale: bool = False
    further: Layout | None = None


@dataclass(frozen=True)
class ExitSite:
    """The last projection.

    Args:
        path: name of the module in the model, as in `model.get_submodule`.
        layout: which tokens its output has.
        dim: the dimension of the output that counts tokens; an output [B, t, h, w, C] is taken for [B, N, C].
        batch: the dimension of the output that counts images; None: there is none, as with one image a call.
        expand: a module whose output gets all its rows back (those not computed are 0), for models that reckon with N
            tokens between it and the exit: then the exit works on all rows, and those not computed are replaced.
        expand_layout: which tokens the output of `expand` has.
        expand_item: where in that output the hidden states are, if it is a tuple.
        references: whether its output has rows for the reference tokens, too; not where the model cuts them off before.
    """

    path: str
    layout: Layout = "image"
    dim: int = 1
    batch: int | None = 0
    expand: str | None = None
    expand_layout: Layout = "image"
    expand_item: int = 0
    references: bool = True


@dataclass(frozen=True)
class ModuleMap:
    """The places in a model that pruning needs, and how its arguments read.

    Args:
        blocks: the transformer blocks that take image tokens, in the order they run. A path alone stands for a block
            that has one argument to gather, `hidden` [B, N, C].
        attentions: the attention modules inside them that see image keys.
        exit: the last projection, whose output [B, n, C] becomes [B, N, C] again; a path, or more in an `ExitSite`.
        grid: token grid of a call, from the model's arguments by name; read once a generation.
        hidden: name of the blocks' image-token argument.
        latents: name of the model's argument that holds the noisy latents, a tensor or a list with one for each image.
        time: name of the model's timestep argument.
        time_rises: whether the timestep grows as the noise falls.
        text: name of the model's text argument; while it is the same tensor, `constants` are reused.
        constants: paths of modules whose output depends on the text alone (cross-attention keys and values).
        token_inputs: further arguments of the model with a row for each image token; a name alone stands for tensors
            [B, N, ...], or lists of them.
        references: how many image tokens that are no part of the grid lie before and after it (reference images,
            padding), from the model's arguments; they are computed at full steps only. None: none.
        text_lengths: how many text tokens lie before each image in its joint sequence [B], where that is not all of
            them: texts of different lengths, each image right behind its own, or other tokens behind the image that
            each step computes. None, or None given: all images start at the same place, as the layout says.
        frames: how many sequences of tokens each image has in the batch, from the model's arguments, where frames of
            a video are batched [B * F, N, C]: one selection then serves all frames. None: one.
        shared: whether all images of a batch must share one selection, because an argument has a row for each token
            but not for each image (rotary embeddings). Policies are then shown the batch as one image whose
            channels are those of all images, so every image counts.
        noise_channels: how many of the `output_channels` of each pixel of a token are the prediction; the others
            (a learned variance) are left out of what policies see. None: all.
        output_channels: channels of each pixel in the exit's output, where `noise_channels` is given.
        guidance: order of the two halves when one call holds both guidance branches.
        least_tokens: how many tokens a pruned step computes at least, where the model takes a sequence of fewer for
            something else (a single one, whose dimension it squeezes away).
        reads_values: whether the model looks at values of its tensors on the host (masks, lengths, routing), so that
            its operations cannot be counted on torch's meta device; a report then runs the model itself to count.
        image_latents: those of the image alone [B, ...], from the model's arguments, where `latents` has other rows,
            which differ from one guidance branch to the other; None: `latents` as they are.
        noise_level: the timestep of the image tokens, from the model's arguments, where `time` holds those of other
            tokens, too; None: the largest value of `time`.
    """

    blocks: tuple[str | BlockSite, ...]
    attentions: tuple[AttentionSite, ...]
    exit: str | ExitSite
    grid: Callable[[Arguments], TokenGrid]
    hidden: str = "hidden_states"
    latents: str = "hidden_states"
    time: str = "timestep"
    time_rises: bool = False
    text: str | None = "encoder_hidden_states"
    constants: tuple[str, ...] = ()
    token_inputs: tuple[str | TokenArgument, ...] = ()
    references: Callable[[Arguments], tuple[int, int]] | None = None
    text_lengths: Callable[[Arguments], Tensor | None] | None = None
    frames: Callable[[Arguments], int] | None = None
    shared: bool = False
    noise_channels: int | None = None
    output_channels: int | None = None
    guidance: Guidance = "uncond-first"
    least_tokens: int = 1
    reads_values: bool = False
    image_latents: Callable[[Arguments], Tensor | list[Tensor]] | None = None
    noise_level: Callable[[Arguments], Any] | None = None

    @property
    def block_sites(self) -> tuple[BlockSite, ...]:
        """The blocks with their arguments."""
        hidden = (TokenArgument(self.hidden),)
        return tuple(BlockSite(block, hidden) if isinstance(block, str) else block for block in self.blocks)

    @property
    def exit_site(self) -> ExitSite:
        """The exit with its output's layout."""
        return ExitSite(self.exit) if isinstance(self.exit, str) else self.exit

    @property
    def inputs(self) -> tuple[TokenArgument, ...]:
        """The model's own arguments with a row for each token."""
        return tuple(TokenArgument(given) if isinstance(given, str) else given for given in self.token_inputs)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The kinds of sequences in the arguments and outputs that are gathered or expanded."""
        found: set[Layout] = {"image", self.exit_site.expand_layout}
        found.update(argument.layout for argument in self.arguments if argument.layout != "text")
        return tuple(sorted(found))

    @property
    def arguments(self) -> tuple[TokenArgument, ...]:
        """All arguments with a row for each token, the model's own and those of its blocks."""
        return (*self.inputs, *(argument for site in self.block_sites for argument in site.tokens))

    @property
    def may_leave_out_text(self) -> bool:
        """Whether it says which arguments hold the text tokens of joint sequences."""
        return any(argument.layout == "text" for argument in self.arguments)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every module path the map names."""
        exit_site = self.exit_site
        return (
            *(site.path for site in self.block_sites),
            *(site.path for site in self.attentions),
            exit_site.path,
            *([exit_site.expand] if exit_site.expand is not None else []),
            *self.constants,
        )

    def check(self, model: nn.Module) -> None:
        """Raise ModuleMapError unless the map fits the model.

        Every path must lead to a module, and to another one each; every argument must be there, no list may be empty,
        arguments without a dimension for images need a shared selection, and `least_tokens` is 1 or more.
        """
        known = {name for name, _ in model.named_modules()}
        missing = [path for path in self.paths if path not in known]
        if missing or not self.blocks or not self.attentions:
            what = f"no module named {', '.join(missing)}" if missing else "no blocks or no attention modules listed"
            raise ModuleMapError(
                f"{type(model).__name__}: the module map does not fit: {what}. Compare the adapter with "
                f"model.named_modules(); another version of the model's library may have renamed modules."
            )
        for field, given in (
            ("blocks", [site.path for site in self.block_sites]),
            ("attentions", [site.path for site in self.attentions]),
            ("constants", list(self.constants)),
        ):
            twice = sorted({path for path in given if given.count(path) > 1})
            if twice:
                raise ModuleMapError(
                    f"{type(model).__name__}: the module map does not fit: {', '.join(twice)} named twice in `{field}`"
                )
        for site in self.block_sites:
            self._check_arguments(model, site.path, [(argument.name, "tokens") for argument in site.tokens])
            for field in ("leading", "counting"):
                counted = getattr(site, field)
                self._check_arguments(model, site.path, [(counted, field)] if counted else [])
        if self.least_tokens < 1:
            raise ModuleMapError(
                f"{type(model).__name__}: least_tokens: expected a whole number of at least 1, got {self.least_tokens}"
            )
        if not self.exit_site.references and self.exit_site.layout != "image":
            raise ModuleMapError(
                f"{type(model).__name__}: an exit without rows for reference tokens (references=False) needs the "
                f"layout 'image', got {self.exit_site}"
            )
        named = [(self.latents, "latents"), (self.time, "time")]
        named += [(given.name, "token_inputs") for given in self.inputs]
        self._check_arguments(model, "", named)
        alike = {argument.name for argument in self.arguments if argument.batch is None and argument.layout != "text"}
        if not self.shared and alike:
            names = sorted(alike)
            raise ModuleMapError(
                f"{type(model).__name__}: {', '.join(names)} has no dimension for images, so all images of a batch "
                f"must have the same tokens selected: the module map needs shared=True"
            )

    def _check_arguments(self, model: nn.Module, path: str, named: list[tuple[str, str]]) -> None:
        names = list(inspect.signature(model.get_submodule(path).forward).parameters)
        for name, field in named:
            if name not in names:
                field = "hidden" if name == self.hidden and field == "tokens" else field
                where = f"{path}.forward" if path else "forward"
                raise ModuleMapError(
                    f"{type(model).__name__}: the module map does not fit: {where} has no argument {name!r} (the "
                    f"map's `{field}`), only {', '.join(names)}"
                )


def latent_grid(argument: str, patch: int | tuple[int, ...]) -> Callable[[Arguments], TokenGrid]:
    """A grid reader for latents [B, C, height, width] or [B, C, frames, height, width] cut into patches.

    The grid of a single frame has two dimensions.

    Args:
        argument: name of the model's argument that holds the latents.
        patch: extent of a patch, the same along height and width, or one for each of the last dimensions.
    """
    sizes = (patch, patch) if isinstance(patch, int) else tuple(patch)

    def grid(arguments: Arguments) -> TokenGrid:
        extents = arguments[argument].shape[-len(sizes) :]
        found = tuple(extent // size for extent, size in zip(extents, sizes, strict=True))
        return found[1:] if found[:-2] == (1,) else found

    return grid
