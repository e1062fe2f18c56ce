"""Boundaries that no import contract can express."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

PACKAGES = ("leitstand", "governance", "models", "monitors", "services", "flows")
ENVIRONMENT = re.compile(r"os\.(environ|getenv)\b")


def test_only_settings_read_the_environment(project: Path) -> None:
    readers = {
        str(path.relative_to(project))
        for package in PACKAGES
        for path in (project / package).rglob("*.py")
        if ENVIRONMENT.search(path.read_text())
    }
    assert readers == {"leitstand/settings.py"}


def test_every_top_level_package_stands_in_the_import_contract(project: Path) -> None:
    contract = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["importlinter"]
    packages = {path.parent.name for path in project.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == set(contract["root_packages"]) == set(PACKAGES)


def test_no_other_distribution_provides_our_package_names() -> None:
    for package, owners in importlib.metadata.packages_distributions().items():
        if package in PACKAGES:
            assert set(owners) <= {"leitstand"}, (package, owners)


def test_every_extra_states_a_lower_bound_for_each_requirement(project: Path) -> None:
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    loose = [r for name, rs in extras.items() for r in rs if ">=" not in r and not r.startswith("leitstand[")]
    assert loose == []
