"""`leitstand routes`: what one call changes, and what it leaves alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leitstand.commands.routes import app
from leitstand.errors import ConfigurationError

STABLE = "1=http://127.0.0.1:3001"
SMALL = "9=http://127.0.0.1:3009"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEITSTAND_HOME", str(tmp_path))


def change(*options: str) -> dict[str, Any]:
    """The table that `routes set` wrote."""
    arguments = ["set", "support", *options, "--reason", "test", "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)[0]


def test_fallback_and_tenants_are_set_and_taken_away_one_by_one() -> None:
    change("--stable", STABLE)
    table = change("--fallback", SMALL, "--tenant", f"acme={STABLE}", "--tenant", f"umbrella={SMALL}")
    assert table["fallback"] == {"version": 9, "url": "http://127.0.0.1:3009"} | table["fallback"]
    assert {name: route["target"]["version"] for name, route in table["tenants"].items()} == {"acme": 1, "umbrella": 9}
    table = change("--tenant-fallback", f"acme={SMALL}")
    assert table["tenants"]["acme"]["fallback"]["version"] == 9
    table = change("--tenant", f"acme={SMALL}")
    assert table["tenants"]["acme"]["fallback"]["version"] == 9, "a new target keeps the tenant's fallback"
    table = change("--tenant", "acme=none", "--canary", SMALL, "--percent", "5")
    assert set(table["tenants"]) == {"umbrella"} and table["fallback"]["version"] == 9
    assert change("--fallback", "none")["fallback"] is None


def test_the_list_shows_fallback_and_tenants() -> None:
    change("--stable", STABLE, "--fallback", SMALL, "--tenant", f"acme={SMALL}")
    shown = CliRunner().invoke(app, ["list"], catch_exceptions=False, env={"COLUMNS": "400"}).stdout
    assert "fallback" in shown and "acme: 9=http" in shown


@pytest.mark.parametrize(
    "options",
    [("--tenant", "acme"), ("--tenant", f"={SMALL}"), ("--tenant-fallback", f"acme={SMALL}"), ("--fallback", "9")],
)
def test_what_is_not_understood_changes_nothing(options: tuple[str, str]) -> None:
    change("--stable", STABLE)
    with pytest.raises(ConfigurationError):
        change(*options)
    assert change("--percent", "0")["revision"] == 2
