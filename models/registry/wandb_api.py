"""The calls to Weights & Biases that a registry needs, one method each, with errors translated.

Not exercised by this project's tests: they need W&B's cloud or server, which no test machine reaches. All
decisions are in `models.registry.wandb`, which the contract suite runs over an in-memory stand-in of this class.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
import wandb
from wandb.errors import AuthenticationError, CommError, UsageError

from leitstand.errors import (
    ConfigurationError,
    LeitstandError,
    NotFoundError,
    PermanentBackendError,
    TransientBackendError,
)
from leitstand.settings import Settings
from models.registry.wandb_rows import Row
from models.tracking.wandb import check_key

__all__ = ["WandbApi", "connect", "translate"]

REGISTRY = "wandb-registry-model"
KIND, ATTACHMENT_KIND = "model", "leitstand-attachment"
WAIT_S = 600
FORBIDDEN = {401, 403}
BUSY = {408, 429, 500, 502, 503, 504}


def connect(settings: Settings) -> "WandbApi":
    """Opens W&B's API.

    Raises:
        ConfigurationError: No key or no organisation is configured; W&B offers no registry offline.
    """
    key = check_key(settings)
    if key is None:
        raise ConfigurationError(
            "The W&B Registry needs a key: offline, W&B is a log and has no registry",
            hint="set LEITSTAND_TRACKING__API_KEY, or LEITSTAND_REGISTRY__KIND=mlflow",
        )
    if not settings.registry.entity:
        raise ConfigurationError(
            "The W&B Registry needs the organisation that owns it", hint="set LEITSTAND_REGISTRY__ENTITY"
        )
    return WandbApi(key, settings)


class WandbApi:
    """`WandbCalls` over W&B's SDK."""

    def __init__(self, key: str, settings: Settings) -> None:
        self._key = key
        self._project = settings.tracking.project
        self._base_url = settings.tracking.base_url
        self._collection = f"{settings.registry.entity}/{REGISTRY}"
        overrides = {"base_url": self._base_url} if self._base_url else {}
        with _translated("W&B"):
            self._api = wandb.Api(overrides=overrides, api_key=key, timeout=30)

    def names(self) -> list[str]:
        with _translated(self._collection):
            return [found.name for found in self._api.artifact_collections(self._collection, KIND)]

    def rows(self, name: str) -> list[Row]:
        path = f"{self._collection}/{name}"
        with _translated(path):
            if not self._api.artifact_collection_exists(path, KIND):
                return []
            return [_row(artifact) for artifact in self._api.artifacts(KIND, path)]

    def add(self, name: str, folder: Path, facts: dict[str, str]) -> int:
        artifact = wandb.Artifact(name, type=KIND, metadata=facts)
        artifact.add_dir(str(folder))
        with _translated(f"{self._collection}/{name}"), self._run() as run:
            logged = run.log_artifact(artifact).wait(WAIT_S)
            return _number(run.link_artifact(logged, f"{self._collection}/{name}").version)

    def download(self, name: str, version: int, target: Path) -> None:
        with _translated(f"{self._collection}/{name}"):
            self._artifact(name, version).download(root=str(target))

    def put_attachment(self, key: str, path: Path) -> None:
        artifact = wandb.Artifact(key, type=ATTACHMENT_KIND)
        artifact.add_file(str(path), name=path.name)
        with _translated(key), self._run() as run:
            run.log_artifact(artifact).wait(WAIT_S)

    def get_attachment(self, key: str, target: Path) -> None:
        with _translated(key):
            self._api.artifact(f"{self._project}/{key}:latest").download(root=str(target))

    def set_facts(self, name: str, version: int, facts: dict[str, str]) -> None:
        with _translated(f"{self._collection}/{name}"):
            artifact = self._artifact(name, version)
            artifact.metadata.update(facts)
            artifact.save()

    def set_alias(self, name: str, version: int, alias: str) -> None:
        with _translated(f"{self._collection}/{name}"):
            artifact = self._artifact(name, version)
            artifact.aliases.append(alias)
            artifact.save()

    def remove_alias(self, name: str, version: int, alias: str) -> None:
        with _translated(f"{self._collection}/{name}"):
            artifact = self._artifact(name, version)
            artifact.aliases.remove(alias)
            artifact.save()

    def note(self, name: str, text: str | None = None) -> str:
        with _translated(f"{self._collection}/{name}"):
            collection = self._api.artifact_collection(KIND, f"{self._collection}/{name}")
            if text is not None:
                collection.description = text
                collection.save()
            return collection.description or ""

    def _artifact(self, name: str, version: int) -> Any:
        return self._api.artifact(f"{self._collection}/{name}:v{version - 1}", type=KIND)

    def _run(self) -> Any:
        settings = wandb.Settings(api_key=self._key, silent=True)
        if self._base_url:
            settings.base_url = self._base_url
        return wandb.init(project=self._project, job_type="register", settings=settings)


def _row(artifact: Any) -> Row:
    created = datetime.fromisoformat(artifact.created_at)
    created = created.replace(tzinfo=created.tzinfo or UTC)
    return Row(_number(artifact.version), dict(artifact.metadata), tuple(artifact.aliases), created)


def _number(version: str) -> int:
    return int(version.removeprefix("v")) + 1


def translate(error: Exception, what: str) -> LeitstandError:
    """The error of our tree that `error` stands for; `what` names the collection or artifact."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    cause = getattr(error, "exc", None) or error
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    if isinstance(error, AuthenticationError | UsageError) or status in FORBIDDEN:
        return PermanentBackendError(
            f"{what}: W&B refused: {text}", hint="check LEITSTAND_TRACKING__API_KEY and the rights of its owner"
        )
    unreachable = (requests.ConnectionError, requests.Timeout, TimeoutError)
    if status in BUSY or isinstance(cause, unreachable):
        return TransientBackendError(f"{what}: W&B did not answer: {text}")
    if isinstance(error, ValueError) or "not found" in text.lower():
        return NotFoundError(f"{what}: {text}")
    return PermanentBackendError(f"{what}: {text}", hint="see https://status.wandb.com, or use the MLflow registry")


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (CommError, AuthenticationError, UsageError, wandb.Error, requests.RequestException, ValueError) as error:
        raise translate(error, what) from error
