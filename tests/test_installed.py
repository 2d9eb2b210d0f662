"""Names that installed packages offer, and what is wrong with some."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tokenprune import Hold, Plan, SelectionPolicy
from tokenprune.errors import ConfigurationError
from tokenprune.installed import load, names_in
from tokenprune.plans.data import find_part, names_of
from tokenprune.plans.files import mapping_of, plan_of
from tokenprune.policies import NoisePolicy
from tokenprune.registry import find_adapter

GROUP = "tokenprune.policies"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def offer(site: Path, package: str, lines: str, group: str = GROUP) -> None:
    """Metadata of a package that offers this."""
    folder = site / f"{package}-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")


def test_a_name_of_one_package(site: Path) -> None:
    offer(site, "one", "noisy = tokenprune.policies.noise:NoisePolicy")
    assert "noisy" in names_in(GROUP)
    assert load(GROUP, "noisy") is NoisePolicy
    assert find_part(SelectionPolicy, "noisy", "policy") is NoisePolicy


def test_a_name_that_nobody_has(site: Path) -> None:
    offer(site, "one", "noisy = tokenprune.policies.noise:NoisePolicy")
    with pytest.raises(
        ConfigurationError, match=r"one entry point 'loud' of the group 'tokenprune\.policies' .* noisy"
    ):
        load(GROUP, "loud")
    with pytest.raises(ConfigurationError, match=r"policy\.name: expected one of CATPolicy.*, noisy, or module\.path"):
        plan_of({"policy": {"name": "loud"}})


def test_a_name_of_two_packages(site: Path) -> None:
    offer(site, "one", "noisy = tokenprune.policies.noise:NoisePolicy")
    offer(site, "two", "noisy = tokenprune.policies.random:RandomPolicy")
    message = (
        r"policy\.name: .*got tokenprune\.policies\.noise:NoisePolicy and tokenprune\.policies\.random:RandomPolicy"
    )
    with pytest.raises(ConfigurationError, match=message):
        plan_of({"policy": {"name": "noisy"}})


def test_the_same_from_two_packages_is_no_matter(site: Path) -> None:
    for package in ("one", "two"):
        offer(site, package, "noisy = tokenprune.policies.noise:NoisePolicy")
    assert load(GROUP, "noisy") is NoisePolicy


def test_a_name_of_the_package_itself_stays_its_own(site: Path) -> None:
    offer(site, "one", "CATPolicy = tokenprune.policies.noise:NoisePolicy")
    assert names_of(SelectionPolicy).count("CATPolicy") == 1
    assert find_part(SelectionPolicy, "CATPolicy", "policy").__name__ == "CATPolicy"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere.at_all:Policy", r"'noisy' .* nowhere\.at_all:Policy of one, cannot be imported: ModuleNotFoundError"),
        ("tokenprune.reuse:Hold", r"noisy: expected a class derived from SelectionPolicy, got <class"),
        ("tokenprune.policies.base:ScorePolicy", "expected a class that can be made and is a dataclass"),
    ],
)
def test_what_is_no_policy(site: Path, value: str, said: str) -> None:
    offer(site, "one", f"noisy = {value}")
    with pytest.raises(ConfigurationError, match=rf"policy\.name: .*{said}"):
        plan_of({"policy": {"name": "noisy"}})
    assert mapping_of(Plan(NoisePolicy(), reuse=Hold()))["policy"]["name"] == "NoisePolicy"


def test_an_adapter_that_cannot_be_imported(site: Path) -> None:
    offer(site, "one", "Linear = nowhere.at_all:module_map", "tokenprune.adapters")
    with pytest.raises(
        ConfigurationError, match=r"'Linear' of the group 'tokenprune\.adapters', nowhere\.at_all:module_map"
    ):
        find_adapter(nn.Linear(1, 1))
