"""The rules of the architecture: which package may import which, and which libraries."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import tokenprune

PACKAGE = Path(tokenprune.__file__).parent
ADAPTERS = PACKAGE.parent / "adapters" / "tokenprune_adapters"

# The rooms (packages and modules) of a house, lowest floor first. A room imports from lower floors only: nothing of its
# own floor, nothing from above.
FLOORS = {
    "tokenprune": (
        {"errors", "compiled", "setting_types", "notices", "units", "interpolation"},
        {"schedule", "targets", "installed"},
        {"ops", "placement", "held_text"},
        {"policies", "reuse", "reports", "modulemap"},
        {"engine", "plans", "registry"},
        {"discovery", "macs", "testing"},
        {"handles", "expectation"},
        {"api"},
        {"__init__"},
        {"embedded"},
        {"bench", "tokenprune_adapters"},
        {"app", "generate"},
        {"cli"},
        {"__main__"},
    ),
    "tokenprune.bench": (
        {"configurations", "commands"},
        {"measuring"},
        {"subjects", "tables", "tuning", "figures"},
        {"studies"},
    ),
}
# Rooms that import less of ours than all that is below them.
NARROWER: dict[str, set[str]] = {"ops": {"errors"}, "embedded": set()}
LIBRARIES = {"torch", "einops"}
# What these modules, and those below them, may import inside functions, so that it is loaded where it is used only.
LAZY = {
    "torch_geometric": ("tokenprune.ops", "tokenprune.policies"),
    "yaml": ("tokenprune.plans.formats",),
    "jinja2": ("tokenprune.reports.viewer",),
    "PIL": ("tokenprune.reports.viewer",),
}
OWN_LIBRARIES = {"tokenprune_adapters": {"diffusers"}}
ANY_LIBRARY = {"embedded", "bench", "app", "generate", "cli", "__main__"}


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> list[tuple[str, bool]]:
    """Every module or member that a source imports, and whether it does so inside a function."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: relative import")
            found += [(f"{node.module}.{alias.name}", id(node) in inside) for alias in node.names]
    return found


