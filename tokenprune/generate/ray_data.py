"""A run as a Ray Data job: each worker has a pipeline of its own, and takes batches as they come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenprune.errors import TokenPruneError, one_line
from tokenprune.generate.folder import Folder
from tokenprune.generate.jobs import Job, batches_of
from tokenprune.generate.painter import Outcome, Painter, Request
from tokenprune.generate.run import Summary, prepare

MOST_BLOCKS = 10_000
"""Of the data set of batches: small blocks, so that no worker is left with many at the end."""


class WorkerError(TokenPruneError, RuntimeError):
    """A worker refused what it was to draw, or one prompt after the other failed there."""


class RayPainter:
    """Draws batches of jobs by their places; a class for `ray.data.Dataset.map_batches` with a batch size of 1.

    Args:
        request: how to draw.
        jobs: all of them.
        folder: where to, on a file system that all workers share.
    """

    def __init__(self, request: Request, jobs: Sequence[Job], folder: Folder) -> None:
        self._request, self._folder = request, folder
        self._batches = batches_of(jobs, request.batch)
        self._painter: Painter | None = None

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Draw the batches at the places in the column "batch".

        The columns of what comes back are "name" and "error", which is empty where a picture was drawn. An error
        without a name is this worker's, not a prompt's.
        """
        try:
            self._painter = self._painter or Painter(self._request, self._folder)
            outcomes = [outcome for place in rows["batch"] for outcome in self._painter.draw(self._batches[place])]
        except TokenPruneError as error:
            outcomes = [Outcome("", one_line(error))]
        return {name: np.array([getattr(outcome, name) for outcome in outcomes], str) for name in ("name", "error")}


def run_with_ray(request: Request, jobs: Sequence[Job], folder: Folder, workers: int) -> Summary:
    """Draw what a folder does not hold yet with Ray; a cluster that was started before is used, see `ray.init`.

    A worker takes a GPU where the request's device is "cuda", else a core. If one dies, Ray starts it anew, and what it
    had not finished is drawn again.

    Args:
        request: how to draw.
        jobs: what, all of it.
        folder: where to, on a file system that all workers share.
        workers: how many draw at the same time.

    Raises:
        ConfigurationError: the folder holds other pictures.
        WorkerError: a worker cannot load or prune the pipeline, or one prompt after the other fails there.
    """
    import ray

    start = time.perf_counter()
    missing = prepare(request, jobs, folder)
    if not missing:
        return Summary.of(jobs, (), start)
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # what workers print would go to the standard output
    places = ray.data.from_items(
        [{"batch": place} for place in missing], override_num_blocks=min(len(missing), MOST_BLOCKS)
    )
    drawn = places.map_batches(
        RayPainter,
        fn_constructor_kwargs={"request": request, "jobs": tuple(jobs), "folder": folder},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing))),
        **({"num_gpus": 1} if request.settings["device"] == "cuda" else {"num_cpus": 1}),
    )
    outcomes = []
    for row in drawn.iter_rows():
        if not row["name"]:
            raise WorkerError(row["error"])
        outcomes.append(Outcome(row["name"], row["error"]))
    return Summary.of(jobs, outcomes, start)
