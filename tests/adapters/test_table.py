"""The page of supported models is what its command writes."""

from __future__ import annotations

import pytest
import table
from tiny import ALL


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_page_is_up_to_date() -> None:
    assert table.PAGE.read_text() == table.page(), "run: python tests/adapters/table.py --write"


def test_names_are_unique() -> None:
    assert len({tiny.name for tiny in ALL}) == len(ALL)