def is_below(name: str, parents: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{parent}.") for parent in parents)


def room(name: str, house: str = "tokenprune") -> str | None:
    """The room that a module is in: tokenprune.policies.cat is in policies; None for what is not in the house."""
    if house == "tokenprune" and is_below(name, ["tokenprune_adapters"]):
        return "tokenprune_adapters"
    if not is_below(name, [house]):
        return None
    first = name.removeprefix(house).split(".")[1:2]
    return first[0] if first and first[0] in set().union(*FLOORS[house]) else "__init__"


def floor(name: str, house: str) -> int | None:
    found = [depth for depth, rooms in enumerate(FLOORS[house]) if room(name, house) in rooms]
    return found[0] if found else None


def runs_up(name: str, imported: str) -> bool:
    """Whether an import of ours leads to another room that is not below the one of the module `name`."""
    for house in FLOORS:
        start, end = floor(name, house), floor(imported, house)
        if None not in (start, end) and room(name, house) != room(imported, house) and start <= end:
            return True
    own, other = room(name), room(imported)
    return own in NARROWER and other not in NARROWER[own] | {own}


def violations(*roots: Path) -> list[str]:
    """Where the packages at `roots` break the rules."""
    found = []
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            name = module_name(file, root)
            place = room(name)
            if place == "__init__" and name != root.name:
                raise AssertionError(f"{name}: in no room of FLOORS; say where in the architecture it stands")
            for imported, in_function in imports(file.read_text()):
                library = imported.partition(".")[0]
                lazy = in_function and is_below(name, LAZY.get(library, ()))
                if library in ("tokenprune", "tokenprune_adapters"):
                    if runs_up(name, imported):
                        found.append(f"{name} imports {imported}, which is not on a floor below")
                elif not (
                    place in ANY_LIBRARY
                    or lazy
                    or library in sys.stdlib_module_names
                    or library in LIBRARIES | OWN_LIBRARIES.get(place, set())
                ):
                    found.append(f"{name} imports {library}")
    return found


def circle(*roots: Path) -> list[str]:
    """The modules at `roots` that import each other in a circle, inside functions or not; or lead into one."""
    files = {module_name(file, root): file for root in roots for file in root.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        targets = {imported for imported, _ in imports(file.read_text())}
        graph[name] = {target if target in files else target.rpartition(".")[0] for target in targets} - {name}
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    return sorted(graph)


def write(root: Path, path: str, source: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)


def test_every_room_imports_from_floors_below() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 100
    assert len(list(ADAPTERS.rglob("*.py"))) > 20
    assert violations(PACKAGE, ADAPTERS) == []


@pytest.mark.parametrize("house", FLOORS)
def test_the_floors_name_the_rooms_that_there_are(house: str) -> None:
    folder = PACKAGE.parent / house.replace(".", "/")
    there = {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/__init__.py")}
    named = set().union(*FLOORS[house])
    assert sum(map(len, FLOORS[house])) == len(named)
    assert there - {"__init__"} == named - {"__init__", "tokenprune_adapters"}


def test_no_modules_import_each_other() -> None:
    assert circle(PACKAGE, ADAPTERS) == []


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("ops/selection.py", "import numpy", "tokenprune.ops.selection imports numpy"),
        ("ops/selection.py", "import torch_geometric", "tokenprune.ops.selection imports torch_geometric"),
        ("ops/kmeans.py", "from tokenprune.schedule import Schedule", "tokenprune.schedule.Schedule, which is not on"),
        ("ops/grid.py", "from tokenprune.policies.base import Memory", "policies.base.Memory, which is not on"),
        (
            "policies/cat.py",
            "from tokenprune.reuse import Hold",
            "tokenprune.reuse.Hold, which is not on a floor below",
        ),
        ("policies/new.py", "def f():\n    from sklearn.cluster import KMeans", "policies.new imports sklearn"),
        ("reports/trace.py", "from tokenprune import policies", "reports.trace imports tokenprune.policies, which"),
        ("modulemap.py", "import tokenprune.reuse.base", "tokenprune.modulemap imports tokenprune.reuse.base, which"),
        ("engine/rows.py", "def f():\n    import torch_geometric", "tokenprune.engine.rows imports torch_geometric"),
        ("engine/sites.py", "def f():\n    from tokenprune.api import plan", "tokenprune.api.plan, which is not on"),
        ("plans/files.py", "import yaml", "tokenprune.plans.files imports yaml"),
        ("plans/formats.py", "import yaml", "tokenprune.plans.formats imports yaml"),
        ("plans/data.py", "def f():\n    import yaml", "tokenprune.plans.data imports yaml"),
        ("discovery/verify.py", "from tokenprune.testing import check_policy", "testing.check_policy, which is not on"),
        ("schedule.py", "from tokenprune import Selection", "imports tokenprune.Selection, which is not on"),
        ("engine/sites.py", "import tokenprune", "tokenprune.engine.sites imports tokenprune, which is not on"),
        ("api.py", "from tokenprune.embedded.load import load", "tokenprune.api imports tokenprune.embedded.load.load"),
        ("api.py", "def f():\n    import diffusers.models", "tokenprune.api imports diffusers"),
        ("__init__.py", "import tokenprune.bench.measuring.run", "tokenprune imports tokenprune.bench.measuring.run"),
        ("embedded/load.py", "from tokenprune.errors import one_line", "tokenprune.embedded.load imports tokenprune.e"),
        ("bench/tables/cells.py", "from tokenprune.cli import bench", "tokenprune.bench.tables.cells imports"),
        ("bench/measuring/run.py", "from tokenprune.bench.tables import cells", "run imports tokenprune.bench.tables"),
        (
            "bench/tuning/space.py",
            "import tokenprune.bench.subjects.prompts",
            "space imports tokenprune.bench.subjects",
        ),
        (
            "bench/studies/gallery.py",
            "import tokenprune_adapters.sd3",
            "gallery imports tokenprune_adapters.sd3, which",
        ),
    ],
)
def test_the_check_can_fail(tmp_path: Path, path: str, source: str, message: str) -> None:
    write(tmp_path / "tokenprune", path, source)
    found = violations(tmp_path / "tokenprune")
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import diffusers, torch\nfrom tokenprune import ModuleMap", []),
        ("from tokenprune.cli import demo", ["imports tokenprune.cli.demo, which is not on a floor below"]),
        ("from tokenprune.bench import studies", ["imports tokenprune.bench.studies, which is not on a floor below"]),
        ("import transformers", ["imports transformers"]),
    ],
)
def test_the_check_looks_at_adapters_too(tmp_path: Path, source: str, found: list[str]) -> None:
    write(tmp_path / "tokenprune_adapters", "sd3.py", source)
    assert [message.partition(" ")[2] for message in violations(tmp_path / "tokenprune_adapters")] == found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "ops/kmeans.py",
            "import math, torch\nfrom tokenprune.errors import SelectionError\nimport tokenprune.ops.grid",
        ),
        ("ops/cluster_graph.py", "def f():\n    import torch_geometric"),
        ("plans/formats.py", "def f():\n    import yaml"),
        ("cli/demo.py", "import diffusers, rich\nfrom tokenprune.cli import macs\nimport tokenprune_adapters"),
        ("__main__.py", "from tokenprune.cli import main"),
        ("bench/studies/gallery.py", "import tokenprune\nfrom tokenprune.bench.subjects import prompts"),
    ],
)
def test_the_check_lets_pass_what_is_allowed(tmp_path: Path, path: str, source: str) -> None:
    write(tmp_path / "tokenprune", path, source)
    assert violations(tmp_path / "tokenprune") == []


