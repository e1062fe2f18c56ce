"""Registered versions in MLflow: SQLite by default, another database or an MLflow server by URI.

A version becomes visible by one call that creates it with all its facts; before that, its files are in the
blob store and nothing points to them. MLflow's own artifact upload is not used: it neither resumes nor
keeps digests. A version's `source` is the plain folder or S3 prefix of its model, so MLflow's tools can
read it.

MLflow takes 2 s to import, 1 s to open a database and 4 s to create one: all of it happens on first use.
One lock file orders the registrations of one machine. Between machines that share a database, the lower
version number wins a race for the same key. The promotion ledger lies below `home`: move aliases of a
shared registry from one machine.
"""

import contextlib
import logging
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from leitstand.errors import (
    ConflictError,
    IntegrityError,
    LeitstandError,
    MissingExtraError,
    NotFoundError,
    PermanentBackendError,
    TransientBackendError,
)
from leitstand.ports import BlobStore
from leitstand.types import LedgerEntry, ModelCandidate, ModelRef, ModelVersion
from models.ledger import SqliteLedger
from models.registry import facts
from models.registry.mlflow_errors import translated
from models.registry.moves import AliasMoves
from models.registry.version_files import VersionFiles, folder

__all__ = ["MlflowRegistry"]

RETRY_S = 30.0
CONNECT_TIMEOUT_S = 5.0
PORTS = {"postgresql": 5432, "mysql": 3306, "http": 80, "https": 443}
PAGE = 200
ANCHOR = "leitstand.ledger_head"


