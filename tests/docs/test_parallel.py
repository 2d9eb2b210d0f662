"""The script of docs/parallel.md, as it stands there, on two processes: with a small pipeline, and without GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import drawing_programs
from ranks import on_ranks

import tokenprune

PAGE = (Path(tokenprune.__file__).parents[1] / "docs" / "parallel.md").read_text()


def test_the_script(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    (first, drawn), (second, _) = on_ranks(2, tmp_path / "store", drawing_programs.script, code[1], tmp_path)
    assert re.match(r"28 steps \(\d+ full, \d+ pruned\).* (4\d\.\d|50\.0)% of the MACs of the plain model", first), (
        first
    )
    assert second == ""
    assert drawn
