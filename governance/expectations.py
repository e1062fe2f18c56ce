"""Great Expectations behind one function: expectations over facts of each row, in and out as plain values.

The engine sees lengths, flags, labels and languages, never the texts: nothing of them can reach its
results. The context lives in memory, asks nothing of the network and draws no progress bars.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leitstand.errors import MissingExtraError

__all__ = ["Check", "Outcome", "evaluate"]

Kind = Literal["columns", "rows", "in_set", "not_null", "null", "between"]


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation on one column of a table, or on the table itself.

    `share` is the greatest share of rows, of those with a value, that may break it. `allowed` says in
    words what is expected, for people.
    """

    name: str
    split: str
    kind: Kind
    allowed: str
    column: str = ""
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    share: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What Great Expectations said about one check. `checked` counts the rows that have a value."""

    check: Check
    expectation: str
    passed: bool
    checked: int
    broken: int


def evaluate(table: dict[str, Sequence[Any]], checks: Sequence[Check]) -> list[Outcome]:
    """Validates a table (column name to values, all of one length) against the checks, in their order.

    Raises:
        MissingExtraError: Great Expectations is not installed.
    """
    if not checks:
        return []
    gx, pd = _engine()
    frame = pd.DataFrame({name: pd.Series(list(values), dtype=object) for name, values in table.items()})
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False}
    batch = (
        context.data_sources.add_pandas("rows")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": frame})
    )
    suite = gx.ExpectationSuite(
        name="checks", expectations=[_expectation(gx, check, i) for i, check in enumerate(checks)]
    )
    result = batch.validate(suite, result_format={"result_format": "BASIC", "partial_unexpected_count": 0})
    by_place = {item.expectation_config.meta["place"]: item for item in result.results}
    return [_outcome(check, by_place[place]) for place, check in enumerate(checks)]


def _engine() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside its own imports say nothing about the data
        try:
            import great_expectations as gx  # noqa: PLC0415  -- takes four seconds
            import pandas as pd  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError(
                "Data validation needs great_expectations", hint="pip install 'leitstand[governance]'"
            ) from error
    # It announces a temporary folder per check, from a logger whose level its own module sets.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    return gx, pd


def _expectation(gx: Any, check: Check, place: int) -> Any:
    kinds = gx.expectations
    common: dict[str, Any] = {"meta": {"place": place}}
    column = common | {"column": check.column, "mostly": round(1 - check.share, 9)}
    match check.kind:
        case "columns":
            return kinds.ExpectColumnToExist(column=check.column, **common)
        case "rows":
            return kinds.ExpectTableRowCountToBeBetween(min_value=check.low, max_value=check.high, **common)
        case "in_set":
            return kinds.ExpectColumnValuesToBeInSet(value_set=list(check.values), **column)
        case "not_null":
            return kinds.ExpectColumnValuesToNotBeNull(**column)
        case "null":
            return kinds.ExpectColumnValuesToBeNull(**column)
        case "between":
            return kinds.ExpectColumnValuesToBeBetween(min_value=check.low, max_value=check.high, **column)


def _outcome(check: Check, item: Any) -> Outcome:
    if item.exception_info.get("raised_exception"):
        raise RuntimeError(f"expectation '{check.name}' could not run: {item.exception_info['exception_message']}")
    found = item.result
    checked = int(found.get("observed_value", found.get("element_count", 0)) or 0)
    if check.kind in ("in_set", "between"):
        checked -= int(found.get("missing_count", 0))
    return Outcome(
        check, item.expectation_config.type, bool(item.success), checked, int(found.get("unexpected_count", 0))
    )
