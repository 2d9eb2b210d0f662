"""What each rank does for the tests of this folder: processes import it by name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, TensorParallelConfig
from diffusers.hooks import tensor_parallel
from diffusers.models import attention_dispatch
from tiny import ALL, T, noise
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import tokenprune
from tokenprune import CATPolicy, Handle, Memory, Observation, Plan, Report, Selection, SelectionPolicy, TokenPruneError

Divide = Callable[[nn.Module], None]
TINY = {tiny.name: tiny for tiny in ALL}
STEPS, LENGTH = 5, 8
TEXTS = ("encoder_hidden_states", "encoder_hidden_states_mask", "txt_ids")
UNDIVIDED = {"controlnet_block_samples", "encoder_attention_mask"}
"""What plain models cannot be given on several ranks, as diffusers does not divide it, or to another length."""


@dataclass(frozen=True)
class Generated:
    """What a generation gave.

    Attributes:
        outputs: the model's, of each step.
        computed: which tokens each step computed [B, N].
        keys: bytes of keys and values.
        cache_bytes: of all that was kept.
    """

    outputs: list[Tensor]
    computed: list[Tensor]
    keys: int
    cache_bytes: int


def with_sums(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Attention [B, l, H, D] with the logarithms of its sums [B, l, H], which torch gives on accelerators alone."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    products = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    return (products.softmax(-1) @ value).transpose(1, 2), products.logsumexp(-1).transpose(1, 2)


def by_ring(model: nn.Module) -> None:
    """Divide sequences over all ranks, also in attention, which goes round."""
    attention_dispatch._native_attention_forward_op = with_sums
    model.enable_parallelism(config=ContextParallelConfig(ring_degree=dist.get_world_size()))


def by_uneven_context(model: nn.Module) -> None:
    """Divide sequences over all ranks in parts that need not be alike, and heads in attention."""
    config = ContextParallelConfig(ulysses_degree=dist.get_world_size(), ulysses_anything=True)
    model.enable_parallelism(config=config)


def longer(text: Tensor) -> Tensor:
    """A text of a length that two and four ranks can divide."""
    dim = text.ndim - 2 if text.shape[-2] == T else 1
    return torch.cat([text, text.narrow(dim, 0, LENGTH - T)], dim)


def make(name: str, heads: int = 2) -> tuple[nn.Module, dict[str, Any]]:
    """A small model, and what to call it with."""
    tiny = TINY[name]
    inputs = tiny.inputs()
    if "img_mask" not in inputs:  # which has the text's length, too
        inputs.update({given: longer(inputs[given]) for given in TEXTS if given in inputs})
    inputs.update(dict.fromkeys(inputs.keys() & UNDIVIDED))
    return replace(tiny, config={**tiny.config, "num_attention_heads": heads}).make(), inputs


def by_context(model: nn.Module) -> None:
    """Divide sequences over all ranks, and heads in attention."""
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))


def by_tensors(model: nn.Module) -> None:
    """Divide weights over all ranks, and so heads and features."""
    with mock.patch.object(tensor_parallel, "_SUPPORTED_TP_DEVICES", ("cpu",)):  # diffusers knows accelerators alone
        model.enable_parallelism(config=TensorParallelConfig(tp_degree=dist.get_world_size()))


def calls(model: nn.Module, inputs: dict[str, Any], stop: int | None = None, start: int = 0) -> list[Tensor]:
    """The outputs of the steps of a generation, or of some of them, each with latents of its own."""
    first, last = inputs["hidden_states"], noise(*inputs["hidden_states"].shape, seed=1)
    outputs = []
    for step in range(STEPS)[start:stop]:
        given = {
            **inputs,
            "hidden_states": torch.lerp(first, last, 0.1 * step),
            "timestep": inputs["timestep"] * (1 - step / STEPS),
        }
        with torch.no_grad():
            outputs.append(model(**given, return_dict=False)[0])
    return outputs


def generate(model: nn.Module, inputs: dict[str, Any], plan: Plan | SelectionPolicy) -> Generated:
    with tokenprune.apply(model, plan, trace=True) as handle:
        outputs = calls(model, inputs)
        branches = handle._masked.generation.branches.values()
        keys = sum(buffer.nbytes for branch in branches for buffer in branch.buffers.values())
        computed = [step.computed for step in handle.trace.steps]
        return Generated(outputs, computed, keys, handle._masked.peak_bytes)


def alone_and_divided(
    divide: Divide, name: str, plan: Plan | SelectionPolicy, heads: int = 2
) -> tuple[Generated, Generated, list[list[Tensor]]]:
    """A pruned generation on this rank alone, one on all ranks; and plain ones: alone, on all ranks, and behind it."""
    model, inputs = make(name, heads)
    plain, alone = calls(model, inputs), generate(model, inputs, plan)
    divide(model)
    divided = calls(model, inputs)
    return alone, generate(model, inputs, plan), [plain, divided, calls(model, inputs, 2)]


def reports(divide: Divide, plan: Plan | SelectionPolicy) -> tuple[Report, Report]:
    """Of a generation on this rank alone, and of one on all ranks; there the first rank alone asks."""
    model, inputs = make("flux")
    with tokenprune.apply(model, plan) as handle:
        calls(model, inputs)
        alone = handle.report()
    divide(model)
    with tokenprune.apply(model, plan) as handle:
        calls(model, inputs)
        return alone, handle.report() if dist.get_rank() == 0 else alone


def tokens_of(handle: Handle) -> list[int]:
    """How many tokens each step of the latest generation computed."""
    return [record.calls[0].tokens for record in handle._masked.generation.records]


def divided_later(
    divide: Divide, plan: Plan | SelectionPolicy
) -> tuple[list[int], list[int], list[Tensor], list[Tensor], list[Tensor]]:
    """A generation that goes on when the model was divided in its midst, and another; as a new one, and plain."""
    model, inputs = make("flux")
    with tokenprune.apply(model, plan) as handle:
        calls(model, inputs, 3)
        divide(model)
        calls(model, inputs, start=3)
        rest = tokens_of(handle)
        later, tokens = calls(model, inputs), tokens_of(handle)
    return rest, tokens, later, generate(model, inputs, plan).outputs, calls(model, inputs, 2)


@dataclass(frozen=True)
class Ranked(SelectionPolicy):
    """Selects other tokens on each rank."""

    alpha: float = 0.5
    warmup_steps: int = 2

    def select(self, seen: Observation, memory: Memory) -> Selection:
        first = dist.get_rank() + seen.step
        index = torch.arange(first, first + seen.count).expand(len(seen.prediction), -1)
        return Selection.from_index(index, seen.prediction.shape[1])


def divided(divide: Divide, name: str, plan: Plan | SelectionPolicy, heads: int = 2) -> Generated:
    """A generation on all ranks."""
    model, inputs = make(name, heads)
    for given in inputs.keys() & TEXTS:
        dim = 0 if inputs[given].ndim == 2 and given == "txt_ids" else 1
        inputs[given] = inputs[given].narrow(dim, 0, dist.get_world_size())
    divide(model)
    return generate(model, inputs, plan)


def others_latents(divide: Divide) -> str:
    """What is said where each rank has latents of its own."""
    model, inputs = make("flux")
    divide(model)
    inputs["hidden_states"] = inputs["hidden_states"] + dist.get_rank()
    with tokenprune.apply(model, CATPolicy()):
        return refusal(lambda: calls(model, inputs))


def refusal(work: Callable[[], object]) -> str:
    """What a refusal says."""
    try:
        work()
    except TokenPruneError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def leftovers(model: nn.Module) -> list[str]:
    """What of tokenprune hangs on a model."""
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    names = [name for module in model.modules() for name in module.__dict__ if "tokenprune" in name]
    return names + [str(hook) for hook in hooks if "tokenprune" in (getattr(hook, "__module__", "") or "")]


def refused(name: str, plan: dict[str, Any] | None, degrees: dict[str, Any]) -> tuple[str, list[str], str, list[str]]:
    """What is said of a model that is divided in some way, before `apply` and after it; and what is left on it."""
    model, inputs = make(name)
    model.enable_parallelism(config=ContextParallelConfig(**degrees), cp_plan=plan)
    early, left = refusal(lambda: tokenprune.apply(model, CATPolicy())), leftovers(model)
    model, inputs = make(name)
    handle = tokenprune.apply(model, CATPolicy())
    model.enable_parallelism(config=ContextParallelConfig(**degrees), cp_plan=plan)
    late = refusal(lambda: calls(model, inputs))
    handle.remove()
    return early, left, late, leftovers(model)


# What the groups of processes are tested with


def ranks_and_worlds() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def fail() -> None:
    if dist.get_rank() == 1:
        raise ValueError("on purpose")
    dist.barrier()


def die() -> None:
    if dist.get_rank() == 1:
        os._exit(1)
    dist.barrier()


def sleep() -> None:
    time.sleep(3600)


# Each rank draws pictures of its own


def by_fully_shard(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def own_pictures(wrap: Callable[[nn.Module], nn.Module]) -> tuple[Generated, Generated]:
    """A generation of each rank's own latents, on this rank alone and with weights or gradients in common."""
    model, inputs = make("wan")
    inputs["hidden_states"] = noise(*inputs["hidden_states"].shape, seed=10 + dist.get_rank())
    plan = CATPolicy(0.5, 2, num_clusters=5)
    alone, wrapped = generate(model, inputs, plan), wrap(model)
    return alone, generate(wrapped, inputs, plan)
