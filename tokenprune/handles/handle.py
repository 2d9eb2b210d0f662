"""What `apply` gives: the pruned transformers of a model or pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any

from torch import nn

from tokenprune.compiled import forget_graphs
from tokenprune.engine.masked_module import MaskedModule
from tokenprune.engine.model_hooks import HANDLE
from tokenprune.engine.thread_label import ThreadLabel
from tokenprune.engine.timeline import Timeline
from tokenprune.handles.joint import joint_report, joint_trace
from tokenprune.handles.part import Part
from tokenprune.modulemap import ModuleMap
from tokenprune.notices import Notices
from tokenprune.reports.html import facts, in_short
from tokenprune.reports.report import Report
from tokenprune.reports.trace import Trace


class Handle:
    """A pruned model, or those of a pipeline. `remove` ends it; as a context manager it ends with the block.

    Args:
        parts: the transformers by their names in the pipeline; a model by itself is "transformer".
        timeline: counts their steps.
        window: what the coming calls' generation goes by.
        notices: takes what users should know.
        tell: says in one line what a generation will compute and keep; asked once at most, it may take seconds.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        timeline: Timeline,
        window: ThreadLabel,
        notices: Notices,
        tell: Callable[[], str],
    ) -> None:
        self._parts = dict(parts)
        self._timeline, self._window, self._notices, self._tell = timeline, window, notices, tell
        self._removed = False

    def install(self) -> None:
        """Put the hooks on, on all transformers or on none; `apply` does so.

        Raises:
            AlreadyPrunedError: one carries another handle's hooks.
        """
        self._forget_graphs()
        installed: list[Part] = []
        try:
            for part in self._parts.values():
                part.source.install()
                installed.append(part)
        except Exception:
            for part in installed:
                part.source.remove()
            raise
        for model in self.transformers.values():
            model.__dict__[HANDLE] = self

    def remove(self) -> None:
        """Give the model, or all models of the pipeline, back as they were. Calling it again does nothing."""
        if self._removed:
            return
        for part in self._parts.values():
            part.source.remove()
            if part.source.model.__dict__.get(HANDLE) is self:
                del part.source.model.__dict__[HANDLE]
        self._forget_graphs()
        self._removed = True

    def _forget_graphs(self) -> None:
        """Compiled code of before is not to go on, whether hooks come or go."""
        if any(forget_graphs(part.called) for part in self._parts.values()):
            self._notices.inform(
                "graphs",
                "compiled graphs of this process are dropped as hooks come or go; the next call compiles anew",
            )

    def reset(self) -> None:
        """Free the caches; the next call of the model, or of any of the models, starts a generation."""
        self._timeline.reset()

    def window(self, name: str) -> AbstractContextManager[None]:
        """Calls of the model within belong to a generation of this name, with steps and caches of its own.

        For windows of one large picture or video, and for generations that take turns in one thread: each step calls
        the model once for each of them, with other latents. A window keeps its caches until `reset` or `remove`.

            for time in sampler.timesteps:
                for name, part in parts.items():
                    with handle.window(name):
                        prediction = transformer(part, time, text)

        Args:
            name: any name; the empty one is that of calls outside of windows.
        """
        return self._window.set(name)

    @property
    def transformers(self) -> dict[str, nn.Module]:
        """The pruned models by their names in the pipeline; a model by itself is "transformer"."""
        return {name: part.source.model for name, part in self._parts.items()}

    @property
    def _first(self) -> Part:
        return next(iter(self._parts.values()))

    @property
    def _masked(self) -> MaskedModule | None:
        """What prunes the first model; None while its map is not found yet."""
        return self._first.masked

    @property
    def map(self) -> ModuleMap | None:
        """The first model's map, of an adapter or discovered; None before the first call of one without adapter."""
        return None if self._masked is None else self._masked.map

    @cached_property
    def told_in_advance(self) -> str:
        """In one line, what a generation at the model's own size will compute and keep; it may take seconds."""
        return self._tell()

    def report(self) -> Report:
        """What the latest generation computed, and what that cost; of a model without adapter, how that was met.

        Of a pipeline with several transformers it counts them all, and `transformers` has each one's own. Before the
        first generation its notes say what one will compute and keep.
        """
        parts = {name: part.report() for name, part in self._parts.items()}
        timeline = self._timeline
        if len(parts) == 1:
            (report,) = parts.values()
        else:
            called = {name for name, part in self._parts.items() if part.took_part_in(timeline.latest)}
            report = joint_report(parts, called, timeline.generations, timeline.peak_bytes, timeline.peak_host_bytes)
        if timeline.generations or self._removed:
            return report
        return replace(report, notes=(*report.notes, self.told_in_advance))

    @property
    def trace(self) -> Trace:
        """What the latest generation did to every token at every step that ended; also after `remove`.

        Raises:
            TraceError: `apply` was not asked to trace.
        """
        if len(self._parts) == 1:
            return self._first.trace()
        latest = self._timeline.latest
        called = [name for name, part in self._parts.items() if part.took_part_in(latest)]
        return joint_trace({name: self._parts[name].trace() for name in called or self._parts})

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"{self!r}: expected to stay with its model, got copied or pickled; copy or send the model or pipeline, "
            f"which arrives plain, and apply a policy to it there"
        )

    def __repr__(self) -> str:
        names = " and ".join(type(model).__name__ for model in self.transformers.values())
        known = [part.masked for part in self._parts.values() if part.masked is not None]
        if not known:
            return f"Handle({names}, {'removed' if self._removed else 'before its first call'})"
        settings, generations = known[0].settings, self._timeline.generations
        blocks, attentions = (sum(len(getattr(m.map, kind)) for m in known) for kind in ("blocks", "attentions"))
        return (
            f"Handle({names}, {in_short(settings.policy)}, {in_short(settings.schedule)}, {in_short(settings.reuse)}: "
            f"{blocks} blocks, {attentions} attention modules, "
            f"{'removed' if self._removed else f'{generations} generations so far'})"
        )

    def _repr_html_(self) -> str:
        names = " and ".join(type(model).__name__ for model in self.transformers.values())
        known = [part.masked for part in self._parts.values() if part.masked is not None]
        state = "removed" if self._removed else "on the model" if known else "before its first call"
        rows: list[tuple[str, object]] = [("model", names), ("state", state)]
        if known:
            settings = known[0].settings
            parts = (("policy", settings.policy), ("schedule", settings.schedule), ("reuse", settings.reuse))
            rows += [(name, in_short(part)) for name, part in parts]
            rows += [("blocks", sum(len(masked.map.blocks) for masked in known))]
            rows += [("attention modules", sum(len(masked.map.attentions) for masked in known))]
            rows += [("generations", self._timeline.generations)]
        notes = (note for part in self._parts.values() for note in part.source.notes)
        return facts("Handle", [*rows, *(("note", note) for note in notes)])
