"""The site, built once for all of its tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    """docs/site/build.py."""
    for package in ("zensical", "mkdocstrings", "nbconvert"):
        pytest.importorskip(package, reason=f"no site to test: {package} (extra docs) is not installed")
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "site" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def site(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the HTML of this checkout's docs, built as `make docs` builds it."""
    found: Path = builder.build(tmp_path_factory.mktemp("site"))
    return found
