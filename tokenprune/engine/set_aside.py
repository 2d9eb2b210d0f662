"""Compiled code of blocks, put aside for one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class SetAside:
    """Compiled code of modules that is not to run for a while; torch's own switch would reach other threads, too."""

    def __init__(self) -> None:
        self._code: list[tuple[nn.Module, Any]] = []

    def put(self, modules: Iterable[nn.Module]) -> None:
        """Let these modules and their parts run without their compiled code."""
        for part in (part for module in modules for part in module.modules()):
            if part._compiled_call_impl is not None:
                self._code.append((part, part._compiled_call_impl))
                part._compiled_call_impl = None

    def take_back(self) -> None:
        """Give all of them their code again."""
        while self._code:
            module, compiled = self._code.pop()
            module._compiled_call_impl = compiled
