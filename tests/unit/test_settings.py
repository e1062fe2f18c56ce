"""Settings come from the environment, and a wrong one is named by its variable."""

from pathlib import Path

import pytest

from leitstand.errors import ConfigurationError
from leitstand.settings import load_settings, quiet_environment


def test_defaults_keep_everything_below_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEITSTAND_HOME", raising=False)
    settings = load_settings()
    assert settings.root == tmp_path / ".leitstand"
    assert settings.serving.host == "127.0.0.1"


def test_nested_variables_reach_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEITSTAND_LOCAL__PREFECT_PORT", "4777")
    settings = load_settings()
    assert settings.local.prefect_port == 4777
    assert quiet_environment(settings, base={})["PREFECT_API_URL"] == "http://127.0.0.1:4777/api"


def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEITSTAND_SERVING__WORKERS", "none")
    with pytest.raises(ConfigurationError, match="LEITSTAND_SERVING__WORKERS"):
        load_settings()


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEITSTAND_TRACKING__API_KEY", "very-secret-key")
    assert "very-secret-key" not in repr(load_settings())


def test_an_api_key_never_travels_in_clear_text_outside_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEITSTAND_ENVIRONMENT", "production")
    monkeypatch.setenv("LEITSTAND_LINEAGE__URL", "http://marquez:5000")
    monkeypatch.setenv("LEITSTAND_LINEAGE__API_KEY", "k")
    with pytest.raises(ConfigurationError, match="must be https"):
        load_settings()


def test_what_the_user_sets_wins_over_our_defaults() -> None:
    settings = load_settings()
    assert quiet_environment(settings, base={"BENTOML_HOME": "/elsewhere"})["BENTOML_HOME"] == "/elsewhere"
    assert quiet_environment(settings, base={})["DO_NOT_TRACK"] == "true"
