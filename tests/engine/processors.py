"""Attention processors that make other calls than one, and an oracle that gives each of them stale keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

OWN: list[slice | None] = []
"""Which rows of the batch the attention call under way is for; empty for calls that see no image keys."""


def attend(query: Tensor, key: Tensor, value: Tensor, rows: slice | None = None, **options: Any) -> Tensor:
    """An attention call that sees image keys."""
    OWN.append(rows)
    try:
        return F.scaled_dot_product_attention(query, key, value, **options)
    finally:
        OWN.clear()


class Once:
    """Joint attention over [image, text], or over the image alone, in one call; others change `mix`."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        """Attention [B, H, L, D]; the first `tokens` of the L are the image's."""
        return attend(query, key, value)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        tokens = hidden_states.shape[1]
        made = [attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)]
        if encoder_hidden_states is not None:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            made = [torch.cat([one, add(encoder_hidden_states)], 1) for one, add in zip(made, layers, strict=True)]
        query, key, value = (one.unflatten(2, (attn.heads, -1)).transpose(1, 2) for one in made)
        mixed = self.mix(attn, query, key, value, tokens).transpose(1, 2).flatten(2)
        image = attn.to_out[1](attn.to_out[0](mixed[:, :tokens]))
        if encoder_hidden_states is None:
            return image
        text = mixed[:, tokens:]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


class Queries(Once):
    """So many queries at a time, so that a pruned call makes fewer attention calls."""

    def __init__(self, size: int) -> None:
        self.size = size

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        return torch.cat([attend(part, key, value) for part in query.split(self.size, dim=2)], dim=2)


class Views(Queries):
    """The same keys, but seen through another view of their memory by each call."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        parts = query.split(self.size, dim=2)
        return torch.cat([attend(part, key[:, :, :], value[:, :, :]) for part in parts], dim=2)


class Copies(Queries):
    """Each call gets a copy of the keys."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        return torch.cat([attend(part, key.clone(), value.clone()) for part in query.split(self.size, dim=2)], dim=2)


class Heads(Once):
    """So many heads at a time."""

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        parts = zip(*(one.split(self.heads, dim=1) for one in (query, key, value)), strict=True)
        return torch.cat([attend(*part) for part in parts], dim=1)


class Images(Once):
    """One image of the batch at a time."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        rows = [slice(image, image + 1) for image in range(len(query))]
        return torch.cat([attend(query[row], key[row], value[row], row) for row in rows])


class Parts(Once):
    """All images but the last at once, then the last."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        rows = [slice(0, len(query) - 1), slice(len(query) - 1, len(query))]
        return torch.cat([attend(query[row], key[row], value[row], row) for row in rows])


class Identity(Once):
    """The last image's tokens see nothing but themselves: no attention call, as under perturbed guidance."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        rows = slice(0, len(query) - 1)
        return torch.cat([attend(query[rows], key[rows], value[rows], rows), value[-1:]])


class Twice(Once):
    """Negative guidance: a second call with `extra` more text keys, or other values where there is no text.

    Attributes:
        on: whether there is a second call.
    """

    def __init__(self, extra: int = 2) -> None:
        self.extra, self.on = extra, True

    def other(self, key: Tensor, value: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the second call."""
        if key.shape[2] == tokens:
            return 0.5 * key, value.flip(-1)
        text = torch.linspace(-1, 1, self.extra * key.shape[-1]).view(1, 1, self.extra, key.shape[-1]).to(key)
        more = text.expand(*key.shape[:2], -1, -1)
        return torch.cat([key[:, :, :tokens], -key[:, :, tokens:], more], 2), torch.cat([value, more], 2)

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        positive = attend(query, key, value)
        return 1.5 * positive - 0.5 * attend(query, *self.other(key, value, tokens)) if self.on else positive


class TwiceByQueries(Twice):
    """Negative guidance, so many queries at a time: first all positive calls, then all negative ones."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        parts, other = query.split(7, dim=2), self.other(key, value, tokens)
        positive = torch.cat([attend(part, key, value) for part in parts], dim=2)
        return 1.5 * positive - 0.5 * torch.cat([attend(part, *other) for part in parts], dim=2)


class TwiceInTurn(Twice):
    """Negative guidance, half of the queries at a time, positive and negative calls in turn."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        other = self.other(key, value, tokens)
        return torch.cat(
            [1.5 * attend(part, key, value) - 0.5 * attend(part, *other) for part in query.chunk(2, dim=2)], dim=2
        )


