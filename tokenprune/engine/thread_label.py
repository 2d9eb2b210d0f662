"""A name that holds for the calls of one thread for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ThreadLabel:
    """What one thread's calls go by; other threads have names of their own, or none."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    @property
    def name(self) -> str:
        """The name of this thread; empty where it has none."""
        return self._names.get(threading.get_ident(), "")

    @contextmanager
    def set(self, name: str) -> Iterator[None]:
        """Give this thread the name, for as long as the context lasts."""
        thread, former = threading.get_ident(), self.name
        self._names[thread] = name
        try:
            yield
        finally:
            self._names[thread] = former
            if not former:
                del self._names[thread]
