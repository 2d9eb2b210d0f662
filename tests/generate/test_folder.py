"""Pictures with their reports, the settings of a folder, and files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenprune.errors import ConfigurationError
from tokenprune.generate.folder import Folder
from tokenprune.generate.jobs import Job, batches_of, jobs_of

JOBS = jobs_of("abcd")
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def test_a_picture_is_there_with_its_report_alone(tmp_path: Path) -> None:
    folder, job = Folder(tmp_path / "new"), Job("inner/a", "a cat", 3)
    assert not folder.has(job)
    folder.save(job, PICTURE, {"seed": 3})
    assert folder.has(job)
    assert np.array_equal(np.asarray(Image.open(folder.path / "inner" / "a.png")), PICTURE)
    assert json.loads((folder.path / "inner" / "a.json").read_text()) == {"seed": 3}
    assert {file.suffix for file in folder.path.rglob("*.*")} == {".png", ".json"}
    (folder.path / "inner" / "a.json").unlink()
    assert not folder.has(job)


def test_what_ends_while_a_picture_is_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Any, path: Path, kind: str) -> None:
        path.write_bytes(b"half of a picture")
        raise KeyboardInterrupt

    folder = Folder(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", half)
        with pytest.raises(KeyboardInterrupt):
            folder.save(JOBS[0], PICTURE, {})
    assert [file.name for file in tmp_path.iterdir()] == ["000000.png.tmp"]
    assert folder.missing(batches_of(JOBS[:1], 1)) == [0]
    folder.save(JOBS[0], PICTURE, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000000.json", "000000.png"]


def test_what_failed_comes_last_and_is_forgotten_once_it_is_drawn(tmp_path: Path) -> None:
    folder, batches = Folder(tmp_path), batches_of(JOBS, 1)
    folder.fail(JOBS[1], "ValueError: no")
    folder.save(JOBS[2], PICTURE, {})
    assert json.loads((tmp_path / "000001.error").read_text()) == {"prompt": "b", "seed": 1, "error": "ValueError: no"}
    assert folder.missing(batches) == [0, 3, 1]
    assert folder.missing(batches_of(JOBS, 2)) == [1, 0]
    folder.save(JOBS[1], PICTURE, {})
    assert folder.missing(batches) == [0, 3]
    assert not (tmp_path / "000001.error").exists()


def test_a_folder_keeps_its_settings(tmp_path: Path) -> None:
    folder, settings = Folder(tmp_path / "new"), {"steps": 4, "plan": {"policy": "x"}, "model": "m"}
    folder.claim(settings, JOBS)
    folder.claim(settings, JOBS)
    assert json.loads((tmp_path / "new" / "settings.json").read_text()) == settings
    folder.claim({**settings, "steps": 5}, JOBS)  # no picture is there yet
    folder.save(JOBS[0], PICTURE, {})
    message = (
        r"out: .*new has pictures that were drawn with another plan, steps \(5, now 6\); choose another folder, or"
    )
    with pytest.raises(ConfigurationError, match=message):
        folder.claim({**settings, "steps": 6, "plan": None}, JOBS)
    with pytest.raises(ConfigurationError, match=r"another seed \(None, now 2\), steps \(5, now 4\)"):
        folder.claim({**settings, "seed": 2}, JOBS)
    assert json.loads((tmp_path / "new" / "settings.json").read_text())["steps"] == 5


def test_files_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "000000.png").write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match=r"out: expected an empty folder, or one with settings\.json of an"):
        Folder(tmp_path).claim({}, JOBS)
    with pytest.raises(ConfigurationError, match="name: expected another one than 'settings'"):
        Folder(tmp_path / "new").claim({}, [Job("settings", "a", 0)])
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"settings\.json: expected a readable json file"):
        Folder(tmp_path).claim({}, JOBS)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    folder = Folder(tmp_path)
    for write in (lambda: folder.save(Job("a/b", "x", 0), PICTURE, {}), lambda: folder.fail(Job("a/b", "x", 0), "no")):
        with pytest.raises(ConfigurationError, match=r"out: .*a/b\.\w+ cannot be written: "):
            write()
    with pytest.raises(ConfigurationError, match=r"out: .*settings\.json cannot be written: "):
        Folder(tmp_path / "a").claim({}, JOBS)
