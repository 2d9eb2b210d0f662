"""Copies beside the computation: what is copied, and which stream waits for which."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenprune.engine.copy_streams import Copies, CudaCopies, copies_of

DEVICE = torch.device("cuda:1")


class Stream:
    """Notes what it is asked for, and copies at once."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log, self._events = name, log, 0

    def wait_stream(self, other: Stream) -> None:
        self._log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        self._events += 1
        return f"{self.name} {self._events}"

    def wait_event(self, event: str) -> None:
        self._log.append(f"{self.name} waits for {event}")

    def synchronize(self) -> None:
        self._log.append(f"host waits for {self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stand-in for CUDA's streams was asked for; copies and zeros with the stream that they are made on."""
    noted: list[str] = []
    computing, entered = Stream("computation", noted), ["computation"]

    @contextmanager
    def stream(wanted: Stream) -> Iterator[None]:
        entered.append(wanted.name)
        yield
        entered.pop()

    def copying(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        noted.append(f"copy on {entered[-1]}{'' if non_blocking else ', host waits'}")
        return to.set_(source.clone())

    def zeroing(tensor: Tensor) -> Tensor:
        noted.append(f"zeros on {entered[-1]}")
        return tensor.fill_(0)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(f"copies of {device}", noted))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(Tensor, "copy_", copying)
    monkeypatch.setattr(Tensor, "zero_", zeroing)
    return noted


def test_which_devices_have_streams(log: list[str]) -> None:
    assert type(copies_of(torch.device("cpu"))) is Copies
    assert type(copies_of(torch.device("meta"))) is Copies
    assert type(copies_of(DEVICE)) is CudaCopies


def test_copies_at_once() -> None:
    copies, on_device, at_home = Copies(), torch.zeros(3), torch.arange(3.0)
    copies.fetch([(on_device, at_home)])
    assert on_device.tolist() == [0, 1, 2]
    on_device += 1
    copies.give_back([(at_home, on_device)])
    assert at_home.tolist() == [1, 2, 3]
    copies.clear([on_device])
    copies.hold_computation(copies.mark())
    copies.finish()
    assert on_device.tolist() == [0, 0, 0]
    assert (copies.fetched, copies.returned) == (12, 12)


def test_what_waits_for_what(log: list[str]) -> None:
    """The host never does, but where it is asked to."""
    copies, on_device, at_home = CudaCopies(DEVICE), torch.zeros(3), torch.arange(3.0)
    copies.fetch([(on_device, at_home)])
    first = copies.mark()
    copies.hold_computation(first)
    copies.give_back([(at_home, on_device)])
    copies.clear([on_device])
    copies.hold_computation(None)
    assert log == [
        "copy on copies of cuda:1",
        "computation waits for copies of cuda:1 1",
        "copies of cuda:1 waits for computation",
        "copy on copies of cuda:1",
        "zeros on copies of cuda:1",
    ]
    copies.finish()
    assert log[5:] == ["host waits for copies of cuda:1"]
    assert (copies.fetched, copies.returned) == (12, 12)


def test_memory_of_the_host_is_page_locked(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    empty, asked = torch.empty, []

    def watched(*shape: Any, pin_memory: bool = False, **wanted: Any) -> Tensor:
        asked.append(pin_memory)
        return empty(*shape, **wanted)

    monkeypatch.setattr(torch, "empty", watched)
    found = CudaCopies(DEVICE).host_memory(torch.ones(2, 5, dtype=torch.bfloat16))
    assert (found.shape, found.dtype, found.device.type, asked) == ((2, 5), torch.bfloat16, "cpu", [True])


def test_memory_that_cannot_be_locked_is_pageable_and_told_once(
    log: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty

    def refusing(*shape: Any, pin_memory: bool = False, **wanted: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("no more pages")
        return empty(*shape, **wanted)

    monkeypatch.setattr(torch, "empty", refusing)
    copies = CudaCopies(DEVICE)
    with caplog.at_level(logging.WARNING, "tokenprune"):
        for _ in range(2):
            assert copies.host_memory(torch.ones(4)).shape == (4,)
    assert [record.getMessage() for record in caplog.records] == [
        "keys and values lie in pageable host memory, and copies of it make the host wait: the system locks no more "
        "pages (no more pages)"
    ]
