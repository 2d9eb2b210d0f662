"""Models that torch.compile works on."""

from __future__ import annotations

import torch
from torch import nn


def original_of(module: nn.Module) -> nn.Module:
    """The module itself, out of what `torch.compile(module)` wrapped it in."""
    found = getattr(module, "_orig_mod", module)
    return found if isinstance(found, nn.Module) else module


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of the module or of a part of it run compiled code."""
    return any(part._compiled_call_impl is not None or is_wrapped(part) for part in module.modules())


def is_wrapped(part: nn.Module) -> bool:
    """Whether the module is one that `torch.compile` made of another one, or has a forward that it made."""
    return original_of(part) is not part or hasattr(part.forward, "_torchdynamo_orig_callable")


def forget_graphs(module: nn.Module) -> bool:
    """Make torch compile anew if the module is compiled, when hooks come or go; returns whether it is.

    Torch does not check the hooks of modules inside a graph (`skip_nnmodule_hook_guards`), so graphs made before they
    came would go on without them; and graphs made with them count towards torch's limit for the same code. All graphs
    of the process are dropped, as there is no way to find those of one model.
    """
    compiled = is_compiled(module)
    if compiled:
        torch.compiler.reset()
    return compiled
