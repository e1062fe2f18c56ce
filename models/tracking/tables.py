"""Tables of several runs joined by their key column: slices, labels, confusions. Pure."""

from collections.abc import Sequence
from typing import Any

from models.tracking.reading import LoggedTable

__all__ = ["confusion_rows", "keyed_table", "pivoted"]

MAX_ROWS = 200
TOP_CONFUSIONS = 15


def keyed_table(tables: Sequence[LoggedTable | None]) -> dict[str, Any] | None:
    """Joins tables by their first column.

    Returns:
        ``key`` (its name), ``columns`` (the numeric ones), ``rows`` of ``key`` and ``cells``; a cell holds
        ``column`` and ``values``, one per run, None where a run lacks it. None when the first column is not
        a key, or no column holds numbers.
    """
    present = [table for table in tables if table]
    key, columns = present[0].columns[0], list(present[0].columns[1:])
    by_key = [{str(row[0]): row for row in table.rows} if table else {} for table in tables]
    if any(table and len(rows) < len(table.rows) for table, rows in zip(tables, by_key, strict=True)):
        return None
    numeric = [column for column in columns if _holds_numbers(column, present)]
    if not numeric:
        return None
    names = list(dict.fromkeys(name for rows in by_key for name in rows))
    rows = [
        {"key": name, "cells": [{"column": c, "values": _values(c, name, tables, by_key)} for c in numeric]}
        for name in names[:MAX_ROWS]
    ]
    return {"key": key, "columns": numeric, "rows": rows, "left_out": max(0, len(names) - MAX_ROWS)}


def pivoted(table: LoggedTable) -> LoggedTable:
    """A table of (key, ``metric``, ``value``, ...) rows as one row per key and one column per metric.

    Any other table comes back unchanged.
    """
    key, *rest = table.columns
    if rest[:2] != ["metric", "value"]:
        return table
    metrics = list(dict.fromkeys(row[1] for row in table.rows))
    values = {(row[0], row[1]): row[2] for row in table.rows}
    keys = dict.fromkeys(row[0] for row in table.rows)
    rows = tuple((name, *(values.get((name, metric)) for metric in metrics)) for name in keys)
    return LoggedTable(columns=(key, *map(str, metrics)), rows=rows)


def confusion_rows(tables: Sequence[LoggedTable | None]) -> list[dict[str, Any]]:
    """The confusions that differ most between runs, then the most frequent; [] when these are no confusions.

    Returns:
        Rows with ``label``, ``predicted``, ``counts`` (one per run) and ``share`` (of the largest count).
    """
    wanted = ("label", "predicted", "count")
    if any(table and table.columns != wanted for table in tables):
        return []
    counts = [{(row[0], row[1]): int(row[2]) for row in table.rows} if table else {} for table in tables]
    pairs = {pair for count in counts for pair in count if pair[0] != pair[1]}
    rows = [
        {"label": label, "predicted": predicted, "counts": [count.get((label, predicted), 0) for count in counts]}
        for label, predicted in pairs
    ]
    rows.sort(key=lambda row: (min(row["counts"]) - max(row["counts"]), -max(row["counts"]), row["label"]))
    rows = rows[:TOP_CONFUSIONS]
    largest = max((max(row["counts"]) for row in rows), default=1)
    for row in rows:
        row["shares"] = [round(100 * count / largest) for count in row["counts"]]
    return rows


def _holds_numbers(column: str, tables: Sequence[LoggedTable]) -> bool:
    places = [(table, table.columns.index(column)) for table in tables if column in table.columns]
    values = [row[place] for table, place in places for row in table.rows if row[place] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _values(column: str, key: str, tables: Sequence[LoggedTable | None], by_key: Sequence[dict[str, Any]]) -> list[Any]:
    return [
        rows[key][table.columns.index(column)] if table and key in rows and column in table.columns else None
        for table, rows in zip(tables, by_key, strict=True)
    ]
