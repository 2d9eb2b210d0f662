"""A model that is to be pruned, and whose map is found at its first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenprune.discovery.discover import discover
from tokenprune.engine.cache_conflicts import refuse_hooks
from tokenprune.engine.foreign_forwards import refuse_foreign_forwards
from tokenprune.engine.installation import Claim
from tokenprune.engine.masked_module import MaskedModule
from tokenprune.engine.model_hooks import HANDLE, before_model
from tokenprune.modulemap import ModuleMap

WAITING = "no adapter describes this model; its map will be found at its first call"


class PendingModule:
    """One hook on a model: at the first call it finds the map and installs the others.

    It stays until a second timestep shows whether timesteps rise or fall.

    Args:
        model: the transformer.
        make: makes the hooks of a map.

    Attributes:
        masked: what prunes the model, once its map is found.
        notes: how discovery stands, and what it could not know.
    """

    def __init__(self, model: nn.Module, make: Callable[[ModuleMap], MaskedModule]) -> None:
        self.model = model
        self.masked: MaskedModule | None = None
        self.notes: tuple[str, ...] = (WAITING,)
        self._make = make
        self._claim = Claim(model)
        self._first_time: float | None = None
        self._hook: RemovableHandle | None = None

    def install(self) -> None:
        """Register the hook.

        Raises:
            AlreadyPrunedError: the model carries hooks of another handle.
            HookConflictError: it is divided over devices, or carries other hooks that mix tokens.
        """
        refuse_hooks(self.model)
        self._claim.take(self)
        self._hook = self.model.register_forward_pre_hook(self._first_call, with_kwargs=True)

    def remove(self) -> None:
        """Take all hooks off; the model is as it was."""
        self._unhook()
        self._claim.release()
        if self.masked is not None:
            self.masked.remove()

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _first_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        refuse_hooks(model)
        refuse_foreign_forwards(model)
        self.remove()  # what is watched is the plain model
        try:
            found = discover(model, args, kwargs)
            masked = self._make(found.map)
        except Exception as error:
            self.notes = (str(error),)
            model.__dict__.pop(HANDLE, None)  # nothing prunes it any more
            raise
        self._hook = model.register_forward_pre_hook(self._later_call, with_kwargs=True)
        masked.install()
        self.masked, self.notes = masked, found.notes
        self._find_direction(masked, args, kwargs)
        return before_model(model, args, kwargs)  # torch took its list of hooks before there was this one

    def _later_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.masked is not None:
            self._find_direction(self.masked, args, kwargs)

    def _find_direction(self, masked: MaskedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = masked.signature.bind(*args, **kwargs).arguments.get(masked.map.time)
        if value is None:
            return
        time = float(value.detach().flatten().max()) if isinstance(value, Tensor) else float(value)
        if self._first_time is None or time == self._first_time:
            self._first_time = time
            return
        self._unhook()
        if time > self._first_time and not masked.map.time_rises:
            masked.restart_with_rising_time()
            self.notes = (*self.notes, f"{masked.map.time!r} rises as the noise falls")
