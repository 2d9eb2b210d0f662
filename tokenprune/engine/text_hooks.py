"""Text-only modules at pruned steps: they get no rows to work on and give their last output again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from tokenprune.engine.branch_cache import BranchCache, KeptOutput
from tokenprune.ops.static_memory import version_of

ATTRIBUTE = "_tokenprune_constant"


class TextLayerState:
    """What the hooks of one text-only module share; the module holds it under `ATTRIBUTE`.

    Attributes:
        path: name of the module in the model.
        kept: the last output in the coming call's guidance branch.
        keeps: whether the coming call's output is kept; it is not where no call reuses any.
        reused: whether the coming call reuses the last output.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.kept = KeptOutput()
        self.keeps = True
        self.reused = False

    def forget(self) -> None:
        """Let go of all tensors."""
        self.kept, self.reused = KeptOutput(), False


def prepare(
    states: Collection[TextLayerState], branch: BranchCache, text: Any, pruned: bool, keeps: bool = True
) -> None:
    """Tell all text-only modules whether the coming call reuses their outputs: at pruned steps with the same text.

    A text made in inference mode does not tell when it is changed in place, so that it is taken as changed.
    """
    for state in states:
        state.keeps = keeps
    if not keeps:
        return
    known = branch.text is not None and branch.text[0] is text and branch.text[1] == version_of(text)
    same = known and not text.is_inference()
    for state in states:
        state.reused = pruned and same
        state.kept = branch.constants.setdefault(state.path, KeptOutput())
    if not same and isinstance(text, Tensor):
        branch.text = (text, version_of(text))


def before_text_layer(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """Forward pre-hook: no rows while the last output is reused."""
    state: TextLayerState = getattr(module, ATTRIBUTE)
    return (args[0][:, :0], *args[1:]) if state.reused else None


def after_text_layer(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    """Forward hook: keep the output, or give the kept one."""
    state: TextLayerState = getattr(module, ATTRIBUTE)
    if state.reused:
        return state.kept.output
    if state.keeps:
        state.kept.record(output)
    return None
