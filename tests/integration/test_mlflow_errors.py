"""A registry that is down, misspelt or busy says so at once, and never shows a password."""

import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)  # fmt: skip
from sqlalchemy.exc import OperationalError

from leitstand.errors import (
    ConfigurationError,
    ConflictError,
    MissingExtraError,
    NotFoundError,
    PermanentBackendError,
    TransientBackendError,
)  # fmt: skip
from leitstand.settings import RegistrySettings, Settings
from models.registry.mlflow_errors import translate
from models.registry.opening import open_registry
from tests.models_for_tests import candidate
from tests.servers import free_ports


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "http"])
def test_a_registry_that_is_down_is_worth_another_try_and_keeps_its_password(scheme: str, tmp_path: Path):
    uri = f"{scheme}://ada:secret@127.0.0.1:{free_ports(1)[0]}/db"
    with pytest.raises(TransientBackendError, match="does not answer") as caught:
        open_registry(Settings(home=tmp_path, registry=RegistrySettings(uri=uri))).names()
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(tmp_path: Path):
    uri = "mssql://ada:secret@localhost/db"
    with pytest.raises(MissingExtraError, match="pyodbc"):
        open_registry(Settings(home=tmp_path, registry=RegistrySettings(uri=uri))).names()


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path) -> Path:
    home = tmp_path / "home"
    (home / "mlflow").mkdir(parents=True)
    (home / "mlflow" / "registry.db").write_bytes(mlflow_database.read_bytes())
    return home


def test_a_name_that_could_leave_the_folder_is_refused_and_blocks_nothing(tmp_path: Path, home: Path):
    settings = Settings(home=home)
    with pytest.raises(ConfigurationError, match="no model name"):
        open_registry(settings).register(candidate(tmp_path / "model", name="../other"))
    assert open_registry(settings).register(candidate(tmp_path / "good")).version == 1


def test_a_database_that_another_program_holds_is_waited_for(tmp_path: Path, home: Path):
    registry = open_registry(Settings(home=home))
    registry.names()
    holder = sqlite3.connect(home / "mlflow" / "registry.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(1.0, holder.execute, ["COMMIT"])
    release.start()
    try:
        assert registry.register(candidate(tmp_path / "model")).version == 1
    finally:
        release.join()
        holder.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("gone", RESOURCE_DOES_NOT_EXIST), NotFoundError),
        (MlflowException("there", RESOURCE_ALREADY_EXISTS), ConflictError),
        (MlflowException("later", TEMPORARILY_UNAVAILABLE), TransientBackendError),
        (MlflowException("(sqlite3.OperationalError) database is locked"), TransientBackendError),
        (OperationalError("INSERT", {}, Exception("database is locked")), TransientBackendError),
        (MlflowException("(sqlite3.OperationalError) database or disk is full"), PermanentBackendError),
        (OperationalError("INSERT", {}, Exception("disk I/O error")), PermanentBackendError),
        (MlflowException("no", PERMISSION_DENIED), PermanentBackendError),
        (MlflowException("bad", INVALID_PARAMETER_VALUE), ConfigurationError),
    ],
)
def test_errors_of_mlflow_are_told_apart(error: Exception, expected: type[Exception]):
    ours = translate(error, "MLflow at sqlite:///x")
    assert type(ours) is expected
    assert "sqlite:///x" in ours.message


@pytest.mark.parametrize("code", sorted(ErrorCode.values()))
def test_every_code_of_mlflow_is_translated(code: int):
    assert "what" in translate(MlflowException("said", code), "what").message
