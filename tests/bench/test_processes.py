"""A run in two processes against the same run in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenprune import Plan, SequentialPolicy, WarmupSchedule
from tokenprune.bench.configurations.configuration import Configuration, plain
from tokenprune.bench.measuring import processes
from tokenprune.bench.measuring.measure import Task
from tokenprune.bench.measuring.processes import ProcessError, on_main, state, together
from tokenprune.bench.measuring.run import run
from tokenprune.embedded import scenes
from tokenprune.embedded.load import EMBEDDED

HERE = Path(__file__)
STEPS, PROMPTS = 2, 3


def measure(out: Path, pipe: Any) -> None:
    """What each process runs: three prompts, one at a time, with a method that fails in the last process."""
    drawn: list[str] = []
    encode = pipe.encode_prompt

    def fail_in_the_last(pipe: Any) -> AbstractContextManager[None]:
        if state().is_last_process:
            raise TypeError("only here")
        return nullcontext()

    def noting(prompt: list[str], **arguments: Any) -> Any:
        drawn.extend(prompt)
        return encode(prompt, **arguments)

    prompts = scenes.texts("tuning", PROMPTS)
    configurations = [
        plain(1),
        Configuration("broken", attach=fail_in_the_last),
        Configuration("pruned", Plan(SequentialPolicy(), WarmupSchedule(0.3, 1))),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe.encode_prompt = noting
    try:
        results = run(
            pipe,
            configurations,
            Task(prompts, STEPS, 4.0, 1, EMBEDDED["shapes-sd3"].arguments),
            out,
            {"model": "shapes-sd3"},
            score=lambda pictures: {"scored": len(pictures), "brightness": float(pictures.mean())},
        )
    finally:
        del pipe.encode_prompt
        torch.set_num_threads(threads)
    told = {"processes": state().num_processes, "drawn": [prompts.index(p) for p in drawn], "rows": results.rows}
    out.with_suffix(f".{state().process_index}").write_text(json.dumps(told))


def test_two_processes_measure_what_one_does(pipe: Any, tmp_path: Path, two_processes: list[str]) -> None:
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    measure(alone, pipe)
    ended = subprocess.run(
        [*two_processes, str(HERE), str(shared)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    of_one = json.loads(alone.with_suffix(".0").read_text())
    of_two = [json.loads(shared.with_suffix(f".{i}").read_text()) for i in range(2)]
    assert of_one["processes"] == 1
    assert [found["processes"] for found in of_two] == [2, 2]
    rows, of_both = (json.loads(path.read_text())["rows"] for path in (alone, shared))
    assert [row["name"] for row in of_both] == ["plain, 1 steps", "broken", "pruned"]
    assert rows == of_both
    assert of_both[1]["error"] == "TypeError: only here"
    assert of_both[0]["scored"] == PROMPTS
    assert of_two[0]["rows"] == of_two[1]["rows"] == of_both
    # The reference and two configurations drew each prompt once; operations are counted on the first in each process.
    for place, extra in enumerate((2, 0, 0)):
        assert sum(found["drawn"].count(place) for found in of_two) >= 3 + extra
    assert (of_two[0]["drawn"].count(2), of_two[1]["drawn"].count(1)) == (0, 0)


def test_alone_there_is_nobody_to_wait_for() -> None:
    assert together(lambda: 3) == [3]
    assert on_main(lambda: "x") == "x"
    with pytest.raises(TypeError, match="as it is"):
        together(lambda: raising(TypeError("as it is")))


def raising(error: Exception) -> Any:
    raise error


class UnsendableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_errors_are_sent_as_they_are_or_as_text() -> None:
    sent = processes._sendable(ValueError("v"))
    assert (type(sent), str(sent)) == (ValueError, "v")
    told = processes._sendable(UnsendableError(1, 2))
    assert (type(told), str(told)) == (ProcessError, "UnsendableError: 1 and 2")


if __name__ == "__main__":
    embedded = EMBEDDED["shapes-sd3"].load()
    embedded.set_progress_bar_config(disable=True)
    measure(Path(sys.argv[1]), embedded)
