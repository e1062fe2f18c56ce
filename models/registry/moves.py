"""Moves an alias in a registry and in the ledger: both or neither, whatever is killed when.

Two stores cannot commit together, so a move is written ahead:

1. the ledger takes an *intent*;
2. the registry moves the alias;
3. the ledger takes the entry and drops the intent, in one transaction;
4. the registry keeps the ledger's head as an anchor.

A process that finds an intent nobody works on settles it before anything else: the registry already shows
the new holder → the entry is written; it does not → the intent is dropped. Readers settle first as well, so
nobody sees a moved alias without its entry. One lock file orders the movers of one machine.
"""

from pathlib import Path
from typing import Protocol

from filelock import FileLock

from leitstand.errors import IntegrityError, NotFoundError
from leitstand.types import LedgerEntry, utc_now
from models.ledger import SqliteLedger

__all__ = ["AliasMoves", "AliasStore"]

LOCK_TIMEOUT_S = 120.0


class AliasStore(Protocol):
    """The three things a registry must be able to do with an alias, without any ledger."""

    def alias_holder(self, name: str, alias: str) -> int | None: ...

    def point_alias(self, name: str, alias: str, version: int | None) -> None:
        """Points the alias at `version`; None removes it."""
        ...

    def anchor(self, name: str, head: str | None = None) -> str:
        """Keeps `head` (``sequence:hash``) beside the model, or returns the one kept; empty when there is none."""
        ...


class AliasMoves:
    """Binds one registry to its ledger."""

    def __init__(self, store: AliasStore, ledger: SqliteLedger, lock: Path) -> None:
        self._store = store
        self._ledger = ledger
        self._lock = FileLock(lock, timeout=LOCK_TIMEOUT_S)

    def move(
        self, name: str, alias: str, version: int | None, *, actor: str, reason: str, evidence: str = ""
    ) -> LedgerEntry:
        """Makes the move and returns its entry. A move to the present holder returns the entry there is."""
        with self._locked():
            self._settle()
            previous = self._store.alias_holder(name, alias)
            if version is None and previous is None:
                raise NotFoundError(f"'{name}' has no alias '{alias}'", hint=f"see `leitstand models list {name}`")
            last = self._last(name, alias)
            if last and last.version == version == previous:
                return last
            facts = {"name": name, "alias": alias, "version": version, "previous": previous}
            why = {"actor": actor, "reason": reason, "evidence": evidence, "at": utc_now()}
            self._ledger.intend(LedgerEntry(**facts, **why, sequence=0, previous_hash="", hash=""))
            self._store.point_alias(name, alias, version)
            entry = self._ledger.append(**facts, **why)
            self._store.anchor(name, _head(entry))
            return entry

    def settle(self) -> None:
        """Finishes or drops what a killed process left; costs one small read when there is nothing."""
        if self._ledger.pending():
            with self._locked():
                self._settle()

    def _settle(self) -> None:
        for intent in self._ledger.pending():
            if self._store.alias_holder(intent.name, intent.alias) == intent.version:
                chained = {"schema_version", "sequence", "previous_hash", "hash"}
                entry = self._ledger.append(**intent.model_dump(exclude=chained))
                self._store.anchor(intent.name, _head(entry))
            else:
                self._ledger.forget(intent.name, intent.alias)

    def verify(self, name: str) -> None:
        """Checks the ledger against what the registry says of `name`.

        Raises:
            IntegrityError: An alias points where no entry put it, or the anchored head is not in the ledger.
        """
        self.settle()
        entries = {entry.sequence: entry for entry in self._ledger.entries(name)}
        anchor = self._store.anchor(name)
        if anchor:
            sequence, _, digest = anchor.partition(":")
            entry = entries.get(int(sequence))
            if entry is None or entry.hash != digest:
                raise IntegrityError(
                    f"Promotion ledger: entry {sequence}, which the registry keeps as the last move of '{name}', "
                    + ("was changed" if entry else "is gone"),
                    hint="restore the ledger from a backup",
                )
        for alias in {entry.alias for entry in entries.values() if entry.alias}:
            last = self._last(name, alias)
            holder = self._store.alias_holder(name, alias)
            if last and last.version != holder:
                raise IntegrityError(
                    f"Alias '{name}@{alias}' points at {holder}, entry {last.sequence} says {last.version}",
                    hint=f"move it with `leitstand models promote {name}:VERSION --alias {alias} --reason ...`",
                )

    def _last(self, name: str, alias: str) -> LedgerEntry | None:
        return next((entry for entry in reversed(self._ledger.entries(name)) if entry.alias == alias), None)

    def _locked(self) -> FileLock:
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        return self._lock


def _head(entry: LedgerEntry) -> str:
    return f"{entry.sequence}:{entry.hash}"
