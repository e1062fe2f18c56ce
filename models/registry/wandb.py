"""Registered versions in the W&B Registry: one linked artifact per version.

The artifact holds the model directory and the candidate's key, so that equal weights with other data are
another version; its metadata holds the facts. It is linked, and thereby visible, after W&B has committed all
files. Attachments are artifacts of their own, because a linked one cannot take more files. Aliases are W&B's;
their moves go to the ledger below `home`, whose head the collection's description keeps.

W&B orders concurrent links itself; one lock file orders the registrations of one machine.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from leitstand.errors import ConflictError, IntegrityError, NotFoundError
from leitstand.files import atomic_dir, atomic_path, digest_bytes, digest_file
from leitstand.settings import Settings
from leitstand.types import LedgerEntry, ModelCandidate, ModelRef, ModelVersion
from models.artifact import verify
from models.ledger import SqliteLedger
from models.registry import facts
from models.registry.moves import AliasMoves
from models.registry.wandb_rows import Row, WandbCalls

__all__ = ["WandbRegistry"]

KEY_FILE = "leitstand-key.txt"
OWN_ALIAS = re.compile(r"latest|v\d+")
ANCHOR = re.compile(r"\[leitstand ledger (\S+)\]")


class WandbRegistry:
    """`ModelRegistry` on W&B. Safe with threads and processes."""

    def __init__(self, calls: WandbCalls, ledger: SqliteLedger, home: Path) -> None:
        self._calls = calls
        self._home = home
        self._moves = AliasMoves(self, ledger, home / "aliases.lock")

    @classmethod
    def connect(cls, settings: Settings, ledger: SqliteLedger, home: Path) -> "WandbRegistry":
        """Opens W&B with the key and organisation of the settings."""
        from models.registry.wandb_api import connect  # noqa: PLC0415  -- W&B takes a second to import

        return cls(connect(settings), ledger, home)

    def register(self, candidate: ModelCandidate) -> ModelVersion:
        facts.check_candidate(candidate)
        with self._lock():
            found = self._find(candidate)
            if found is None:
                digests = self._put(candidate.key, candidate.attachments, {})
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch) / "model"
                    shutil.copytree(candidate.model_dir, folder)
                    (folder / KEY_FILE).write_text(candidate.key, encoding="utf-8")
                    self._calls.add(candidate.name, folder, facts.facts_of(candidate, digests))
                found = self._find(candidate)
        if found is None:
            raise IntegrityError(f"W&B lost a version of '{candidate.name}' that it had accepted")
        return found

    def get(self, ref: ModelRef) -> ModelVersion:
        return self._record(ref.name, self._row(ref))

    def versions(self, name: str) -> Sequence[ModelVersion]:
        self._moves.settle()
        return [self._record(name, row) for row in self._rows(name)]

    def names(self) -> Sequence[str]:
        return sorted(name for name in self._calls.names() if self._rows(name))

    def fetch(self, ref: ModelRef, target: Path) -> ModelVersion:
        version = self.get(ref)
        with atomic_dir(target) as part:
            self._calls.download(version.name, version.version, part)
            (part / KEY_FILE).unlink(missing_ok=True)
            if verify(part) != version.weights_digest:
                raise IntegrityError(f"The files of '{version.ref}' are another model", hint="register it again")
        return version

    def attachment(self, ref: ModelRef, name: str, target: Path) -> Path:
        row = self._row(ref)
        version = self._record(ref.name, row)
        digest = facts.attachments_of(row.facts).get(name)
        if digest is None:
            there = ", ".join(version.attachments) or "none"
            raise NotFoundError(f"'{version.ref}' has no attachment '{name}'", hint=f"it has: {there}")
        with tempfile.TemporaryDirectory() as scratch:
            self._calls.get_attachment(_attachment_key(version.key, name), Path(scratch))
            if digest_file(Path(scratch) / name) != digest:
                raise IntegrityError(f"'{name}' of '{version.ref}' was changed after it was attached")
            with atomic_path(target / name) as part:
                shutil.copyfile(Path(scratch) / name, part)
        return target / name

    def attach(self, ref: ModelRef, files: Mapping[str, Path]) -> None:
        with self._lock():
            row = self._row(ref)
            version = self._record(ref.name, row)
            digests = self._put(version.key, files, facts.attachments_of(row.facts))
            self._calls.set_facts(version.name, version.version, facts.attachments_fact(digests))

    def set_alias(self, ref: ModelRef, alias: str, *, actor: str, reason: str, evidence: str = "") -> LedgerEntry:
        version = self.get(ref)
        return self._moves.move(version.name, alias, version.version, actor=actor, reason=reason, evidence=evidence)

    def remove_alias(self, name: str, alias: str, *, actor: str, reason: str) -> LedgerEntry:
        return self._moves.move(name, alias, None, actor=actor, reason=reason)

    def verify_moves(self, name: str) -> None:
        self._moves.verify(name)

    def alias_holder(self, name: str, alias: str) -> int | None:
        return next((row.version for row in self._rows(name) if alias in row.aliases), None)

    def point_alias(self, name: str, alias: str, version: int | None) -> None:
        holder = self.alias_holder(name, alias)
        if version is not None:
            self._calls.set_alias(name, version, alias)
        elif holder is not None:
            self._calls.remove_alias(name, holder, alias)

    def anchor(self, name: str, head: str | None = None) -> str:
        text = self._calls.note(name)
        if head is not None:
            self._calls.note(name, f"{ANCHOR.sub('', text).strip()} [leitstand ledger {head}]".strip())
            return head
        kept = ANCHOR.search(text)
        return kept.group(1) if kept else ""

    def _put(self, key: str, files: Mapping[str, Path], there: Mapping[str, str]) -> dict[str, str]:
        """Stores attachments that are not `there`; returns all of them with their digests."""
        digests = {name: digest_file(path) for name, path in files.items()}
        for name, digest in digests.items():
            if there.get(name, digest) != digest:
                raise ConflictError(f"Another '{name}' is attached already", hint="attach it under another name")
        for name in digests.keys() - there.keys():
            with tempfile.TemporaryDirectory() as scratch:
                copy = shutil.copyfile(files[name], Path(scratch) / name)
                self._calls.put_attachment(_attachment_key(key, name), copy)
        return {**there, **digests}

    def _find(self, candidate: ModelCandidate) -> ModelVersion | None:
        wanted = facts.key_id(candidate.key)
        rows = [row for row in self._rows(candidate.name) if row.facts.get(facts.KEY_ID) == wanted]
        return self._record(candidate.name, rows[-1]) if rows else None

    def _rows(self, name: str) -> list[Row]:
        complete = [row for row in self._calls.rows(name) if facts.is_complete(row.facts)]
        return sorted(complete, key=lambda row: row.version, reverse=True)

    def _row(self, ref: ModelRef) -> Row:
        self._moves.settle()
        for row in self._rows(ref.name):
            if row.version == ref.version or (ref.version is None and ref.alias in row.aliases):
                return row
        raise NotFoundError(
            f"Model version '{ref}' is not in the W&B Registry",
            hint=f"list versions with `leitstand models list {ref.name}`",
        )

    def _record(self, name: str, row: Row) -> ModelVersion:
        aliases = tuple(alias for alias in row.aliases if not OWN_ALIAS.fullmatch(alias))
        return facts.version_of(name, row.version, row.facts, aliases=aliases, created_at=row.created_at)

    def _lock(self) -> FileLock:
        self._home.mkdir(parents=True, exist_ok=True)
        return FileLock(self._home / "register.lock")


def _attachment_key(key: str, name: str) -> str:
    """An artifact name that W&B accepts, one per attachment of a candidate."""
    return f"{facts.key_id(key)}-{digest_bytes(name.encode()).removeprefix('sha256:')[:16]}"
