"""A run: what is missing in a folder, shared among the processes that were started together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenprune.bench.measuring.processes import on_main, state, together
from tokenprune.generate.folder import Folder
from tokenprune.generate.jobs import Job, batches_of, digest
from tokenprune.generate.painter import Outcome, Painter, Request


class Progress(Protocol):
    """Is told how far a process is; this one says nothing."""

    def expect(self, total: int) -> None:
        """There will be so many batches."""

    def begin(self, name: str) -> None:
        """A batch begins, so that the one before is finished."""

    def fail(self, reason: str) -> None:
        """The batch that began last failed."""


class _Silent(Progress):
    def expect(self, total: int) -> None: ...

    def begin(self, name: str) -> None: ...

    def fail(self, reason: str) -> None: ...


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        prompts: all of them.
        drawn: pictures that this run drew.
        failed: the error of each prompt that failed, by name.
        seconds: of the run, loading included.
    """

    prompts: int
    drawn: int
    failed: dict[str, str]
    seconds: float

    @property
    def before(self) -> int:
        """Pictures that were there before."""
        return self.prompts - self.drawn - len(self.failed)

    @classmethod
    def of(cls, jobs: Sequence[Job], outcomes: Iterable[Outcome], start: float) -> Summary:
        """What became of the jobs since the clock's `start`."""
        found = list(outcomes)
        failed = {outcome.name: outcome.error for outcome in found if outcome.error}
        return cls(len(jobs), len(found) - len(failed), failed, time.perf_counter() - start)


def prepare(request: Request, jobs: Sequence[Job], folder: Folder) -> list[int]:
    """Claim the folder; the places of the batches that are to be drawn.

    Raises:
        ConfigurationError: see `Folder.claim`.
    """
    folder.claim({**request.settings, "prompts": len(jobs), "prompts_digest": digest(jobs)}, jobs)
    return folder.missing(batches_of(jobs, request.batch))


def run(
    request: Request,
    jobs: Sequence[Job],
    folder: Folder,
    progress: Progress | None = None,
) -> Summary:
    """Draw what a folder does not hold yet. Under `accelerate launch` each process draws a part; all get the summary.

    Args:
        request: how to draw.
        jobs: what, all of it.
        folder: where to.
        progress: is told of this process's batches.

    Raises:
        ConfigurationError: the folder holds other pictures, or cannot be written to.
        TokenPruneError: the pipeline cannot be loaded or pruned, or one prompt after the other fails.
    """
    start = time.perf_counter()
    batches = batches_of(jobs, request.batch)
    missing = on_main(lambda: prepare(request, jobs, folder))
    number, processes = state().process_index, state().num_processes
    mine = [batches[place] for place in missing[number::processes]]

    def draw() -> list[Outcome]:
        return _draw(Painter(request, folder, number), mine, progress or _Silent()) if mine else []

    return Summary.of(jobs, [outcome for part in together(draw) for outcome in part], start)


def _draw(painter: Painter, batches: Sequence[Sequence[Job]], progress: Progress) -> list[Outcome]:
    outcomes: list[Outcome] = []
    progress.expect(len(batches))
    for batch in batches:
        progress.begin(label(batch))
        drawn = painter.draw(batch)
        if errors := [outcome for outcome in drawn if outcome.error]:
            named = (f"{outcome.name}: {outcome.error}" for outcome in errors)
            progress.fail(errors[0].error if len(batch) == 1 else "; ".join(named))
        outcomes += drawn
    return outcomes


def label(batch: Sequence[Job]) -> str:
    """What a batch is called on the screen."""
    return batch[0].name if len(batch) == 1 else f"{batch[0].name} to {batch[-1].name}"
