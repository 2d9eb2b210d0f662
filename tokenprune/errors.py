"""The errors a user can meet; each message says where, what was expected, what came and what to do."""

from __future__ import annotations


class TokenPruneError(Exception):
    """Base of all errors raised by tokenprune."""


class UnknownModelError(TokenPruneError):
    """No adapter describes this model."""


class UnsupportedModelError(TokenPruneError):
    """The model is known, and token pruning cannot work with it."""


class AlreadyPrunedError(TokenPruneError):
    """The model already carries tokenprune's hooks."""


class ConcurrentUseError(TokenPruneError):
    """Two threads use one pruned model at the same time."""


class HookConflictError(TokenPruneError):
    """The model carries something of another package that pruning cannot work beside."""


class CacheConflictError(HookConflictError):
    """The model carries another cache, which leaves out work that pruning relies on."""


class ModuleMapError(TokenPruneError):
    """A module map names something that the model does not have."""


class SelectionError(TokenPruneError):
    """A selection is malformed: shape, dtype, order, duplicates or range."""


class AttentionError(TokenPruneError):
    """An attention module computed its attention in a way the engine cannot serve."""


class TraceError(TokenPruneError):
    """A trace was asked of a handle that records none."""


class UnsupportedCallError(TokenPruneError):
    """The model was called in a way that pruning does not cover (gradients, an unreadable argument)."""


class CacheLimitError(TokenPruneError):
    """The caches would hold more memory than `apply` was told to allow."""


class ConfigurationError(TokenPruneError):
    """A plan, a file of settings or a command's option says something that cannot be meant."""


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
