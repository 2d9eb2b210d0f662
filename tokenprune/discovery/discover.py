"""Finding the module map of a model that nobody wrote an adapter for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.discovery import arguments, parts, verify
from tokenprune.discovery.exits import find_exit
from tokenprune.discovery.parts import Pair, Sizes, Undiscovered
from tokenprune.discovery.texts import find_constants, find_noise_channels
from tokenprune.discovery.tokengrid import GridSearch
from tokenprune.discovery.watch import Event, Watched, copied, leaves, noised, watch
from tokenprune.engine.copies import shapes_of
from tokenprune.engine.on_meta import fault_on_meta
from tokenprune.engine.oracle import far_times, tensors_of
from tokenprune.errors import UnknownModelError, one_line
from tokenprune.modulemap import BlockSite, ExitSite, ModuleMap
from tokenprune.targets import TIMES


@dataclass(frozen=True)
class Discovery:
    """What was found of a model.

    Attributes:
        map: its map, checked.
        notes: what could not be known, and what was taken for it.
    """

    map: ModuleMap
    notes: tuple[str, ...]


def discover(model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Discovery:
    """Watch a model at some calls, write its map, and check that a pruned call gives what a full one does.

    The model runs about ten times on copies of the arguments, some of them with noise for latents, some at another
    noise level. It is left as it was, the state of the random number generators too.

    Args:
        model: the transformer, with its weights: zeros show nothing.
        args: positional arguments of a usual call.
        kwargs: its named arguments.

    Raises:
        UnknownModelError: a part is missing, the map does not stand the check, or the model raised an error on the
            way; the message says what was found.
    """
    found: list[str] = []
    devices = [tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"]
    given = dict(kwargs or {})
    with (
        torch.no_grad(),
        torch.random.fork_rng(sorted({device.index or 0 for device in devices})),
        _eagerly(model),
    ):
        try:
            return _Search(model, _named(model, args, given), found).run()
        except Undiscovered as error:
            raise _unknown(model, f"Missing: {error}", found) from error
        except Exception as error:  # whatever the model's own code raises
            raise _unknown(model, _reason(model, args, given, error), found) from error


def _unknown(model: nn.Module, reason: str, found: list[str]) -> UnknownModelError:
    training = " (in training mode; model.eval() comes first)" if model.training else ""
    return UnknownModelError(
        f"{type(model).__name__}: no adapter describes this model, and it could not be discovered. {reason}. "
        f"Found: {'; '.join(found) or 'nothing yet'}{training}. Pass an adapter, apply(..., adapter=function): see "
        f"docs/write-an-adapter.md and docs/discovery.md"
    )


def _reason(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], error: Exception) -> str:
    """Why a watched call raised: the model does by itself, or only when it is watched or given other inputs."""
    said = f"{type(error).__name__}: {one_line(error)}"
    try:
        model(*copied({"": list(args)})[""], **copied(kwargs))
    except Exception as own:
        own_words = f"{type(own).__name__}: {one_line(own)}"
        return f"The model itself raises, without any of this, with these arguments: {own_words}. Correct the call"
    return (
        f"It serves these arguments, but raised when its modules were watched, or latents, timestep or text were "
        f"others: {said}"
    )


def _named(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    parameters = inspect.signature(model.forward).parameters
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    nameless = [name for name in bound if parameters[name].kind in (_BY_POSITION, _ANY_POSITION)]
    if nameless:
        raise Undiscovered(
            f"names of all arguments: forward takes {', '.join(nameless)} by position alone, and a map goes by names"
        )
    return arguments.by_name(parameters, bound)


_BY_POSITION, _ANY_POSITION = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL


def _eagerly(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run eagerly, so that hooks see what is inside them; without any, there is nothing to do."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


class _Search:
    """One search; `found` says how far it came."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any], found: list[str]) -> None:
        self.model, self.inputs, self.found = model, inputs, found
        self.notes: list[str] = []

    def run(self) -> Discovery:
        base = watch(self.model, self.inputs, mixing=False)
        latents = self._latents(base.output)
        time = arguments.find_time(self.inputs, latents)
        if time is None:
            raise Undiscovered(
                f"the timestep: none of the arguments {', '.join(self.inputs)} is called "
                f"{', '.join(TIMES[:4])} or the like, or is the only number for each image"
            )
        self.found += [f"latents {latents!r} {list(self.inputs[latents].shape)}", f"timestep {time!r}"]
        draft, doubts = self._draft(base.events, latents, time)
        plain = watch(self.model, self.inputs, keep=draft.exit_site.path)
        channels = find_noise_channels(self.inputs, draft, plain)
        if channels is not None:
            draft = replace(draft, noise_channels=channels[0], output_channels=channels[1])
        examples = [verify.Example(self.inputs, plain.output, _at(time, self.inputs[time]))]
        for far in far_times(self.inputs[time]):
            elsewhere, when = {**self.inputs, latents: noised(self.inputs[latents]), time: far}, _at(time, far)
            later = self._later(elsewhere, when)
            if later is None:
                continue
            pairs = parts.pairs_of(plain.events, later.events, f"another timestep ({when})")
            if len(examples) == 1:
                text, constants = find_constants(self.model, self.inputs, draft, plain.events, pairs)
                draft = replace(draft, text=text, constants=constants)
            examples.append(verify.Example(elsewhere, later.output, when))
        found = self._checked(draft, [*doubts, verify.without_constants], examples)
        if fault_on_meta(self.model, found, shapes_of(((), self.inputs)), found.least_tokens) is not None:
            found = replace(found, reads_values=True)
        return Discovery(found, tuple(self.notes))

    def _draft(self, base: list[Event], latents: str, time: str) -> tuple[ModuleMap, list[verify.Change]]:
        """A map without text and channels, and what else may be meant."""
        others = watch(self.model, {**self.inputs, latents: noised(self.inputs[latents])}, mixing=False)
        moved = parts.pairs_of(base, others.events)
        sites, sizes = parts.find_attentions(moved, len(self.inputs[latents]))
        lengths = ", ".join(map(str, sorted(sizes.joint)))
        self.found.append(
            f"{len(sites)} attention modules with {sizes.tokens} image tokens"
            + (f" (in sequences of {lengths})" if lengths else "")
        )
        blocks = parts.find_blocks(self.model, moved, sites, sizes)
        self.found.append(f"{len(blocks)} blocks from {blocks[0].path} to {blocks[-1].path}")
        grid = GridSearch(self.model, self.inputs, latents, base, blocks[0], sizes)
        exit_site = find_exit(grid.nudged, grid.nudged_tokens, moved, blocks, sizes)
        self.found.append(f"exit {exit_site.path}")
        self.notes += [grid.note] if grid.note else []
        self.notes.append(
            f"the noise is taken to fall as {time!r} falls; if the second call's rises, that is turned round"
        )
        behind, through = self._token_inputs(base, latents, blocks[0], sizes)
        draft = ModuleMap(
            blocks=_plain_blocks(blocks),
            attentions=sites,
            exit=exit_site.path if exit_site == ExitSite(exit_site.path) else exit_site,
            grid=grid.reader,
            hidden=blocks[0].tokens[0].name,
            latents=latents,
            time=time,
            text=None,
            token_inputs=behind,
            references=grid.references,
            shared=any(argument.batch is None for site in blocks for argument in site.tokens),
        )
        constant = sorted({argument.name for pair in moved for argument in _constant(pair, blocks, sizes)})
        doubts = [verify.without(name) for name in constant]
        doubts += [verify.with_inputs(*through)] if through else []
        return draft, [*doubts, verify.expanded, verify.with_scale]

    def _latents(self, output: Any) -> str:
        if not tensors_of(output):
            raise Undiscovered(f"an output with tensors, got {type(output).__name__}")
        candidates = arguments.candidates_for_latents(self.inputs, output)
        if not candidates:
            shapes = {name: list(v.shape) for name, v in self.inputs.items() if isinstance(v, Tensor)}
            raise Undiscovered(
                f"the latents: none of the arguments {shapes} is a tensor of the output's shape "
                f"{list(tensors_of(output)[0].shape)}, number of channels aside"
            )
        return candidates[0]

    def _later(self, inputs: dict[str, Any], when: str) -> Watched | None:
        """A call at another noise level; None, and a note, for a model that does not know the timestep."""
        try:
            return watch(self.model, inputs)
        except Exception as error:  # whatever the model's own code raises
            self.notes.append(f"not checked {when}: there the model raises {type(error).__name__}: {one_line(error)}")
            return None

    def _checked(self, draft: ModuleMap, doubts: list[verify.Change], examples: list[verify.Example]) -> ModuleMap:
        faults = []
        for variant in verify.variants(draft, doubts):
            try:
                return verify.checked(self.model, variant, examples)
            except verify.Fault as fault:
                faults.append(fault)
                if fault.elsewhere:  # other readings of what was seen would not help
                    break
        raise Undiscovered(f"a map that stands the check: {faults[-1 if faults[-1].elsewhere else 0]}") from faults[-1]

    def _token_inputs(
        self, base: list[Event], latents: str, entry: BlockSite, sizes: Sizes
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Further arguments of the model with N rows: those used behind the entry, and those that reach the entry."""
        behind: list[str] = []
        through: list[str] = []
        for name, value in self.inputs.items():
            found = [leaf for _, leaf in leaves(value)]
            rows = [leaf for leaf in found if leaf.ndim > 1 and leaf.shape[1] == sizes.tokens]
            if name == latents or not rows or len(rows) < len(found):
                continue
            other = watch(self.model, {**self.inputs, name: noised(value)}, mixing=False)
            reaching = (
                any(any(changed) for _, changed in parts.changes(pair).values())
                for pair in parts.pairs_of(base, other.events)
                if pair[0].kind == "call" and pair[0].path == entry.path
            )
            (through if any(reaching) else behind).append(name)
        return tuple(behind), tuple(through)


def _at(name: str, time: Any) -> str:
    """A timestep in words."""
    return f"at {name} = {float(time.max() if isinstance(time, Tensor) else time):g}"


def _plain_blocks(blocks: tuple[BlockSite, ...]) -> tuple[str | BlockSite, ...]:
    """Paths alone where all blocks gather one argument [B, N, C] of the same name."""
    hidden = blocks[0].tokens[:1]
    plain = all(site.tokens == hidden for site in blocks) and hidden[0] == replace(
        hidden[0], layout="image", dim=1, batch=0
    )
    return tuple(site.path for site in blocks) if plain else blocks


def _constant(pair: Pair, blocks: tuple[BlockSite, ...], sizes: Sizes) -> list[Any]:
    """The arguments of a block that have rows for tokens, and do not change with the latents."""
    site = next((site for site in blocks if site.path == pair[0].path and pair[0].kind == "call"), None)
    if site is None:
        return []
    moving = {place[0] for place, (_, changed) in parts.changes(pair).items() if any(changed)}
    return [argument for argument in site.tokens if argument.name not in moving]
