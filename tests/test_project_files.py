"""What the repository says of itself: one version, a citation, templates, and checks that are those of `make test`."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import tokenprune

ROOT = Path(tokenprune.__file__).parents[1]
GITHUB = ROOT / ".github"


def test_the_version_is_that_of_the_distribution() -> None:
    assert tokenprune.__version__ == version("tokenprune-dit")
    assert 'attr = "tokenprune.__version__"' in (ROOT / "pyproject.toml").read_text()


def test_the_changelog_has_the_version_and_its_day() -> None:
    headings = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "docs" / "changelog.md").read_text(), re.M)
    assert headings[0] == ("Unreleased", "")
    assert headings[1] == (tokenprune.__version__, str(citation()["date-released"]))


def test_the_citation_names_the_version_and_the_paper() -> None:
    found = citation()
    assert {"cff-version", "message", "title", "authors", "version", "date-released"} <= set(found)
    assert (found["cff-version"], found["type"], str(found["version"])) == ("1.2.0", "software", tokenprune.__version__)
    (paper,) = found["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Cheng", "Chen", "Jia"]
    assert paper["url"] == "https://arxiv.org/abs/2502.00433"


def test_hooks_before_a_commit_are_the_checks_of_make_lint() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]]
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    programs = [line.strip().replace("$(VENV)", ".venv") for line in lint.splitlines()[1:]]
    assert hooks == [program.replace(" --check", "").removesuffix(" .") for program in programs]


def test_the_workflow_runs_what_ci_runs() -> None:
    steps = yaml.safe_load((GITHUB / "workflows" / "test.yml").read_text())["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["bug", "new-model", "new-policy"])
def test_issue_templates_say_what_they_are_for(name: str) -> None:
    _, head, body = (GITHUB / "ISSUE_TEMPLATE" / f"{name}.md").read_text().split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "about", "labels"}
    assert len(body.splitlines()) > 5


def test_the_versions_that_the_documentation_names_are_those_of_the_tests() -> None:
    page = (ROOT / "docs" / "commands.md").read_text().split("\n## Versions\n")[1]
    rows = re.findall(r"^\| (\S+) \| (\d\S+) \| (\d\S+) \|$", page, re.M)
    lowest, pinned = (
        dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / name).read_text(), re.M))
        for name in ("constraints-lowest.txt", "constraints.txt")
    )
    assert rows == [(name, lowest[name], pinned[name]) for name, *_ in rows]
    declared = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    assert {"torch", "diffusers", "transformers"} <= {name for name, *_ in rows}
    for name, version_, _ in rows:
        assert f"{version_}.".startswith(f"{declared[name]}."), name


def citation() -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((GITHUB / "CITATION.cff").read_text())
    return found
