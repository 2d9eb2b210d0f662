"""Keys and values in host memory, but for those of the attention modules that run now and next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import eq
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tokenprune.compiled import is_wrapped
from tokenprune.engine.attention_state import AttentionState
from tokenprune.engine.branch_cache import BranchCache
from tokenprune.engine.copy_streams import Copies, copies_of
from tokenprune.engine.escorts import Escorts
from tokenprune.errors import HookConflictError
from tokenprune.reuse.key_value import Home, KeyValueBuffer

AHEAD = 2
"""Attention modules whose keys and values are on the device at a time: the one that runs, and the next."""

Form: TypeAlias = tuple[Any, ...]
"""Device, shapes and types of the memory of a module's buffers: modules of one form share slots."""


def refuse_compiled(model: nn.Module, name: str) -> None:
    """Raise if a model is compiled as a whole: within the compiled code nothing can be fetched from host memory.

    Blocks that are compiled by themselves (`block.compile()`) pass; it is fetched before and after them.

    Args:
        model: the model.
        name: what error messages call it.

    Raises:
        HookConflictError: it is.
    """
    if model._compiled_call_impl is not None or any(map(is_wrapped, model.modules())):
        raise HookConflictError(
            f"{name}: apply(..., cache_device=...) expected compiled blocks or none, got a model or parts of it in "
            f"torch.compile(); keys and values come from host memory between attention modules, and a graph has no "
            f"place for that. Compile each block by itself with block.compile(), or leave cache_device out"
        )


@dataclass
class Slot:
    """Memory of the device for the buffers of one module at a time.

    Attributes:
        memory: one tuple for each buffer.
        mark: behind all copies up to the last one into it.
        path: of the module whose keys and values it holds, or will; None: of none.
    """

    memory: tuple[tuple[Tensor, ...], ...]
    mark: torch.cuda.Event | None = None
    path: str | None = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.memory[0][0].device


@dataclass(frozen=True)
class Loan:
    """What a running module was given.

    Attributes:
        slot: memory of the device; None: nothing, as it keeps none yet.
        buffers: the ones that have it.
    """

    slot: Slot | None = None
    buffers: tuple[KeyValueBuffer, ...] = ()