class MlflowRegistry:
    """`ModelRegistry` on MLflow. Safe with threads and processes.

    Args:
        uri: SQLAlchemy URI, or URL of an MLflow server.
        blobs: Where the files of versions go.
        location: URI or folder of `blobs`, as MLflow's own tools shall see it.
        ledger: Takes every move of an alias.
        home: Folder for locks and notes of attempts.
    """

    def __init__(self, uri: str, blobs: BlobStore, location: str, ledger: SqliteLedger, home: Path) -> None:
        self._uri = uri
        self._shown = re.sub(r"://([^:/@]*):[^@/]*@", r"://\1:***@", uri)
        self._location = location
        self._home = home
        self._files = VersionFiles(blobs, home / "attempts")
        self._moves = AliasMoves(self, ledger, home / "aliases.lock")
        self._opened: Any = None

    def register(self, candidate: ModelCandidate) -> ModelVersion:
        facts.check_candidate(candidate)
        with self._lock("register.lock"):
            self._files.reclaim(keep=candidate.key, is_registered=lambda name, key: self._find(name, key) is not None)
            with self._files.attempt(candidate):
                found = self._find(candidate.name, candidate.key)
                if found is None:
                    self._create(candidate)
                    found = self._find(candidate.name, candidate.key)
        if found is None:
            raise IntegrityError(f"MLflow at {self._shown} lost a version of '{candidate.name}' that it had accepted")
        return found

    def get(self, ref: ModelRef) -> ModelVersion:
        return self._record(self._row(ref), self._aliases(ref.name))

    def versions(self, name: str) -> Sequence[ModelVersion]:
        self._moves.settle()
        aliases = self._aliases(name)
        return [self._record(row, aliases) for row in self._rows(name)]

    def names(self) -> Sequence[str]:
        found: list[str] = []
        token: str | None = None
        while True:
            page = self._call("models", "search_registered_models", max_results=PAGE, page_token=token)
            found += [model.name for model in page]
            token = page.token
            if not token:
                return sorted(name for name in found if self._rows(name))

    def fetch(self, ref: ModelRef, target: Path) -> ModelVersion:
        version = self.get(ref)
        self._files.fetch(version, target)
        return version

    def attachment(self, ref: ModelRef, name: str, target: Path) -> Path:
        row = self._row(ref)
        digest = facts.attachments_of(row.tags).get(name)
        return self._files.attachment(self._record(row, {}), name, digest, target)

    def attach(self, ref: ModelRef, files: Mapping[str, Path]) -> None:
        with self._lock("register.lock"):
            row = self._row(ref)
            version = self._record(row, {})
            all_of_them = self._files.attach(version.name, version.key, files, facts.attachments_of(row.tags))
            self._tag(version.ref, facts.attachments_fact(all_of_them))

    def set_alias(self, ref: ModelRef, alias: str, *, actor: str, reason: str, evidence: str = "") -> LedgerEntry:
        version = self.get(ref)
        return self._moves.move(
            version.name, alias, version.version, actor=actor, reason=reason, evidence=evidence
        )  # fmt: skip

    def remove_alias(self, name: str, alias: str, *, actor: str, reason: str) -> LedgerEntry:
        return self._moves.move(name, alias, None, actor=actor, reason=reason)

    def verify_moves(self, name: str) -> None:
        self._moves.verify(name)

    def alias_holder(self, name: str, alias: str) -> int | None:
        return self._aliases(name).get(alias)

    def point_alias(self, name: str, alias: str, version: int | None) -> None:
        if version is None:
            self._call(f"'{name}@{alias}'", "delete_registered_model_alias", name, alias)
        else:
            self._call(f"'{name}@{alias}'", "set_registered_model_alias", name, alias, str(version))

    def anchor(self, name: str, head: str | None = None) -> str:
        if head is not None:
            self._call(f"'{name}'", "set_registered_model_tag", name, ANCHOR, head)
            return head
        return self._call(f"'{name}'", "get_registered_model", name).tags.get(ANCHOR, "")

    def _create(self, candidate: ModelCandidate) -> None:
        """Stores the files, then makes the version visible."""
        try:
            attachments = self._files.store(candidate)
        except PermanentBackendError:
            with contextlib.suppress(LeitstandError):
                self._files.remove(candidate.name, candidate.key)
            raise
        self._ensure_model(candidate.name)
        row = self._call(
            f"'{candidate.name}'", "create_model_version", candidate.name, self._source(candidate),
            tags=facts.facts_of(candidate, attachments),
        )  # fmt: skip
        first = self._find(candidate.name, candidate.key)
        if first and first.version != int(row.version):
            self._call(f"'{candidate.name}:{row.version}'", "delete_model_version", candidate.name, row.version)

    def _ensure_model(self, name: str) -> None:
        with contextlib.suppress(ConflictError):
            self._call(f"'{name}'", "create_registered_model", name)

    def _source(self, candidate: ModelCandidate) -> str:
        return f"{self._location.rstrip('/')}/{folder(candidate.name, candidate.key)}/model"

    def _find(self, name: str, key: str) -> ModelVersion | None:
        """The version registered with `key`; the first one, should a race have made two."""
        rows = self._rows(name, f" and tags.`{facts.KEY_ID}` = '{facts.key_id(key)}'")
        return self._record(rows[-1], self._aliases(name)) if rows else None

    def _rows(self, name: str, further: str = "") -> list[Any]:
        """Complete versions as MLflow returns them, newest first."""
        facts.check_name(name)
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._call(
                f"'{name}'", "search_model_versions", f"name = '{name}'{further}", max_results=PAGE, page_token=token
            )
            found += [row for row in page if facts.is_complete(row.tags)]
            token = page.token
            if not token:
                return sorted(found, key=lambda row: int(row.version), reverse=True)

    def _row(self, ref: ModelRef) -> Any:
        self._moves.settle()
        known = self._rows(ref.name)
        wanted = ref.version if ref.version is not None else self.alias_holder(ref.name, ref.alias or "")
        for row in known:
            if int(row.version) == wanted:
                return row
        there = ", ".join(str(row.version) for row in known[:10])
        raise NotFoundError(
            f"Model version '{ref}' is not in the registry at {self._shown}",
            hint=f"list versions with `leitstand models list {ref.name}`; there are: {there or 'none'}",
        )

    def _aliases(self, name: str) -> dict[str, int]:
        try:
            model = self._call(f"'{name}'", "get_registered_model", name)
        except NotFoundError:
            return {}
        return {alias: int(version) for alias, version in model.aliases.items()}

    def _record(self, row: Any, aliases: Mapping[str, int]) -> ModelVersion:
        number = int(row.version)
        mine = tuple(alias for alias, version in aliases.items() if version == number)
        created = datetime.fromtimestamp(row.creation_timestamp / 1000, UTC)
        return facts.version_of(row.name, number, row.tags, aliases=mine, created_at=created)

    def _tag(self, ref: ModelRef, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._call(f"'{ref}'", "set_model_version_tag", ref.name, str(ref.version), key, value)

    def _lock(self, name: str) -> FileLock:
        self._home.mkdir(parents=True, exist_ok=True)
        return FileLock(self._home / name)

    def _call(self, what: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls MLflow's client; repeats what failed for a reason that passes, like a locked database."""
        what = f"MLflow at {self._shown}, {what}"
        with translated(what):
            client = self._client()

        def attempt() -> Any:
            with translated(what):
                return getattr(client, method)(*args, **kwargs)

        retrying = Retrying(
            retry=retry_if_exception_type(TransientBackendError), stop=stop_after_delay(RETRY_S),
            wait=wait_random_exponential(multiplier=0.05, max=2), reraise=True,
        )  # fmt: skip
        return retrying(attempt)

    def _client(self) -> Any:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> Any:
        """Opens MLflow, and creates its tables in one process while others wait."""
        self._require_answer()
        with self._lock("schema.lock"), _driver_present():
            from mlflow import MlflowClient  # noqa: PLC0415  -- two seconds that only the registry needs

            for noisy in ("mlflow.store.db.utils", "alembic"):
                logging.getLogger(noisy).setLevel(logging.WARNING)
            client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            client.search_registered_models(max_results=1)
        return client

    def _require_answer(self) -> None:
        """Fails at once when nothing listens at the URI: MLflow would try for 100 seconds, and say so each time."""
        place = urlsplit(self._uri)
        port = place.port or PORTS.get(place.scheme.partition("+")[0])
        if not place.hostname or port is None:
            return
        try:
            socket.create_connection((place.hostname, port), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise TransientBackendError(
                f"The registry at {self._shown} does not answer: {error}",
                hint="start it, or correct LEITSTAND_REGISTRY__URI",
            ) from error


@contextlib.contextmanager
def _driver_present() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"The registry needs the package '{error.name}', which is not installed",
            hint="for PostgreSQL write postgresql+psycopg://... and install 'psycopg[binary]'",
        ) from error
