"""The rules of the architecture: what may import what."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tokenprune

PACKAGE = Path(tokenprune.__file__).parent
ADAPTERS = PACKAGE.parent / "adapters" / "tokenprune_adapters"
OUTER = ("bench", "cli", "embedded", "figures", "__main__")
CORE_LIBRARIES = {"torch", "einops", "tokenprune"}
LAZY = {"policies": {"torch_geometric"}, "data_files": {"yaml"}}
LAYERS = (
    {"errors", "grid", "data_files", "compiled", "in_place"},
    {"selection", "modulemap", "others", "keyvalue", "linear_keys"},
    {
        "schedule",
        "counts",
        "reuse",
        "taylor",
        "damping",
        "cluster_correction",
        "policy",
        "policies",
        "cache",
        "registry",
        "skip",
        "plans",
    },
    {"run", "blocks", "turns"},
    {"attention", "constants", "calls"},
    {"hooks"},
    {"report", "exits", "fittings"},
    {"trace"},
    {"generation"},
    {"masked", "testing"},
    {"macs", "discovery"},
    {"plan_parts", "plan_data"},
    {"api", "presets", "plan_files"},
    {"__init__"},
)


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(source: str) -> list[tuple[str, bool]]:
    """Every module that a source imports, and whether it does so inside a function."""
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


def layer(name: str) -> int:
    for depth, names in enumerate(LAYERS):
        if name in names:
            return depth
    raise AssertionError(f"{name}: not in LAYERS; say where in the architecture it stands")


def part_of(imported: str) -> str:
    """Which part of the core an import leads to: tokenprune.policies.cat.CATPolicy is in policies."""
    words = imported.split(".")
    if len(words) > 1 and words[1] in {name for names in LAYERS for name in names} | set(OUTER):
        return words[1]
    return "__init__"


def violations(root: Path) -> list[str]:
    """Where the core below `root` breaks the rules."""
    found = []
    for file in sorted(root.rglob("*.py")):
        name = module_name(file, root)
        part = name.split(".")[1]
        if part in OUTER:
            continue
        for imported, in_function in imports(file.read_text()):
            library = imported.partition(".")[0]
            allowed = CORE_LIBRARIES | (LAZY.get(part, set()) if in_function else set())
            if library not in sys.stdlib_module_names | allowed:
                found.append(f"{name} imports {library}")
            if library == "tokenprune":
                other = part_of(imported)
                if other in OUTER:
                    found.append(f"{name} imports tokenprune.{other}")
                elif layer(other) > layer(part) or (layer(other) == layer(part) and other == "__init__" != part):
                    found.append(f"{name} (layer {layer(part)}) imports {imported} (layer {layer(other)})")
    return found


def outer_violations(roots: list[Path]) -> list[str]:
    """Who imports the command line, and who but adapters, command line and embedded assets imports diffusers."""
    found = []
    for root in roots:
        for file in sorted(root.rglob("*.py")):
            name = module_name(file, root)
            part = name.split(".")[1] if "." in name else ""
            for imported, _ in imports(file.read_text()):
                if f"{imported}.".startswith("tokenprune.cli.") and part not in ("cli", "__main__"):
                    found.append(f"{name} imports the command line")
                if imported.split(".")[0] == "diffusers" and not (
                    root.name == "tokenprune_adapters" or part in ("bench", "cli", "embedded")
                ):
                    found.append(f"{name} imports diffusers")
    return found


def test_the_core_keeps_its_layers() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 20
    assert violations(PACKAGE) == []


def test_nothing_imports_the_command_line_and_only_the_outside_imports_diffusers() -> None:
    assert ADAPTERS.is_dir()
    assert outer_violations([PACKAGE, ADAPTERS]) == []


def test_no_module_of_the_core_imports_one_that_imports_it() -> None:
    graph: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        name = module_name(file, PACKAGE)
        known = {module_name(other, PACKAGE) for other in PACKAGE.rglob("*.py")}
        targets = {target for target, in_function in imports(file.read_text()) if not in_function}
        graph[name] = {
            target if target in known else target.rpartition(".")[0] for target in targets if target.startswith("token")
        } - {name, "tokenprune"}
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"modules import each other in a circle: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("selection.py", "import numpy", "tokenprune.selection imports numpy"),
        ("selection.py", "from diffusers import SD3Transformer2DModel", "tokenprune.selection imports diffusers"),
        ("selection.py", "from tokenprune.policy import SelectionPolicy", "layer"),
        ("policies/new.py", "import torch_geometric", "tokenprune.policies.new imports torch_geometric"),
        ("masked.py", "def f():\n    import torch_geometric", "tokenprune.masked imports torch_geometric"),
        ("run.py", "def f():\n    from tokenprune.masked import MaskedModule", "layer"),
        ("run.py", "import tokenprune", "layer"),
        ("schedule.py", "from tokenprune import Selection", "layer"),
        ("api.py", "from tokenprune import cli", "tokenprune.api imports tokenprune.cli"),
        ("api.py", "import tokenprune.cli.demo", "tokenprune.api imports tokenprune.cli"),
        ("api.py", "from tokenprune.embedded.load import x", "tokenprune.api imports tokenprune.embedded"),
    ],
)
def test_the_check_of_the_core_can_fail(tmp_path: Path, path: str, source: str, message: str) -> None:
    root = tmp_path / "tokenprune"
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(source)
    found = violations(root)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("tokenprune/embedded/load.py", "from tokenprune.cli import demo", ["imports the command line"]),
        ("tokenprune_adapters/sd3.py", "import tokenprune.cli", ["imports the command line"]),
        ("tokenprune/api.py", "def f():\n    import diffusers.models", ["imports diffusers"]),
        ("tokenprune/cli/demo.py", "import diffusers\nfrom tokenprune.cli import macs", []),
        ("tokenprune_adapters/sd3.py", "import diffusers", []),
    ],
)
def test_the_check_of_the_outside_can_fail(tmp_path: Path, path: str, source: str, found: list[str]) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    root = tmp_path / path.partition("/")[0]
    assert [message.partition(" ")[2] for message in outer_violations([root])] == found


def test_an_unknown_module_must_be_placed(tmp_path: Path) -> None:
    root = tmp_path / "tokenprune"
    root.mkdir()
    (root / "novelty.py").write_text("from tokenprune.errors import TokenPruneError")
    with pytest.raises(AssertionError, match="novelty: not in LAYERS"):
        violations(root)


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
    assert not {name for name in loaded if name.startswith(("tokenprune.cli", "tokenprune.embedded"))}


def test_everything_public_is_there() -> None:
    assert sorted(tokenprune.__all__) == list(tokenprune.__all__)
    assert all(hasattr(tokenprune, name) for name in tokenprune.__all__)
