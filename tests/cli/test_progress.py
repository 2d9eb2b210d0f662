"""What commands say while they work: a bar on a terminal, plain lines elsewhere, and no escape codes for NO_COLOR."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from tokenprune.cli.progress import Progress


def on_a_terminal(*words: str, **environment: str) -> str:
    """All that Python with these words writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")
    }
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()


def test_no_color_means_no_escape_codes() -> None:
    assert "\x1b" in on_a_terminal("-m", "tokenprune", "--help")
    assert "\x1b" in on_a_terminal("-m", "tokenprune", "--help", NO_COLOR="")  # counts as none: no-color.org
    assert "\x1b" not in on_a_terminal("-m", "tokenprune", "--help", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("-m", "tokenprune", "inspect", "shapes-sd3", NO_COLOR="1")


WORK = """
from tokenprune.cli.progress import Progress
with Progress(2) as progress:
    progress.begin("one")
    progress.begin("two", " (the last)")
"""


def test_a_terminal_has_a_bar() -> None:
    shown = on_a_terminal("-c", WORK)
    assert "two (the last)" in shown
    assert "2 of 2" in shown
    assert "finished in" not in shown


def test_a_terminal_that_cannot_move_its_cursor_has_lines() -> None:
    assert lines(on_a_terminal("-c", WORK, TERM="dumb")) == ["one", "two"]


def lines(error: str) -> list[str]:
    return [line.partition(": finished in")[0] for line in error.splitlines() if ": finished in" in line]


def test_what_fails_is_not_finished(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with Progress(3) as progress:
            progress.begin("one")
            progress.begin("two", " (of three)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert lines(capsys.readouterr().err) == ["one"]


def test_a_failure_is_told_in_place_of_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2) as progress:
        progress.begin("one")
        progress.fail("no [such] thing")
        progress.begin("two")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"one: failed after \d+\.\d s: no \[such\] thing \(1 of 2, about 1 s left\)", first)
    assert second.startswith("two: finished in ")


FAILING = """
from tokenprune.cli.progress import Progress
with Progress(2) as progress:
    progress.begin("one")
    progress.fail("no [such] thing")
    progress.begin("two")
"""


def test_a_terminal_keeps_the_failures() -> None:
    assert re.search(r"one: failed after \d+\.\d s: no \[such\] thing", on_a_terminal("-c", FAILING))


def test_the_time_that_remains_is_known_where_each_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    console = Console(stderr=True, force_terminal=True, file=io.StringIO())
    monkeypatch.setattr("tokenprune.cli.progress.Console", lambda **_: console)
    with Progress(4) as progress:
        for name in ("one", "two", "three"):
            progress.begin(name)
            now[0] += 100
        assert progress._bar is not None
        assert progress._bar.tasks[0].fields["left"] == "2 of 4, about 3 min left"


def test_processes_that_only_help_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(shown=False) as progress:
        progress.begin("one")
        progress.expect(2)
    assert capsys.readouterr() == ("", "")


def test_lines_say_how_many_are_done_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2) as progress:
        progress.begin("one")
        progress.expect(3)
        progress.begin("two")
        assert progress.done == 1
        progress.begin("three")
    ends = [
        re.sub(r"about \d+ s", "about 1 s", line.partition(" s (")[2]) for line in capsys.readouterr().err.splitlines()
    ]
    assert ends == ["1 of 3, about 1 s left)", "2 of 3, about 1 s left)", "3 of 3)"]


def test_the_last_is_finished_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.begin("one")
        assert capsys.readouterr().err == ""
    assert re.fullmatch(r"one: finished in \d+\.\d s\n", capsys.readouterr().err)
