"""Where the text of joint sequences cannot be left out, and why."""

from __future__ import annotations

from torch import nn

from tokenprune.engine.call_arguments import CallArguments
from tokenprune.engine.shards import Shards
from tokenprune.errors import UnsupportedCallError, UnsupportedModelError
from tokenprune.modulemap import ModuleMap
from tokenprune.schedule import Schedule


def refuse_model(model: nn.Module, module_map: ModuleMap, schedule: Schedule) -> None:
    """Raise UnsupportedModelError if a schedule leaves out text tokens that the model must have."""
    if not schedule.holds_text or module_map.may_leave_out_text:
        return
    if any("text" in site.layout for site in module_map.attentions):
        reason = "its module map names no arguments with a row for each text token (layout 'text')"
    else:
        reason = "its image tokens share no sequence with text tokens, so that there are none to leave out"
    raise UnsupportedModelError(
        f"{type(model).__name__}: {schedule!r} cannot be served: {reason}. Take the schedule within it"
    )


def refuse_call(model: nn.Module, given: CallArguments, shards: Shards) -> None:
    """Raise UnsupportedCallError if a call that may leave out text has sequences in which that cannot be done.

    That is where images begin at places of their own, or where tokens are divided over ranks.
    """
    if shards.degree > 1:
        raise UnsupportedCallError(
            f"{type(model).__name__}: steps cannot leave out the text tokens (HeldText) where sequences are "
            f"divided over {shards.degree} ranks, as the one that is left cannot be. Take the schedule within HeldText"
        )
    if given.image_starts is not None:
        raise UnsupportedCallError(
            f"{type(model).__name__}: steps cannot leave out the text tokens (HeldText) where images begin at places "
            f"of their own in their sequences (texts of several lengths, or other tokens beside them). Take the "
            f"schedule within HeldText"
        )