@pytest.mark.parametrize("path", ["novelty.py", "novelty/__init__.py"])
def test_a_new_room_must_be_placed(tmp_path: Path, path: str) -> None:
    write(tmp_path / "tokenprune", path, "from tokenprune.errors import TokenPruneError")
    with pytest.raises(AssertionError, match=r"tokenprune\.novelty: in no room of FLOORS"):
        violations(tmp_path / "tokenprune")


@pytest.mark.parametrize(
    "sources",
    [
        {"ops/a.py": "import tokenprune.ops.b", "ops/b.py": "from tokenprune.ops.a import A"},
        {"ops/a.py": "import tokenprune.ops.b", "ops/b.py": "def f():\n    from tokenprune.ops import a"},
        {"ops/__init__.py": "from tokenprune.ops.a import A", "ops/a.py": "from tokenprune.ops import A"},
    ],
)
def test_circles_are_found(tmp_path: Path, sources: dict[str, str]) -> None:
    root = tmp_path / "tokenprune"
    for path, source in sources.items():
        write(root, path, source)
    write(root, "ops/c.py", "import torch")
    assert circle(root) == sorted(module_name(root / path, root) for path in sources)


def test_relative_imports_are_refused() -> None:
    with pytest.raises(AssertionError, match="line 1: relative import"):
        imports("from .policy import Memory")


def test_importing_the_package_is_light() -> None:
    script = (
        "import json, sys, tokenprune; print(json.dumps(list(sys.modules))); import PIL; print('PIL' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules, seen = ran.stdout.splitlines()
    loaded = set(json.loads(modules))
    assert seen == "True"
    assert "tokenprune.api" in loaded
    assert not loaded & {"diffusers", "torch_geometric", "transformers", "matplotlib", "PIL", "typer", "sklearn"}
    assert not {
        name for name in loaded if is_below(name, ["tokenprune.cli", "tokenprune.embedded", "tokenprune.bench"])
    }


def test_everything_public_is_there() -> None:
    assert sorted(tokenprune.__all__) == list(tokenprune.__all__)
    assert all(hasattr(tokenprune, name) for name in tokenprune.__all__)
