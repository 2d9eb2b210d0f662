"""Drawing jobs with a pipeline into a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenprune
from tokenprune.bench.measuring.fidelity import in_bytes
from tokenprune.bench.measuring.measure import call
from tokenprune.bench.measuring.run import error_line, stamp, versions
from tokenprune.bench.subjects.pipelines import Subject, find_subject
from tokenprune.embedded.load import quiet
from tokenprune.errors import TokenPruneError
from tokenprune.generate.folder import Folder
from tokenprune.generate.jobs import Job
from tokenprune.plans.files import mapping_of
from tokenprune.plans.plan import Plan
from tokenprune.reports.report import Report

FAILURES_IN_A_ROW = 10
"""After so many it is not the prompts that fail, and drawing ends."""


class FailuresError(TokenPruneError, RuntimeError):
    """One prompt after the other failed."""


@dataclass(frozen=True)
class Request:
    """How all pictures of a run are drawn.

    Attributes:
        model: an embedded pipeline's name, a directory or hub name, see `find_subject`.
        steps: steps of the sampler.
        guidance_scale: classifier-free guidance; None leaves it to the pipeline.
        plan: how to prune; None draws with the plain model.
        batch: pictures drawn at a time.
        dtype, device, variant, arguments: as `find_subject` takes them.
    """

    model: str
    steps: int
    guidance_scale: float | None = None
    plan: Plan | None = None
    batch: int = 1
    dtype: str = "float32"
    device: str | None = None
    variant: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> Subject:
        """The pipeline that is meant; its weights are not read yet."""
        return find_subject(self.model, self.dtype, self.device, self.variant, self.arguments)

    @property
    def settings(self) -> dict[str, Any]:
        """All that a picture depends on beside its prompt and seed, as plain data."""
        subject = self.subject
        return {
            "model": self.model,
            **subject.settings,
            "arguments": subject.plain_arguments,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "plan": None if self.plan is None else mapping_of(self.plan),
            "batch": self.batch,
            "versions": versions(),
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the `error` in a line, empty where the picture was drawn."""

    name: str
    error: str = ""


class Painter:
    """A pipeline with a plan that draws jobs into a folder; each process has its own.

    Args:
        request: how to draw.
        folder: where to.
        process: its number, for the reports.

    Raises:
        TokenPruneError: the pipeline cannot be loaded, or not be pruned.
    """

    def __init__(self, request: Request, folder: Folder, process: int = 0) -> None:
        quiet()
        self._request, self._folder, self._process = request, folder, process
        self._settings = request.settings
        subject = request.subject
        self._pipe, self._arguments = subject.load(), subject.arguments
        self._handle = None if request.plan is None else tokenprune.apply(self._pipe, request.plan)
        self._failed = 0

    def draw(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Draw jobs at a time, and save those pictures that are not there yet; none is drawn if all of them are.

        If several fail together, each is drawn alone.

        Raises:
            FailuresError: too many failed one after the other.
            ConfigurationError: a picture cannot be written.
        """
        wanted = [job for job in jobs if not self._folder.has(job)]
        if not wanted:
            return []
        start = time.perf_counter()
        try:
            pictures = in_bytes(self._call(jobs))
        except Exception as error:
            if len(jobs) == 1:
                return [self._fail(jobs[0], error_line(error))]
            return [outcome for job in wanted for outcome in self.draw([job])]
        seconds = time.perf_counter() - start
        self._failed = 0
        shared = {
            "seconds": seconds / len(jobs),
            "pictures_in_call": len(jobs),
            "cost": None if self._handle is None else cost_of(self._handle.report(), len(jobs)),
            "process": self._process,
            "settings": self._settings,
            **{name: value for name, value in stamp().items() if name not in self._settings},
        }
        for job, picture in zip(jobs, pictures, strict=True):
            if job in wanted:
                told = {"name": job.name, "prompt": job.prompt, "seed": job.seed}
                self._folder.save(job, picture, {**told, **shared})
        return [Outcome(job.name) for job in wanted]

    def _call(self, jobs: Sequence[Job]) -> Any:
        asked = self._request
        texts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
        return call(self._pipe, texts, seeds, asked.steps, asked.guidance_scale, self._arguments)

    def _fail(self, job: Job, error: str) -> Outcome:
        self._folder.fail(job, error)
        self._failed += 1
        if self._failed == FAILURES_IN_A_ROW:
            raise FailuresError(
                f"{self._failed} prompts failed one after the other, {job.name} with {error}; what each failed with is "
                f"in {self._folder.path}, in a file that ends in .error"
            )
        return Outcome(job.name, error)


def cost_of(report: Report, pictures: int) -> dict[str, Any]:
    """What one of the pictures of a generation cost, as plain data; memory is that of all of them."""
    return {
        "macs": report.macs.total / pictures,
        "dense_macs": report.dense_macs.total / pictures,
        "mac_ratio": report.mac_ratio,
        "tokens_ratio": report.tokens_ratio,
        "tokens": report.tokens,
        "dense_tokens": report.dense_tokens,
        "tokens_of_steps": [step.tokens for step in report.steps],
        "seconds_in_model": report.seconds / pictures,
        "selection_seconds": report.selection_seconds / pictures,
        "cache_bytes": report.cache_bytes,
    }
