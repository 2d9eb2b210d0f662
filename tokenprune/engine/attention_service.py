"""What becomes of a module's attention calls: noted and passed on at a full call, completed at a pruned one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tokenprune.engine.attention_calls import CallShape, Held, SeenCall, Walk
from tokenprune.engine.attention_masks import between_tokens, fit_mask
from tokenprune.engine.attention_state import AttentionPlan, AttentionState, ImageTokens, KeptKeys, Weigh
from tokenprune.engine.shards import in_order
from tokenprune.errors import AttentionError, UnsupportedCallError
from tokenprune.ops.static_memory import store
from tokenprune.reuse.key_value import BufferKey

SDPA: Any = torch._C._nn.scaled_dot_product_attention
"""Torch's own scaled_dot_product_attention, also where somebody put another one in its place."""


class AttentionService(ABC):
    """Serves the attention calls of one module in one call of the model.

    Args:
        state: the module's.
        plan: what the call computes.

    Attributes:
        made: how many there were.
    """

    def __init__(self, state: AttentionState, plan: AttentionPlan) -> None:
        self.state, self.plan = state, plan
        self.made = 0

    @property
    def path(self) -> str:
        """The module's; compiled code must not read it but for errors, as it is another one in each layer."""
        return self.state.site.path

    @abstractmethod
    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """Attention [B, H, l, D] in the place of torch's.

        Raises:
            AttentionError: it cannot be served.
        """

    @abstractmethod
    def end(self, output: Any, processor: tuple[object, object]) -> None:
        """The module is done.

        Args:
            output: its output.
            processor: what made the calls, and by which back-end.

        Raises:
            AttentionError: what it did cannot be pruned, or is not what it did at the last full call.
        """

    def refuse_order(self, is_causal: bool) -> None:
        """Raise if an attention call with image keys is causal."""
        if is_causal:
            raise AttentionError(f"{self.path}: causal attention cannot be pruned")