class HostCaches:
    """Brings the buffers of each attention module to the device before it runs, and takes them back behind it.

    While a module computes, those of the next one are on their way. Which is next is known from the guidance branch's
    last call: the modules ran in this order. One that comes out of order waits for its own. What a call does not read
    (held keys at a full one) is not brought, and where it is written goes back. The first call makes the memory: each
    module's on the device, from where it is taken to the host before the next one makes its own.

    The attention modules within a compiled block go together: theirs is brought before the block, and taken behind it.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._escorts = model, Escorts()
        self._copies: dict[torch.device, Copies] = {}
        self._slots: dict[Form, list[Slot]] = {}
        self._units: dict[str, list[AttentionState]] = {}
        self._running: dict[str, Loan] = {}
        self._order: list[str] = []
        self._next = 0
        self._branch: BranchCache | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that modules share."""
        slots = (slot for each in self._slots.values() for slot in each)
        return sum(tensor.nbytes for slot in slots for memory in slot.memory for tensor in memory)

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes that were copied to the device, and back, in all."""
        copies = self._copies.values()
        return sum(each.fetched for each in copies), sum(each.returned for each in copies)

    def begin(self, states: Iterable[AttentionState], branch: BranchCache) -> None:
        """A call of the model begins, whose attention modules know their plans."""
        self.end()  # of one that an exception stopped, too
        for state in states:
            compiled = self._compiled_around(state.site.path)
            state.carrier = self if compiled is None else None
            self._units.setdefault(compiled or state.site.path, []).append(state)
        for unit, members in self._units.items():
            if members[0].carrier is None:
                code = self._model.get_submodule(unit)
                self._escorts.put(code, partial(self.arrive, unit), partial(self.leave, unit))
        within = {state.site.path: unit for unit, members in self._units.items() for state in members}
        self._order = [unit for unit, _ in groupby(within[path] for path in branch.order if path in within)]
        self._branch, self._next = branch, 0
        branch.order = []
        self._running.clear()
        self._fetch_ahead()

    def arrive(self, path: str) -> None:
        """An attention module is about to run: its buffers get memory of the device, with what they hold if it counts.

        Args:
            path: of the module, or of the compiled one around it.
        """
        if self._branch is None:
            return
        self._branch.order += [state.site.path for state in self._units.get(path, ())]
        if path in self._order[self._next :]:
            self._next = self._order.index(path, self._next) + 1
        slot, buffers = self._held(path) or self._fetch(path), self._at_home(path)
        self._running[path] = Loan(slot, tuple(buffers))
        if slot is None:
            return
        self._copies_of(slot.device).hold_computation(slot.mark)
        for buffer, memory in zip(buffers, slot.memory, strict=True):
            buffer.place(memory)

    def leave(self, path: str) -> None:
        """An attention module is done: what its buffers hold goes to host memory, and the next module's is fetched."""
        if path not in self._running:
            return
        loan = self._running.pop(path)
        for buffer in dict.fromkeys((*self._buffers(path), *loan.buffers)):
            memory = buffer.memory
            if loan.slot is not None and any(_same(memory, lent) for lent in loan.slot.memory):
                self._give_back(buffer)
            elif memory and (buffer.home is None or not _same(memory, buffer.home.memory)):
                self._settle(buffer)
        if loan.slot is not None:
            loan.slot.path = None
        self._fetch_ahead()

    def end(self) -> None:
        """The call is over."""
        self._escorts.take_back()
        self._branch = None
        self._units.clear()
        for slot in (slot for each in self._slots.values() for slot in each):
            slot.path = None

    def forget(self) -> None:
        """Let go of the device's memory."""
        self.end()
        self._running.clear()
        for copies in self._copies.values():
            copies.hold_computation(copies.mark())  # the memory may be given to what is computed next
        self._slots.clear()

    def _give_back(self, buffer: KeyValueBuffer) -> None:
        """Copy a buffer's memory to its home, where it rests."""
        home, memory = buffer.home, buffer.memory
        if home is None:
            return
        self._copies_of(home.device).give_back(zip(home.memory, memory, strict=True))
        home.empty = False
        buffer.place(home.memory)

    def _settle(self, buffer: KeyValueBuffer) -> None:
        """Give a buffer that has new memory a home, and wait until it got there: the memory is not needed any more."""
        device = buffer.memory[0].device
        copies = self._copies_of(device)
        with torch.inference_mode(False):  # what it makes cannot be written outside of it
            buffer.home = Home(tuple(map(copies.host_memory, buffer.memory)), device)
        self._give_back(buffer)
        copies.finish()

    def _fetch_ahead(self) -> None:
        """Send for what the next modules need."""
        coming = self._order[self._next : self._next + AHEAD]
        for slot in (slot for each in self._slots.values() for slot in each):
            if slot.path not in coming and slot.path not in self._running:
                slot.path = None
        for path in coming:
            if path not in self._running and self._held(path) is None:
                self._fetch(path)

    def _fetch(self, path: str) -> Slot | None:
        """A slot for the buffers of a module, and what they hold on the way there, if the call reads it."""
        buffers = self._at_home(path)
        if not buffers:
            return None
        homes = [buffer.home for buffer in buffers if buffer.home is not None]
        slot = self._free_slot(homes)
        slot.path, copies = path, self._copies_of(homes[0].device)
        pruned = any(state.plan is not None and state.plan.pruned for state in self._units[path])
        for buffer, home, memory in zip(buffers, homes, slot.memory, strict=True):
            if not (buffer.reads_recorded or pruned):
                continue
            if home.empty:
                copies.clear(memory)
            else:
                copies.fetch(zip(memory, home.memory, strict=True))
        slot.mark = copies.mark()
        return slot

    def _free_slot(self, homes: list[Home]) -> Slot:
        """A slot of the form of these homes that no running module has."""
        device = homes[0].device
        form = device, *(tuple((tensor.shape, tensor.dtype) for tensor in home.memory) for home in homes)
        slots = self._slots.setdefault(form, [])
        free = [slot for slot in slots if slot.path is None]
        if not free and len(slots) >= AHEAD:
            free = [slot for slot in slots if slot.path not in self._running]
        if free:
            return free[-1]
        with torch.inference_mode(False):  # what it makes cannot be written outside of it
            memory = tuple(tuple(torch.empty_like(each, device=device) for each in home.memory) for home in homes)
        self._copies_of(device).wait_for_computation()  # the memory may be in use yet
        slots.append(Slot(memory))
        return slots[-1]

    def _held(self, path: str) -> Slot | None:
        """The slot that holds a module's keys and values, or will."""
        return next((slot for each in self._slots.values() for slot in each if slot.path == path), None)

    def _buffers(self, path: str) -> list[KeyValueBuffer]:
        """The buffers that a module has in the call."""
        plans = (state.plan for state in self._units.get(path, ()))
        return [kept.buffer for plan in plans if plan is not None for kept in plan.keys]

    def _at_home(self, path: str) -> list[KeyValueBuffer]:
        return [buffer for buffer in self._buffers(path) if buffer.home is not None]

    def _compiled_around(self, path: str) -> str | None:
        """The outermost part of the model with compiled code around an attention module, or itself, if there is one."""
        names = path.split(".")
        parts = (".".join(names[: count + 1]) for count in range(len(names)))
        return next((part for part in parts if self._model.get_submodule(part)._compiled_call_impl is not None), None)

    def _copies_of(self, device: torch.device) -> Copies:
        if device not in self._copies:
            self._copies[device] = copies_of(device)
        return self._copies[device]


def _same(memory: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether two tuples of tensors are the same memory; compiled code may give other objects for it."""
    storages = ([tensor.untyped_storage()._cdata for tensor in each] for each in (memory, other))
    return len(memory) == len(other) and all(map(eq, *storages))
