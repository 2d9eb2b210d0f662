"""The page of supported models is what its command writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import table
import tiny
from tiny import ALL

import tokenprune_adapters


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_page_is_up_to_date() -> None:
    assert table.PAGE.read_text() == table.page(), "run: python tests/adapters/table.py --write"


def test_names_are_unique() -> None:
    assert len({case.name for case in ALL}) == len(ALL)


def test_every_file_of_adapters_has_a_file_of_small_models() -> None:
    adapters, models = (
        {file.stem for file in Path(package.__file__).parent.glob("*.py")} for package in (tokenprune_adapters, tiny)
    )
    assert adapters - {"common", "unsupported"} == models - {"case"}
