"""What the page on failures shows works as it is written."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from governance.routes.opening import open_route_store
from leitstand.commands.routes import app
from leitstand.settings import Settings
from leitstand.specs.resilience import ResilienceSpec


@pytest.fixture
def page(project: Path) -> str:
    return (project / "docs" / "how-to" / "survive-failures.md").read_text()


def test_its_commands_set_what_the_text_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEITSTAND_HOME", str(tmp_path))
    commands = re.findall(r"^leitstand routes (set .*)$", page, flags=re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    stable, fallback, pinned, second, freed = open_route_store(Settings(home=tmp_path)).history("support")
    assert (stable.fallback, fallback.fallback and fallback.fallback.version) == (None, 3)
    assert pinned.tenants["acme"].target.version == 6
    assert second.tenants["acme"].fallback == fallback.fallback
    assert freed.tenants == {} and freed.fallback == fallback.fallback


def test_its_use_case_file_is_understood_and_shows_defaults_where_it_says_so(page: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    shown = ResilienceSpec.model_validate(yaml.safe_load(block)["resilience"])
    standard = ResilienceSpec()
    assert (shown.breaker, shown.retries, shown.hedging) == (standard.breaker, standard.retries, standard.hedging)
    assert shown.keep_for_fallback == standard.keep_for_fallback
