"""The hooked places of one model: what their hooks find there, told before each call and cleared after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from tokenprune.engine import attention_hooks, attention_state, text_hooks
from tokenprune.engine.attention_state import AttentionState, Carrier, Coming, Weigh
from tokenprune.engine.block_hooks import BlockState
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.call_arguments import CallArguments
from tokenprune.engine.exit_hooks import Exit, ExpandState
from tokenprune.engine.rows import Rows
from tokenprune.engine.shards import ALONE, Shards
from tokenprune.engine.text_hooks import TextLayerState
from tokenprune.modulemap import ModuleMap
from tokenprune.ops.guidance import Guidance
from tokenprune.ops.selection import Selection
from tokenprune.ops.static_memory import StaticBuffers, is_writable


class Sites:
    """The states of all hooked places.

    Args:
        module_map: where they are.
        weigh: the policy's `weigh_attention`, if it wants to know the attention of some full calls.
        trusting: whether attention calls are not looked into, as `PruningSettings` says.
        carrier: brings keys and values that lie elsewhere to the attention modules.

    Attributes:
        exit: of the last projection.
        expand: of the module before it, where that needs all rows.
        attentions: of attention modules.
        text_layers: of text-only modules.
        blocks: of blocks, by path; they exist while hooks are on.
    """

    def __init__(
        self, module_map: ModuleMap, weigh: Weigh | None, trusting: bool = False, carrier: Carrier | None = None
    ) -> None:
        self._map, self._carrier = module_map, carrier
        self.exit = Exit(module_map.exit_site)
        self.expand = ExpandState(module_map.exit_site)
        self.attentions = [AttentionState(site, weigh, trusting, carrier) for site in module_map.attentions]
        self.text_layers = [TextLayerState(path) for path in module_map.constants]
        self.blocks: dict[str, BlockState] = {}
        self._clock = torch.zeros(())
        self._static = StaticBuffers()

    def find_blocks(self, model: nn.Module) -> None:
        """Read the signatures of the blocks that stand in the model now."""
        for attention in self.attentions:
            attention.owner = type(model)
        self.blocks = {site.path: BlockState(site, model.get_submodule(site.path)) for site in self._map.block_sites}

    def prepare(
        self,
        call: CallArguments,
        branch: BranchCache,
        selection: Selection | None,
        tokens: int,
        time: float,
        images: int = 1,
        references: tuple[int, int] = (0, 0),
        siblings: Iterable[BranchCache] = (),
        weighed: Guidance | None = None,
        keeps: bool = True,
        with_text: bool = True,
        holds_text: bool = False,
        shards: Shards = ALONE,
    ) -> None:
        """Tell all hooks what the coming call computes.

        Args:
            call: what the model was given.
            branch: the guidance branch that it belongs to.
            selection: the computed tokens of each image, which the batch holds once or several times; None for all.
            tokens: N, all image tokens, reference tokens included.
            time: the timestep.
            images: how many images have a selection of their own; after so many rows of the batch they come again.
            references: how many image tokens that are no part of the grid lie before and after it.
            siblings: branches that the same step called before this one.
            weighed: how guidance lies in the batch, where the policy wants to know the attention of its conditional
                half; None where it does not.
            keeps: whether keys and values are kept for pruned calls; otherwise attention is left alone.
            with_text: whether the text tokens of joint sequences are computed at a pruned call.
            holds_text: whether any pruned call leaves them out.
            shards: over which ranks the model's tokens are divided.
        """
        starts, frames, rows, own = call.image_starts, call.frames, None, None
        if starts is not None and selection is not None:
            starts = starts.to(selection.index.device)
        batch = len(call.latents) * frames
        if selection is not None:
            text = max(self._joint_lengths(branch, batch), default=tokens) - tokens
            given = (max(text, 0), starts, frames, self._static, with_text)
            copies = len(call.latents) // selection.batch_size
            rows = own = Rows(selection, self._map.layouts, *given, copies=copies)
            if shards.degree > 1:
                static = self._static.part("own")
                own = Rows(shards.own(selection), ["image"], static=static, shards=shards, copies=copies)
        self.exit.rows, self.exit.tokens = rows, tokens
        self.exit.starts, self.exit.frames = starts, frames
        self.exit.cut = (0, 0) if self._map.exit_site.references else references
        self._give_rows(rows, own)
        for site in self.attentions:
            site.active, site.ran = keeps, False
        for path, block in self.blocks.items():
            block.ran, block.divided = False, shards.divided.get(path, frozenset())
        if not keeps:
            return
        coming = Coming(
            branch=branch,
            clock=self._tell_time(time, call.latents.device),
            rows=rows,
            tokens=tokens,
            batch=batch,
            period=images * frames if images > 1 else 1,
            starts=starts,
            before=int(starts.min()) if starts is not None and rows is None else 0,
            siblings=tuple(siblings),
            weighed=weighed,
            holds_text=holds_text,
            shards=shards,
        )
        attention_state.prepare(self.attentions, coming)

    def _joint_lengths(self, branch: BranchCache, batch: int) -> Iterator[int]:
        """Lengths of the sequences of image and text tokens that the branch's attention modules saw."""
        for site in self.attentions:
            if "text" in site.site.layout:
                for number, call in branch.seen_calls(site.site.path).keys.items():
                    if number == 0 or call.shape.rows < batch:
                        yield call.shape.keys

    def prepare_text(self, call: CallArguments, branch: BranchCache, pruned: bool, keeps: bool = True) -> None:
        """Tell text-only modules whether the coming call reuses their outputs, and whether any keeps them."""
        text_hooks.prepare(self.text_layers, branch, call.text, pruned, keeps)

    def bring(self, branch: BranchCache) -> None:
        """Send for the keys and values of a guidance branch that lie elsewhere: attention modules will run."""
        if self._carrier is not None:
            self._carrier.begin(self.attentions, branch)

    def attention_weights(self) -> list[Tensor]:
        """What the policy made of each attention module at this full call [B, N]; nothing where it does not ask."""
        weights = [found for site in self.attentions if (found := site.attention_weights()) is not None]
        return [found.to(weights[0].device) for found in weights]

    @property
    def ran(self) -> frozenset[str]:
        """Paths of the blocks and attention modules that ran since the coming call was prepared."""
        blocks = (path for path, block in self.blocks.items() if block.ran)
        return frozenset(blocks).union(state.site.path for state in self.attentions if state.ran)

    def clear(self) -> None:
        """Let all modules work on whatever they are given, as before the first call."""
        self.exit.rows = self.exit.starts = None
        self._give_rows(None, None)
        for site in self.attentions:
            site.active = False
        for layer in self.text_layers:
            layer.reused = False
        if self._carrier is not None:
            self._carrier.end()

    def tidy(self) -> None:
        """Let go of row indices that the last generation did not use."""
        self._static.tidy()

    def forget_rows(self) -> None:
        """Let go of all row indices, and of memory that modules share: the next generation has other shapes."""
        self._static = StaticBuffers()
        if self._carrier is not None:
            self._carrier.forget()

    def forget(self) -> None:
        """Let go of all tensors."""
        self.clear()
        self.forget_rows()
        for state in self.attentions:
            state.forget()
        for layer in self.text_layers:
            layer.forget()

    def leave_modes(self) -> None:
        """Leave whatever attention modes an exception or an interrupt left behind."""
        attention_hooks.leave_modes(self.attentions)

    def _give_rows(self, rows: Rows | None, own: Rows | None) -> None:
        self.expand.rows = rows
        for block in self.blocks.values():
            block.rows, block.own = rows, own

    def _tell_time(self, time: float, device: torch.device) -> Tensor:
        """The timestep as a tensor [] that keeps its address."""
        if self._clock.device != device or not is_writable(self._clock):
            self._clock = torch.zeros((), device=device)
        return self._clock.fill_(time)
