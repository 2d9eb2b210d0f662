"""Runs: by one process, by two, and by one that is killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenprune.errors import ConfigurationError
from tokenprune.generate import run as runs
from tokenprune.generate.folder import Folder
from tokenprune.generate.jobs import jobs_of
from tokenprune.generate.painter import Request
from tokenprune.generate.run import Summary, run

PATIENCE = 300.0
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "green") for shape in ("circle", "star", "cross")]
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


class Progress:
    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def expect(self, total: int) -> None:
        self.told.append(("expect", total))

    def begin(self, name: str) -> None:
        self.told.append(("begin", name))

    def fail(self, reason: str) -> None:
        self.told.append(("fail", reason))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def words(prompts: Path, out: Path, request: Request) -> list[str]:
    given = {"prompts": prompts, "out": out, "steps": request.steps, "device": "cpu"}
    options = (word for name, value in given.items() for word in (f"--{name}", str(value)))
    return ["-m", "tokenprune", "generate", *options]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes that are started here have: sums of several threads may differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Which files pictures and reports are, and when they were written."""
    found = (file for file in folder.iterdir() if file.suffix in (".png", ".json"))
    return {file.name: ((known := file.stat()).st_ino, known.st_mtime_ns) for file in found}


def test_a_run_is_taken_up_again(
    tmp_path: Path, request_of: Callable[..., Request], pictures: Callable[[Path], dict[str, bytes]]
) -> None:
    jobs, progress = jobs_of(PROMPTS[:5]), Progress()
    first = run(request_of(batch=2), jobs, Folder(tmp_path), progress)
    assert (first.prompts, first.drawn, first.before, first.failed) == (5, 5, 0, {})
    batches = ["000000 to 000001", "000002 to 000003", "000004"]
    assert progress.told == [("expect", 3), *(("begin", name) for name in batches)]
    whole = pictures(tmp_path)
    assert len(set(whole.values())) == 5
    for name in ("000002.png", "000004.json"):
        (tmp_path / name).unlink()
    second = run(request_of(batch=2), jobs, Folder(tmp_path))
    assert (second.drawn, second.before) == (2, 3)
    assert pictures(tmp_path) == whole
    assert run(request_of(batch=2), jobs, Folder(tmp_path)).drawn == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 5}, r"another steps \(4, now 5\); choose another folder"),
        ({"plan": None}, "another plan;"),
        ({"batch": 2}, r"another batch \(1, now 2\);"),
        ({"guidance_scale": 3.0}, r"another guidance_scale \(None, now 3.0\);"),
        ({"model": "shapes-pixart"}, r"another arguments, model \('shapes-sd3', now 'shapes-pixart'\);"),
    ],
)
def test_other_settings_are_refused(
    changed: dict[str, Any], message: str, tmp_path: Path, request_of: Callable[..., Request]
) -> None:
    run(request_of(), jobs_of(PROMPTS[:1]), Folder(tmp_path))
    before = written(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        run(request_of(**changed), jobs_of(PROMPTS[:1]), Folder(tmp_path))
    with pytest.raises(ConfigurationError, match=r"another prompts \(1, now 2\), prompts_digest"):
        run(request_of(), jobs_of(PROMPTS[:2]), Folder(tmp_path))
    assert written(tmp_path) == before


def test_failures_are_told(tmp_path: Path, request_of: Callable[..., Request]) -> None:
    jobs, progress = jobs_of(PROMPTS[:2]), Progress()
    summary = run(request_of(arguments={"height": 7}), jobs, Folder(tmp_path), progress)
    error = "ValueError: `height` and `width` have to be divisible by"
    assert (summary.drawn, summary.before, list(summary.failed)) == (0, 0, ["000000", "000001"])
    assert all(each.startswith(error) for each in summary.failed.values())
    assert [kind for kind, _ in progress.told] == ["expect", "begin", "fail", "begin", "fail"]
    assert progress.told[2][1].startswith(error)
    batched = Progress()
    run(request_of(arguments={"height": 7}, batch=2), jobs, Folder(tmp_path), batched)
    assert batched.told[2][1].startswith(f"000000: {error}")
    assert "; 000001: ValueError" in batched.told[2][1]


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, prompts: Path, request_of: Callable[..., Request], pictures: Callable[[Path], dict[str, bytes]]
) -> None:
    request, jobs = request_of(guidance_scale=7.0, steps=12), jobs_of(PROMPTS)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(request, jobs, Folder(whole))
    with subprocess.Popen(
        [sys.executable, *words(prompts, cut, request)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    ) as process:
        end = time.monotonic() + PATIENCE
        while len(list(cut.glob("0*.json"))) < 2 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = written(cut)
    reports = [name for name in before if name.endswith(".json") and name != "settings.json"]
    assert 2 <= len(reports) < len(PROMPTS)
    assert run(request, jobs, Folder(cut)).drawn == len(PROMPTS) - len(reports)
    after, done = written(cut), {*reports, *(name.replace(".json", ".png") for name in reports)}
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    assert len(pictures(whole)) == len(PROMPTS)
    assert pictures(cut) == pictures(whole)
    assert sorted(file.name for file in cut.iterdir()) == sorted(file.name for file in whole.iterdir())


@pytest.mark.usefixtures("one_thread")
def test_two_processes_draw_what_one_does(
    tmp_path: Path,
    prompts: Path,
    request_of: Callable[..., Request],
    pictures: Callable[[Path], dict[str, bytes]],
    two_processes: list[str],
) -> None:
    request, one, two = request_of(guidance_scale=7.0), tmp_path / "one", tmp_path / "two"
    run(request, jobs_of(PROMPTS), Folder(one))
    ended = subprocess.run(
        [*two_processes, *words(prompts, two, request), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=ENVIRONMENT,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout)
    assert (told["prompts"], told["drawn"], told["before"], told["failed"]) == (len(PROMPTS), len(PROMPTS), 0, {})
    assert pictures(one) == pictures(two)
    by = [json.loads((two / f"{number:06d}.json").read_text())["process"] for number in range(len(PROMPTS))]
    assert by == [0, 1, 0, 1, 0, 1]


def test_a_process_without_work_loads_nothing(
    tmp_path: Path, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("nothing is to be drawn")

    run(request_of(), jobs_of(PROMPTS[:1]), Folder(tmp_path))
    monkeypatch.setattr(runs, "Painter", loaded)
    summary = run(request_of(), jobs_of(PROMPTS[:1]), Folder(tmp_path))
    assert summary == Summary(1, 0, {}, summary.seconds)
    assert summary.before == 1
