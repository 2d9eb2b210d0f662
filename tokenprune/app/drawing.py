"""Drawing what the page asks for: first by the plain model, then pruned."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tokenprune
from tokenprune.app.code import code_of
from tokenprune.app.requests import Request
from tokenprune.app.steps import StepWatch
from tokenprune.bench.commands import check_known
from tokenprune.bench.measuring.fidelity import psnr
from tokenprune.bench.subjects.pipelines import Subject
from tokenprune.errors import ConfigurationError
from tokenprune.notices import LOGGER
from tokenprune.reports.report import Report

PLAIN, PRUNED = "plain", "pruned"
"""Names of the pictures."""

Tell = Callable[[str, int], None]
"""Is told which picture is drawn, and how many of its steps have ended."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """One picture.

    Attributes:
        values: [height, width, 3], 0 to 1.
        seconds: of the whole pipeline, text and VAE included, once.
    """

    values: NDArray[np.float32]
    seconds: float

    @property
    def picture(self) -> NDArray[np.uint8]:
        """In bytes, rounded as diffusers does."""
        rounded: NDArray[np.uint8] = (self.values * 255).round().astype(np.uint8)
        return rounded


@dataclass(frozen=True, eq=False)
class Outcome:
    """What there is of a request so far.

    Attributes:
        plain: the plain model's picture.
        code: a program that does the same.
        pruned: the pruned picture; None, like all that follows, while it is still to be drawn.
        report: what it computed.
        page: every step of it, as a file in HTML.
        notes: what the package told, and what could not be shown.
    """

    plain: Drawn
    code: str
    pruned: Drawn | None = None
    report: Report | None = None
    page: Path | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def psnr(self) -> float | None:
        """Of the pruned picture to the plain one in dB; None where they are identical, or one is missing."""
        return None if self.pruned is None else psnr(self.pruned.values, self.plain.values)


class Studio:
    """Pipelines to draw with, of which one at a time is in memory. It draws one request at a time.

    Args:
        subjects: pipelines by the names to call them by.

    Raises:
        ConfigurationError: a pipeline has random weights, so that its pictures would show nothing.
    """

    def __init__(self, subjects: Mapping[str, Subject]) -> None:
        for name, subject in subjects.items():
            if not subject.learnt:
                raise ConfigurationError(f"model: expected weights that were trained, got {name}, whose are random")
        self.subjects = dict(subjects)
        self._loaded: tuple[str, Any] | None = None
        self._folder = TemporaryDirectory(prefix="tokenprune-app-")

    def close(self) -> None:
        """Delete the pages that were written."""
        self._folder.cleanup()

    def draw(self, request: Request, tell: Tell = lambda *_: None) -> Iterator[Outcome]:
        """Draw the plain picture, then the pruned one; what there is is given after each of them.

        Args:
            request: what to draw.
            tell: is told of the steps.

        Raises:
            ConfigurationError: no such model, or its pipeline gives no pictures.
            TokenPruneError: what cannot be loaded or pruned, with the reason.
            ValueError: a number out of its range.
        """
        check_known("model", [request.model], self.subjects)
        subject = self.subjects[request.model]
        pipe = self._pipe(request)
        wanted = request.pruning.make(pipe, request.value, request.full_steps)
        watch = StepWatch(pipe, partial(tell, PLAIN), previewed=False)
        tell(PLAIN, 0)
        outcome = Outcome(_call(pipe, subject, request, watch), code_of(subject, request))
        yield outcome
        watch = StepWatch(pipe, partial(tell, PRUNED), previewed=True)
        tell(PRUNED, 0)
        with _warnings() as told, tokenprune.apply(pipe, wanted, trace=True) as handle:
            pruned = _call(pipe, subject, request, watch)
            report, trace = handle.report(), handle.trace
        path = Path(self._folder.name) / "run.html"
        trace.save_html(
            path,
            picture=pruned.picture,
            dense=outcome.plain.picture,
            previews=watch.pictures,
            name=request.method,
            title=request.prompt or "no prompt",
        )
        yield replace(outcome, pruned=pruned, report=report, page=path, notes=(*told, *watch.notes))

    def _pipe(self, request: Request) -> Any:
        """The request's pipeline, which has drawn before: the first picture of a process takes longer."""
        if self._loaded is None or self._loaded[0] != request.model:
            self._loaded = None  # frees what was loaded before, first
            subject = self.subjects[request.model]
            pipe = subject.load()
            _call(pipe, subject, replace(request, steps=2), StepWatch(pipe, lambda _: None, previewed=False))
            self._loaded = request.model, pipe
        return self._loaded[1]


def _call(pipe: Any, subject: Subject, request: Request, watch: StepWatch) -> Drawn:
    scale = subject.scale(request.guidance_scale)
    start = time.perf_counter()
    result = pipe(
        request.prompt,
        num_inference_steps=request.steps,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
        **({} if scale is None else {"guidance_scale": scale}),
        **watch.arguments,
        **subject.arguments,
    )
    seconds = time.perf_counter() - start - watch.seconds
    images = getattr(result, "images", None)
    if images is None:
        raise ConfigurationError(
            f"model: expected a pipeline that gives images, got {type(result).__name__} from {subject.name}"
        )
    return Drawn(np.asarray(images[0], dtype=np.float32), seconds)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the package warns of for as long as the context lasts."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    listener = Listener(logging.WARNING)
    LOGGER.addHandler(listener)
    try:
        yield found
    finally:
        LOGGER.removeHandler(listener)
