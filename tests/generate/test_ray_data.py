"""A run as a Ray Data job, and what its workers do when they are called as Ray calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokenprune.generate.folder import Folder
from tokenprune.generate.jobs import batches_of, jobs_of
from tokenprune.generate.painter import Request
from tokenprune.generate.ray_data import RayPainter
from tokenprune.generate.run import prepare, run

JOBS = jobs_of(["a red circle", "a blue star", "a green cross"])


def test_a_worker_draws_the_batches_at_the_places_that_it_gets(
    tmp_path: Path, request_of: Callable[..., Request], pictures: Callable[[Path], dict[str, bytes]]
) -> None:
    request, folder = request_of(batch=2), Folder(tmp_path / "ray")
    run(request, JOBS, Folder(tmp_path / "alone"))
    assert prepare(request, JOBS, folder) == [0, 1]
    worker = RayPainter(request, JOBS, folder)
    rows = [worker({"batch": np.array([place])}) for place in (1, 0, 1)]
    assert [list(row["name"]) for row in rows] == [["000002"], ["000000", "000001"], []]
    assert all(list(row["error"]) == [""] * len(row["name"]) for row in rows)
    assert pictures(tmp_path / "ray") == pictures(tmp_path / "alone")


def test_a_worker_hands_errors_back(tmp_path: Path, request_of: Callable[..., Request]) -> None:
    jobs = jobs_of(["a"] * 10)
    worker = RayPainter(request_of(arguments={"height": 7}), jobs, Folder(tmp_path))
    rows = [worker({"batch": np.array([place])}) for place in range(10)]
    assert [row["name"][0] for row in rows] == [*(job.name for job in jobs[:9]), ""]
    assert all(row["error"][0].startswith("ValueError: ") for row in rows[:9])
    assert rows[9]["error"][0].startswith("10 prompts failed one after the other, 000009 with ValueError: ")
    cannot = RayPainter(request_of(model="./nowhere"), jobs, Folder(tmp_path))({"batch": np.array([0])})
    assert (cannot["name"][0], cannot["error"][0].partition(":")[0]) == ("", "model")


def test_ray_draws_what_one_process_does(
    tmp_path: Path, request_of: Callable[..., Request], pictures: Callable[[Path], dict[str, bytes]]
) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    prompts, out = tmp_path / "prompts.txt", tmp_path / "ray"
    prompts.write_text("\n".join(job.prompt for job in JOBS))
    request = request_of(guidance_scale=7.0)
    run(request, JOBS, Folder(tmp_path / "alone"))
    folder = Folder(out)
    prepare(request, JOBS, folder)
    (done,) = batches_of(JOBS[:1], 1)
    for suffix in ("png", "json"):
        name = f"{done[0].name}.{suffix}"
        (out / name).write_bytes((tmp_path / "alone" / name).read_bytes())
    given = ["--prompts", prompts, "--out", out, "--steps", request.steps, "--device", "cpu", "--ray", 2, "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "tokenprune", "generate", *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout)
    assert (told["drawn"], told["before"], told["failed"]) == (2, 1, {})
    assert pictures(out) == pictures(tmp_path / "alone")
