"""Backups of the state: every SQLite file below `home` that cannot be made again, copied while it is used.

    BACKUPS/20261124T023000Z/<path below home>      a consistent copy (SQLite's online backup)
    BACKUPS/20261124T023000Z/backup.json            `Backup`: each file with its digest and row counts

A backup counts when it has been restored into a folder of its own, opened and found whole; that is done each time.
Kept texts are left out on purpose: a copy would outlive their erasure. Model files, reports and the inference
log are files that only ever appear, and belong to the backup of the disk or bucket.
"""

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from leitstand.errors import IntegrityError, NotFoundError, PermanentBackendError
from leitstand.files import atomic_dir, digest_file, write_text
from leitstand.settings import Settings

__all__ = ["Backup", "BackupFile", "back_up", "backups", "backups_folder", "restore", "state_files", "verify_backup"]

RECORD = "backup.json"
KNOWN = (
    "registry/ledger.db", "mlflow/registry.db", "routes/routes.db", "rollouts/rollouts.db", "feedback/feedback.db",
    "monitors/decisions.db", "monitors/alerts.db", "monitors/retrainings.db",
)  # fmt: skip


class BackupFile(BaseModel):
    """One copied database."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    digest: str
    rows: dict[str, int]


class Backup(BaseModel):
    """One backup."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    made_at: AwareDatetime
    files: tuple[BackupFile, ...]


def backups_folder(settings: Settings) -> Path:
    """Where backups lie."""
    chosen = settings.checks.backups
    return Path(chosen).expanduser().resolve() if chosen else settings.root / "backups"


def state_files(settings: Settings) -> list[str]:
    """The databases there are, relative to `home`. Those that the settings put elsewhere are not ours to copy."""
    return [name for name in KNOWN if (settings.root / name).is_file()]


def back_up(settings: Settings, *, now: datetime) -> Path:
    """Copies the state, proves that the copy can be restored, and removes the oldest beyond `keep_backups`.

    Raises:
        PermanentBackendError: A file cannot be copied (full disk, rights).
        IntegrityError: A database is damaged, or the copy is not what was copied.
    """
    folder = backups_folder(settings)
    target = folder / f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    try:
        with atomic_dir(target) as part:
            files = [_copy(settings.root / name, part / name, name) for name in state_files(settings)]
            write_text(part / RECORD, Backup(made_at=now, files=tuple(files)).model_dump_json(indent=1))
            with tempfile.TemporaryDirectory(dir=folder, prefix=".restored-") as restored:
                restore(part, Path(restored))
    except (OSError, sqlite3.OperationalError) as error:
        raise PermanentBackendError(
            f"The state cannot be copied to {folder}: {error}", hint="check disk space and rights"
        ) from error
    for old in list(backups(settings))[: -settings.checks.keep_backups]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def backups(settings: Settings) -> Sequence[Path]:
    """The complete backups, oldest first."""
    return sorted(path.parent for path in backups_folder(settings).glob(f"[0-9]*/{RECORD}"))


def restore(backup: Path, target: Path) -> Backup:
    """Copies a backup's databases below `target`, where none of them may be, and verifies each.

    Raises:
        NotFoundError: There is no backup.
        IntegrityError: It is damaged.
        PermanentBackendError: A database is there already.
    """
    record = _read(backup)
    for file in record.files:
        place = target / file.path
        if place.exists():
            raise PermanentBackendError(
                f"{place} is there already", hint="stop everything with `leitstand down` and move the old file away"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(backup / file.path, place)
    verify_backup(target, record)
    return record


def verify_backup(folder: Path, record: Backup) -> None:
    """Opens every database in `folder` and compares it with the record.

    Raises:
        IntegrityError: One is damaged, or not the one that was copied.
    """
    for file in record.files:
        path = folder / file.path
        if digest_file(path) != file.digest:
            raise IntegrityError(f"{path} is not the file that was backed up", hint="take an earlier backup")
        if _counted(path) != file.rows:
            raise IntegrityError(f"{path} does not hold the rows that were backed up", hint="take an earlier backup")


def _copy(source: Path, target: Path, name: str) -> BackupFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as original,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"{source} is damaged: {error}", hint="restore it from a backup") from error
    return BackupFile(path=name, rows=_counted(target), digest=digest_file(target))


def _counted(path: Path) -> dict[str, int]:
    """Rows of every table, after SQLite's own check of the file."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            (said,) = connection.execute("PRAGMA integrity_check").fetchone()
            if said != "ok":
                raise IntegrityError(f"{path} is damaged: {said}", hint="take an earlier backup")
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            quoted = {name: '"' + name.replace('"', '""') + '"' for name in names}
            return {
                name: connection.execute(f"SELECT COUNT(*) FROM {quoted[name]}").fetchone()[0]  # noqa: S608
                for name in sorted(names)
            }
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint="take an earlier backup") from error


def _read(folder: Path) -> Backup:
    try:
        return Backup.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"No backup in {folder}", hint="backups are folders named by their time") from error
    except ValidationError as error:
        raise IntegrityError(f"{folder / RECORD} is damaged", hint="take an earlier backup") from error
