"""Keeping libraries off the screen."""

from __future__ import annotations


def quiet() -> None:
    """No loading bars, and no notes about optional parts, from diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
