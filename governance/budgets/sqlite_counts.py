"""The counts of `governance.budgets.sqlite` within one transaction: the same rules as the script for Redis."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from governance.budgets.port import Answer, BudgetChange, Charge, Level

__all__ = ["SCHEMA", "Counts"]

DAY_MS = 86_400_000
KEEP_MS = 8 * DAY_MS
SCHEMA = """
CREATE TABLE IF NOT EXISTS days (
    key TEXT NOT NULL, start INTEGER NOT NULL, ends INTEGER NOT NULL, spent INTEGER NOT NULL DEFAULT 0,
    reserved INTEGER NOT NULL DEFAULT 0, granted INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (key, start)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rates (key TEXT PRIMARY KEY, arrival INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    key TEXT NOT NULL, hold TEXT NOT NULL, ends INTEGER NOT NULL, PRIMARY KEY (key, hold)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (
    hold TEXT PRIMARY KEY, ends INTEGER NOT NULL, expired INTEGER NOT NULL, charges BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (number INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL);
"""
NOTHING = Level(0, 0, 0)
Found = tuple[int, int | None, int]


class Counts:
    """What may be done within one transaction. Methods are named as those of the port.

    Args:
        connection: Holds the write lock.
        now_us: The clock, microseconds since 1970.
    """

    def __init__(self, connection: sqlite3.Connection, now_us: int) -> None:
        self._do = connection.execute
        self._now_us, self._now = now_us, now_us // 1000
        self._checks: dict[str, Callable[[Charge, int], Found]] = {
            "d": self._day, "t": self._rate, "c": self._places
        }  # fmt: skip

    def hold(self, hold: str, charges: Sequence[Charge], lease_ms: int) -> Answer:
        now, again = self._now, self._record(hold) is not None
        refused, longest, left, values = -1, -1, [], []
        for index, charge in enumerate(charges):
            if charge.kind == "d" and not charge.start_ms <= now < charge.end_ms:
                return Answer("other day", now, index, 0, ())
            rest, wait, value = self._checks[charge.kind](charge, lease_ms)
            left.append(rest)
            values.append(value)
            if wait is not None and wait > longest:
                refused, longest = index, wait
        if not again and refused >= 0:
            return Answer("refused", now, refused, longest, tuple(left))
        if not again:
            self._book(hold, charges, lease_ms, values)
        return Answer("held", now, -1, 0, tuple(left))

    def settle(self, hold: str, used: Sequence[int], late: Sequence[Charge]) -> bool:
        record = self._record(hold)
        if record is None:
            for charge, amount in zip(late, used, strict=False):
                if charge.kind == "d":
                    self._add(charge, spent=amount)
            return False
        expired, charges = record
        for charge, amount in zip(charges, used, strict=True):
            if charge.kind == "d":
                self._add(charge, spent=amount - charge.amount * expired, reserved=charge.amount * (expired - 1))
            elif charge.kind == "c":
                self._do("DELETE FROM places WHERE key = ? AND hold = ?", (charge.key, hold))
        self._do("DELETE FROM holds WHERE hold = ?", (hold,))
        return True

    def renew(self, holds: Sequence[str], lease_ms: int) -> None:
        for hold in holds:
            record = self._record(hold)
            if record is None:
                continue
            expired, charges = record
            for charge in charges:
                if charge.kind == "d" and expired:
                    self._add(charge, spent=-charge.amount, reserved=charge.amount)
                elif charge.kind == "c":
                    self._take_place(charge, hold, lease_ms)
            self._do("UPDATE holds SET ends = ?, expired = 0 WHERE hold = ?", (self._now + lease_ms, hold))

    def reconcile(self, lease_ms: int) -> int:
        now = self._now
        self._do(
            "UPDATE holds SET ends = ? WHERE expired = 0 AND ends > ?", (now + lease_ms, now + 2 * lease_ms)
        )  # the clock jumped back
        query = "SELECT hold, charges FROM holds WHERE expired = 0 AND ends <= ? LIMIT 100"
        ended = self._do(query, (now,)).fetchall()
        for hold, record in ended:
            for charge in _charges(record):
                if charge.kind == "d":
                    self._add(charge, spent=charge.amount, reserved=-charge.amount)
            self._do("UPDATE holds SET ends = ?, expired = 1 WHERE hold = ?", (now + DAY_MS, hold))
        self._do("DELETE FROM holds WHERE expired = 1 AND ends <= ?", (now,))
        self._do("DELETE FROM days WHERE ends <= ?", (now - KEEP_MS,))
        self._do("DELETE FROM rates WHERE arrival <= ?", (self._now_us - DAY_MS * 1000,))
        return len(ended)

    def levels(self, charges: Sequence[Charge]) -> Sequence[Level]:
        return [self._level(charge) for charge in charges]

    def now_ms(self) -> int:
        return self._now

    def grant(self, charge: Charge, change: BudgetChange) -> None:
        self._add(charge, granted=change.amount)
        self._do("INSERT INTO changes (record) VALUES (?)", (change.model_dump_json(),))

    def reset(self, charge: Charge, change: BudgetChange) -> int:
        spent = self._level(charge).spent
        self._add(charge, spent=-spent)
        record = change.model_copy(update={"amount": spent}).model_dump_json()
        self._do("INSERT INTO changes (record) VALUES (?)", (record,))
        self._do("DELETE FROM changes WHERE number <= (SELECT MAX(number) FROM changes) - 10000")
        return spent

    def changes(self) -> Sequence[BudgetChange]:
        rows = self._do("SELECT record FROM changes ORDER BY number").fetchall()
        return [BudgetChange.model_validate_json(record) for (record,) in rows]

    def keys(self, start_ms: int) -> Sequence[str]:
        return [key for (key,) in self._do("SELECT key FROM days WHERE start = ? ORDER BY key", (start_ms,))]

    def _record(self, hold: str) -> tuple[int, list[Charge]] | None:
        row = self._do("SELECT expired, charges FROM holds WHERE hold = ?", (hold,)).fetchone()
        return None if row is None else (row[0], _charges(row[1]))

    def _level(self, charge: Charge) -> Level:
        if charge.kind == "c":
            query = "SELECT COUNT(*) FROM places WHERE key = ? AND ends > ?"
            return Level(0, self._do(query, (charge.key, self._now)).fetchone()[0], 0)
        query = "SELECT spent, reserved, granted FROM days WHERE key = ? AND start = ?"
        row = self._do(query, (charge.key, charge.start_ms)).fetchone() if charge.kind == "d" else None
        return Level(*row) if row else NOTHING

    def _day(self, charge: Charge, _: int) -> Found:
        spent, reserved, granted = self._level(charge)
        free = charge.limit + granted - spent - reserved
        if free < charge.amount:
            return max(free, 0), charge.end_ms - self._now, 0
        return free - charge.amount, None, 0

    def _rate(self, charge: Charge, _: int) -> Found:
        """A token bucket as the time at which its next token may be taken at the latest (GCRA, ITU-T I.371)."""
        now, span = self._now_us, charge.limit * charge.amount
        row = self._do("SELECT arrival FROM rates WHERE key = ?", (charge.key,)).fetchone()
        # Beyond a full bucket's span only after the clock jumped back: then it is empty, and fills from now on.
        arrival = min(max(row[0] if row else 0, now), now + span) + charge.amount
        if arrival > now + span:
            return 0, -(-(arrival - now - span) // 1000), 0
        return (now + span - arrival) // charge.amount, None, arrival

    def _places(self, charge: Charge, lease_ms: int) -> Found:
        busy = self._level(charge).reserved
        if busy < charge.limit:
            return charge.limit - busy - 1, None, 0
        ends = self._now + lease_ms
        self._do("UPDATE places SET ends = ? WHERE key = ? AND ends > ?", (ends, charge.key, ends + lease_ms))
        return 0, 1000, 0

    def _book(self, hold: str, charges: Sequence[Charge], lease_ms: int, arrivals: Sequence[int]) -> None:
        for charge, arrival in zip(charges, arrivals, strict=True):
            if charge.kind == "d":
                self._add(charge, reserved=charge.amount)
            elif charge.kind == "t":
                self._do("INSERT OR REPLACE INTO rates VALUES (?, ?)", (charge.key, arrival))
            else:
                self._do("DELETE FROM places WHERE key = ? AND ends <= ?", (charge.key, self._now))
                self._take_place(charge, hold, lease_ms)
        record = orjson.dumps([tuple(charge) for charge in charges])
        self._do("INSERT INTO holds VALUES (?, ?, 0, ?)", (hold, self._now + lease_ms, record))

    def _take_place(self, charge: Charge, hold: str, lease_ms: int) -> None:
        self._do("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (charge.key, hold, self._now + lease_ms))

    def _add(self, charge: Charge, *, spent: int = 0, reserved: int = 0, granted: int = 0) -> None:
        self._do(
            "INSERT INTO days VALUES (?, ?, ?, MAX(0, ?4), MAX(0, ?5), MAX(0, ?6)) ON CONFLICT DO UPDATE SET "
            "spent = MAX(0, spent + ?4), reserved = MAX(0, reserved + ?5), granted = MAX(0, granted + ?6)",
            (charge.key, charge.start_ms, charge.end_ms, spent, reserved, granted),
        )


def _charges(record: Any) -> list[Charge]:
    return [Charge(*charge) for charge in orjson.loads(record)]
