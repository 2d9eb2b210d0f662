"""What goes with calls of compiled modules: before and after each, outside of the compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Escorts:
    """Stand before the compiled code of modules for a while; torch runs the hooks of such modules within it."""

    def __init__(self) -> None:
        self._code: list[tuple[nn.Module, Any, Any]] = []

    def put(self, module: nn.Module, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Do something before and after each call of a module that has compiled code."""
        compiled: Any = module._compiled_call_impl

        def escorted(*args: Any, **kwargs: Any) -> Any:
            before()
            output = compiled(*args, **kwargs)
            after()
            return output

        self._code.append((module, compiled, escorted))
        module._compiled_call_impl = escorted

    def take_back(self) -> None:
        """Leave all of them, but for code that somebody replaced since."""
        while self._code:
            module, compiled, escorted = self._code.pop()
            if module._compiled_call_impl is escorted:
                module._compiled_call_impl = compiled
