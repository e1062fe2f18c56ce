"""Translates what MLflow and the database below it raise into the error tree."""

import contextlib
from collections.abc import Iterator

from leitstand.errors import (
    ConfigurationError,
    ConflictError,
    LeitstandError,
    NotFoundError,
    PermanentBackendError,
    TransientBackendError,
)

__all__ = ["translate", "translated"]

PASSING = ("database is locked", "database table is locked", "timed out", "Connection refused", "Connection reset")
FULL = ("disk is full", "disk I/O error", "No space left")
MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ENDPOINT_NOT_FOUND"}
BUSY = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
DENIED = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}


def translate(error: Exception, what: str) -> LeitstandError:  # noqa: PLR0911  -- a table, one line per kind
    """The error of our tree that `error` stands for; `what` names the registry and the object."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    code = getattr(error, "error_code", "")
    whole = f"{error} {error.__cause__ or ''}"
    if any(sign in whole for sign in FULL):
        return PermanentBackendError(
            f"{what}: the disk is full: {text}",
            hint="free space below LEITSTAND_HOME, then run again; nothing was registered by halves",
        )
    if any(sign in whole for sign in PASSING) or code in BUSY:
        return TransientBackendError(f"{what}: {text}")
    if code in MISSING:
        return NotFoundError(f"{what}: {text}", hint="see `leitstand models list`")
    if code == "RESOURCE_ALREADY_EXISTS":
        return ConflictError(f"{what}: {text}")
    if code in DENIED:
        return PermanentBackendError(f"{what}: {text}", hint="set MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN")
    if code == "INVALID_PARAMETER_VALUE":
        return ConfigurationError(f"{what}: {text}", hint="correct the name")
    return PermanentBackendError(f"{what}: {text}", hint="check LEITSTAND_REGISTRY__URI and that the registry runs")


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raises every error of MLflow or SQLAlchemy in the block as an error of our tree."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  -- see models.registry.mlflow
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise translate(error, what) from error