class Prompted(Queries):
    """An image prompt of three keys beside the rest, whose calls come between the others."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        prompt = torch.linspace(-1, 1, 3 * key.shape[-1]).view(1, 1, 3, -1).to(key).expand(*key.shape[:2], -1, -1)
        parts = query.split(self.size, dim=2)
        return torch.cat(
            [F.scaled_dot_product_attention(part, prompt, prompt) + attend(part, key, value) for part in parts], dim=2
        )


class Doubled(Twice):
    """Negative guidance with both in one batch of twice the size."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        other = self.other(key, value, tokens)
        keys, values = (torch.cat([one, second]) for one, second in zip((key, value), other, strict=True))
        positive, negative = attend(torch.cat([query, query]), keys, values).chunk(2)
        return 1.5 * positive - 0.5 * negative


class Perturbed(Once):
    """A mask that lets each image token see itself and the text only, made for whatever tokens there are."""

    def mix(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, tokens: int) -> Tensor:
        mask = torch.zeros(query.shape[2], query.shape[2])
        mask[:tokens, :tokens] = float("-inf")
        mask[:tokens, :tokens].fill_diagonal_(0)
        return attend(query, key, value, attn_mask=mask[None, None])


class Oracle:
    """Runs a plain model on all tokens; each attention call that sees image keys gets stale ones where they are stale.

    Args:
        model: a model without hooks, whose processors call `attend`.
        predict: how to call it.
        labelled: False: its processors are others', and all calls with as many keys as there are image tokens see the
            image; the rows of those over a part of the batch have the same tokens selected.
    """

    def __init__(self, model: nn.Module, predict: Callable[..., Any], labelled: bool = True) -> None:
        self.model, self.predict, self.labelled = model, predict, labelled
        self.tokens = 0
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.held: Tensor | None = None

    def step(self, chosen: Tensor | None, latents: Tensor, *rest: Any) -> Tensor:
        """The prediction of one step; `chosen` [B, h, w] marks the tokens to compute, None computes all."""
        with self.attention(None if chosen is None else chosen.flatten(1)), torch.no_grad():
            fresh = self.predict(self.model, latents, *rest)
        if chosen is not None and self.held is not None:
            pixels = chosen.repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1)
            fresh = torch.where(pixels, fresh, self.held)
        self.held = fresh
        return fresh

    def attention(self, chosen: Tensor | None) -> TorchFunctionMode:
        """Attention with stale keys for whatever runs within; `chosen` [B, N] marks the fresh ones, None all."""
        return Stale(self, chosen)


class Stale(TorchFunctionMode):
    """Gives each attention call of one call of the model the keys that an oracle kept, but for the fresh ones.

    Args:
        oracle: keeps them.
        chosen: the fresh ones [B, N]; None for all.
    """

    def __init__(self, oracle: Oracle, chosen: Tensor | None) -> None:
        super().__init__()
        self.oracle, self.chosen, self.calls = oracle, chosen, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            kwargs, args = {**dict(zip(names, args, strict=False)), **kwargs}, ()
            if OWN if self.oracle.labelled else kwargs["key"].shape[2] >= self.oracle.tokens:
                kwargs["key"], kwargs["value"] = self.mixed(kwargs["key"], kwargs["value"])
        return func(*args, **kwargs)

    def mixed(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Fresh keys and values where they are chosen, stale ones elsewhere."""
        call, self.calls = self.calls, self.calls + 1
        if self.chosen is not None:
            own = self.chosen if not OWN or OWN[0] is None else self.chosen[OWN[0]]
            own = own.repeat(-(-len(key) // len(own)), 1)[: len(key)]
            text = torch.ones(len(own), key.shape[2] - own.shape[1], dtype=torch.bool)
            fresh, (old_key, old_value) = torch.cat([own, text], dim=1)[:, None, :, None], self.oracle.kept[call]
            key, value = torch.where(fresh, key, old_key), torch.where(fresh, value, old_value)
        self.oracle.kept[call] = key.clone(), value.clone()
        return key, value


def put(model: nn.Module, processor: Once) -> None:
    """Let every attention over image tokens be this processor's."""
    for name, module in model.named_modules():
        if name.endswith((".attn", ".attn1")):
            module.processor = processor
