"""How far a command is, and how long it may still take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from tokenprune.reports.remaining import Remaining


class Progress:
    """A bar on a terminal; elsewhere a plain line for each thing that is finished. Both go to standard error.

    Args:
        total: how many there will be; None where that is not known.
        shown: False shows nothing, as in processes that only help.
    """

    def __init__(self, total: int | None = None, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._shown = shown
        self._remaining = Remaining(total)
        self._bar = None
        if shown and console.is_terminal and not console.is_dumb_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
            self._bar = Bar(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=total, left=str(self._remaining))
        self._name: str | None = None
        self._failure = ""
        self._start = 0.0

    @property
    def done(self) -> int:
        """How many are finished."""
        return self._remaining.done

    def begin(self, name: str, note: str = "") -> None:
        """Something begins, so that what began before it is finished; a bar shows the note behind its name."""
        self._finish()
        self._name, self._start = name, time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, description=name + note)

    def fail(self, reason: str) -> None:
        """What began last failed."""
        self._failure = reason

    def expect(self, total: int) -> None:
        """Say how many there will be, what is finished included."""
        self._remaining.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total, left=str(self._remaining))

    def _finish(self) -> None:
        if self._name is None:
            return
        self._remaining.finish_one()
        left = str(self._remaining)
        seconds = f"{time.perf_counter() - self._start:.1f} s"
        failed = f"{self._name}: failed after {seconds}: {self._failure}" if self._failure else ""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, left=left)
            if failed:
                self._bar.console.print(failed, markup=False, highlight=False)
        elif self._shown:
            line = failed or f"{self._name}: finished in {seconds}"
            print(f"{line} ({left})" if left else line, file=sys.stderr, flush=True)
        self._failure = ""
        self._name = None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        if self._bar is not None:
            self._bar.stop()