class FullAttention(AttentionService):
    """At a full call of the model: all attention calls are torch's own; their keys are kept, and which share them."""

    def __init__(self, state: AttentionState, plan: AttentionPlan) -> None:
        super().__init__(state, plan)
        self._calls: list[SeenCall] = []
        self._firsts: list[SeenCall] = []  # of each number
        self._held: list[Held] = []  # likewise
        self._queries: list[list[Tensor]] = []  # likewise, while the policy asks
        self._scales: list[float] = []  # likewise
        self._covered = 0  # rows of the batch, by calls over parts of it
        self._changed = not plan.seen.made
        self._weighed = plan.coming.conditional_rows if state.weigh is not None else range(0)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """Torch's own attention; its keys are kept."""
        known = self._known(CallShape.of(query, key))
        call = self._classified(known, query, key, value, attn_mask)
        self._changed = self._changed or known != call
        self._calls.append(call)
        self.made += 1
        if call.number is not None:
            self.refuse_order(is_causal)
            if call.masked and self.plan.coming.shards.degree > 1:
                raise AttentionError(
                    f"{self.path}: expected a mask over keys alone where tokens are divided over devices, got one with "
                    f"a row for each query {list(attn_mask.shape if attn_mask is not None else ())}"
                )
            if call.number == len(self._held):
                kept = self.plan.keys[call.number] if known == call else self.state.keep(call)
                self._keep(kept, call, key, value, attn_mask, options.get("scale"))
            if self._weighed:
                self._queries[call.number].append(query)
        return SDPA(query, key, value, attn_mask, dropout_p, is_causal, **options)

    def end(self, output: Any, processor: tuple[object, object]) -> None:
        """Note what the module did, where that is new."""
        seen, coming, site = self.plan.seen, self.plan.coming, self.state.site
        if self._changed or len(self._calls) != len(seen.calls):
            if self._calls and not self._firsts:
                text = " and the text keys" if "text" in site.layout else ""
                raise AttentionError(
                    f"{self.path}: expected {coming.tokens} image keys{text}, got "
                    f"{', '.join(str(call.shape.keys) for call in self._calls)} keys; the module map calls its layout "
                    f"{site.layout!r}"
                )
            self._refuse_unknown_rows()
            self._refuse_other_texts()
            outputs = [leaf.shape for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            together = {sum(sizes) for sizes in zip(*outputs, strict=False)}  # text and image apart
            self._refuse_unknown_queries({size for shape in outputs for size in shape} | together)
            for number in range(len(self._firsts), len(self.plan.keys)):
                coming.branch.buffers.pop(BufferKey(self.path, number), None)
            seen.note(self._calls, coming.tokens, processor)
        if self.state.weigh is not None and self._weighed:
            for number, queries in enumerate(self._queries):
                self._weigh(self.state.weigh, number, torch.cat(queries, dim=2) if len(queries) > 1 else queries[0])

    def _known(self, shape: CallShape) -> SeenCall | None:
        """The call of these sizes that stood here at the last full call."""
        seen = self.plan.seen.calls
        return seen[self.made] if self.made < len(seen) and seen[self.made].shape == shape else None

    def _classified(
        self, known: SeenCall | None, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> SeenCall:
        """What a call is, which was `known` at the last full one."""
        shape, coming = CallShape.of(query, key), self.plan.coming
        if shape.keys < coming.tokens + (coming.before if self.state.site.layout == "text-image" else 0):
            return SeenCall(shape, None)
        if known is not None and not self._changed and torch.compiler.is_compiling():
            return known
        masked = mask is not None and mask.ndim > 1 and mask.shape[-2] > 1
        for number, held in enumerate(self._held):
            if held.holds(key, value):
                return SeenCall(shape, number, self._firsts[number].first, masked)
        part = shape.queries not in (coming.tokens, shape.keys) and not torch.compiler.is_compiling()
        for number, held in enumerate(self._held if part else ()):
            if held.equals(key, value) if known is None else (known.copied and known.number == number):
                return SeenCall(shape, number, self._firsts[number].first, masked, copied=True)
        first = 0 if shape.rows == coming.batch else self._covered % coming.batch
        return SeenCall(shape, len(self._held), first, masked)

    def _keep(
        self, kept: KeptKeys, call: SeenCall, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
    ) -> None:
        """Keep keys that are seen for the first time."""
        buffer, seen, number = kept.buffer, self.plan.seen, len(self._held)
        if buffer.clock is not None and buffer.clock.device != key.device:
            buffer.clock = buffer.clock.to(key.device)
        span = kept.images.span(key.shape[2])
        if not torch.compiler.is_compiling():  # compiled code never sees memory being made
            self.plan.coming.branch.make_room(self.path, buffer, key, value, span)
        buffer.record(in_order(key, 2, kept.order), in_order(value, 2, kept.order), span)
        between = between_tokens(mask, kept.images, call.shape.keys)
        if between is not None:
            seen.between[number] = store(seen.between.get(number), between)
        if self.state.site.keeps_scale:
            seen.scales[number] = scale
        self._firsts.append(call)
        self._held.append(Held.of(key, value))
        self._queries.append([])
        self._scales.append(scale or key.shape[-1] ** -0.5)
        self._covered += call.shape.rows if call.shape.rows != self.plan.coming.batch else 0

    def _weigh(self, weigh: Weigh, number: int, query: Tensor) -> None:
        """Give the policy the image tokens' queries and keys of conditional rows, where a call has both."""
        call, images, wanted = self._firsts[number], self.plan.keys[number].images, self._weighed
        start, stop = max(call.first, wanted.start), min(call.first + call.shape.rows, wanted.stop)
        if query.shape[2] not in (images.count, call.shape.keys) or start >= stop:
            return
        rows, order = slice(start - call.first, stop - call.first), self.plan.keys[number].order
        query, key = (in_order(each, 2, order) for each in (query, self._held[number].key))
        queries = query if query.shape[2] == images.count else images.rows(query)
        of_all_heads = self.plan.coming.shards.joined
        queries, keys = (of_all_heads(each[rows], 1) for each in (queries, images.rows(key)))
        weights = weigh(queries, keys, self._scales[number])
        self.state.weights.append((start - wanted.start, weights))

    def _refuse_unknown_rows(self) -> None:
        """Raise if calls over parts of the batch do not tell which images they are for."""
        coming = self.plan.coming
        parts = [call.shape.rows for call in self._firsts if call.shape.rows != coming.batch]
        unknown = any(rows % coming.period for rows in parts) and sum(parts) != coming.batch
        if unknown and not self.state.trusting:
            raise AttentionError(
                f"{self.path}: expected attention over the whole batch of {coming.batch}, or over each part of it once "
                f"and in order, got calls over {', '.join(map(str, parts))} rows; which images those are is not known, "
                f"and each image has tokens of its own selected. Call the model for one image at a time"
            )

    def _refuse_other_texts(self) -> None:
        """Raise if text may be left out, and images attend to more than one sequence of keys."""
        rows = sum(call.shape.rows for call in self._firsts)
        if self.plan.coming.holds_text and len(self._firsts) > 1 and rows > self.plan.coming.batch:
            raise UnsupportedCallError(
                f"{self.path}: steps cannot leave out the text tokens (HeldText) where images attend to "
                f"{len(self._firsts)} sequences of keys, such as an image prompt's beside the text's: it is not known "
                f"which of them is the text. Take the schedule within HeldText"
            )

    def _refuse_unknown_queries(self, sizes: set[int]) -> None:
        """Raise if calls ask for tokens that would not be known when only some are computed.

        Args:
            sizes: of all dimensions of the module's output, which has a row for each query, or of its parts together.
        """
        others = sum(call.shape.queries for call in self._calls if call.number is None)  # these see none of the image
        for number, first in enumerate(self._firsts):
            calls = [call for call in self._calls if call.number == number]
            queries = [call.shape.queries for call in calls]
            whole = {self.plan.coming.tokens, *(call.shape.keys for call in self._firsts)} | sizes
            if set(queries) <= whole:
                continue
            came = f"got {', '.join(map(str, queries))} queries for {first.shape.keys} keys"
            if not {sum(queries), sum(queries) + others} & whole:
                raise AttentionError(
                    f"{self.path}: expected the queries of all tokens for each set of keys, {came}; which tokens ask "
                    f"is not known, so that the computed ones among them cannot be found. Use a processor that "
                    f"attends with all queries (masks of regions may be handed to it)"
                )
            if any(call.masked for call in calls):
                raise AttentionError(
                    f"{self.path}: expected all queries in one call, as the mask has a row for each, {came}; which "
                    f"rows of the mask belong to computed tokens is not known. Use a processor that attends with all "
                    f"queries at once"
                )


class PrunedAttention(AttentionService):
    """At a pruned call of the model: the keys of each attention call are completed by those that are kept."""

    def __init__(self, state: AttentionState, plan: AttentionPlan) -> None:
        super().__init__(state, plan)
        streams = ImageTokens(state.site.layout).streams
        self._dropped = streams * (plan.coming.tokens - plan.selected) + self._text_left_out(streams)
        self._walk = Walk(plan.seen.runs, self._dropped)
        self._given: dict[int, Held] = {}
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}

    def _text_left_out(self, streams: int) -> int:
        """How many text keys are not computed."""
        rows, runs = self.plan.coming.rows, self.plan.seen.runs
        if rows is None or rows.most_text is None or not runs:
            return 0
        return max(0, runs[0].shape.keys - streams * self.plan.coming.tokens - rows.most_text)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """Attention to the kept keys and the fresh ones."""
        shape, seen = CallShape.of(query, key), self.plan.seen
        run = self._walk.step(shape)
        self.made += 1
        if run is None and not seen.passes(shape, self.plan.selected):
            raise self._changed(f"{list(key.shape)} [B, H, n + T, D]")
        if run is None or shape.keys == run.shape.keys:
            return SDPA(query, key, value, attn_mask, dropout_p, is_causal, **options)
        self.refuse_order(is_causal)
        kept, number = self.plan.keys[run.number], run.number
        if kept.fresh is None:
            raise RuntimeError(f"{self.path}: nothing was prepared for its attention call {self.made}")
        if number not in self._given:
            self._given[number] = Held.of(key, value)
            fresh = (in_order(each, 2, kept.fresh_order) for each in (key, value))
            self._whole[number] = kept.buffer.update(kept.fresh, *fresh)
        elif not (run.copied or torch.compiler.is_compiling() or self._given[number].holds(key, value)):
            raise self._changed(f"other keys {list(key.shape)} in attention call {self.made}")
        if attn_mask is not None:
            between = seen.between.get(number)
            attn_mask = in_order(attn_mask, -1, kept.fresh_order, kept.order)
            attn_mask = fit_mask(self.state, kept, attn_mask, shape.queries, between)
        if self.state.site.keeps_scale:
            options["scale"] = seen.scales[number]
        return SDPA(query, *self._whole[number], attn_mask, dropout_p, is_causal, **options)

    def end(self, output: Any, processor: tuple[object, object]) -> None:
        """Raise unless the module did what it did at the last full call."""
        if not self._walk.done:
            raise self._changed(f"{self.made or 'no'} attention calls")

    def _changed(self, got: str) -> AttentionError:
        plan = self.plan
        calls = [f"[{r.shape.rows}, {r.shape.heads}, {r.shape.keys - self._dropped}, D]" for r in plan.seen.runs]
        made = f"those of {', '.join(calls)} as at the last full step" if calls else "none, as there were none before"
        return AttentionError(
            f"{self.path}: expected fresh keys for the selected and text tokens, {made}, got {got}; the text changed "
            f"its length, or the layer was skipped, or an image prompt or another guidance came or changed, since the "
            f"last full step; call the handle's reset() when you change such a thing"
        )
