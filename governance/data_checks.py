"""The expectations a labelled data set must meet, drawn from the use case and run by Great Expectations.

Row rules are checked over all rows of a source, each with the share that may be quarantined; set rules
over the rows that are kept. Every result names the key of ``data.expectations`` that governs it.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from governance.expectations import Check, Outcome, evaluate
from governance.rows import Reason, Sorted, Source, excerpt, normalise
from governance.validation_report import ExpectationResult
from leitstand.errors import bounded
from leitstand.usecase import DataSpec, Expectations

__all__ = ["check_columns", "check_rows", "check_sets"]

NAMED_LABELS = 5
_FLAGS = {
    Reason.NOT_TEXT: "texts are strings",
    Reason.NOT_UTF8: "texts are UTF-8",
    Reason.CONTROL: "no control characters",
    Reason.NO_LETTERS: "texts have letters",
    Reason.CONFLICTING_LABEL: "one label per text",
}


def check_columns(sources: Sequence[Source], spec: DataSpec) -> list[ExpectationResult]:
    """Every source has the text and the label column; a failure lists the columns there are."""
    wanted = (("data.text_column", spec.text_column), ("data.label_column", spec.label_column))
    results = []
    for source in sources:
        checks = [
            Check(f"column '{column}'", source.split, "columns", f"the column '{column}' ({key})", column=column)
            for key, column in wanted
        ]
        outcomes = evaluate({name: [] for name in source.columns}, checks)
        results += [_result(outcome, _observed_columns(outcome, source)) for outcome in outcomes]
    return results


def _observed_columns(outcome: Outcome, source: Source) -> str:
    if outcome.passed:
        return "present"
    close = difflib.get_close_matches(outcome.check.column, source.columns, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else ""
    return f"only {bounded(source.columns, 20) or 'no columns'} in {source.uri}{guess}"


def check_rows(
    sources: Sequence[Source], rows: Sorted, labels: Sequence[str], limits: Expectations
) -> list[ExpectationResult]:
    """The row rules over all rows of each source, as read."""
    results = []
    for source in sources:
        set_aside = {item.number: item.reason for item in rows.quarantined if item.split == source.split}
        reasons = [set_aside.get(row.number) for row in source.rows]
        table = {
            "text": [True if row.text and row.text.strip() else None for row in source.rows],
            "chars": [len(row.text.strip()) or None if row.text else None for row in source.rows],
            "label": _shown_labels(source, labels),
            "reason": [reason.value if reason else None for reason in reasons],
        }
        table |= {flag.value: [reason is flag for reason in reasons] for flag in _FLAGS}
        results += [
            _result(item, _observed(item)) for item in evaluate(table, _row_checks(source, labels, limits, reasons))
        ]
    return results


def _row_checks(
    source: Source, labels: Sequence[str], limits: Expectations, reasons: Sequence[Reason | None]
) -> list[Check]:
    share, split = limits.max_quarantined, source.split
    most = f"at most {share:.2%} of rows (max_quarantined)"
    bad_byte = "" if source.bad_byte is None else f", the first at byte offset {source.bad_byte:,} of {source.uri}"
    counted = Counter(reason.value for reason in reasons if reason).most_common()
    why = ": " + ", ".join(f"{reason} {count:,}" for reason, count in counted)
    length = f"{most} outside {limits.min_chars:,} to {limits.max_chars:,} characters (min_chars, max_chars)"
    return [
        Check("texts are present", split, "not_null", most, column="text", share=share),
        Check(
            "length of texts", split, "between", length, column="chars", share=share,
            low=limits.min_chars, high=limits.max_chars,
        ),
        *(
            Check(
                name, split, "in_set", most, column=flag.value, values=(False,), share=share,
                detail=bad_byte if flag is Reason.NOT_UTF8 else "",
            )
            for flag, name in _FLAGS.items()
        ),
        Check("labels are present", split, "not_null", most, column="label", share=share),
        Check(
            "labels are known", split, "in_set", most, column="label", values=tuple(labels), share=share,
            detail=_unknown(source, labels),
        ),
        Check("quarantined rows", split, "null", most, column="reason", share=share, detail=why),
    ]  # fmt: skip


def _shown_labels(source: Source, labels: Sequence[str]) -> list[str | None]:
    """Labels as the engine and the report may see them: known ones as they are, others masked and marked."""
    known = frozenset(labels)
    present = [row.label if row.label and row.label.strip() else None for row in source.rows]
    return [label if label is None or label in known else f"'{excerpt(label)}'" for label in present]


def _unknown(source: Source, labels: Sequence[str]) -> str:
    known = frozenset(labels)
    found = Counter(label for label in _shown_labels(source, labels) if label and label not in known).most_common()
    named = []
    for label, count in found[:NAMED_LABELS]:
        close = difflib.get_close_matches(label.strip("'"), labels, n=1)
        named.append(f"{label} in {count:,}" + (f", did you mean '{close[0]}'?" if close else ""))
    rest = f"; and {len(found) - NAMED_LABELS} more labels" if len(found) > NAMED_LABELS else ""
    return f": {'; '.join(named)}{rest}" if named else ""


def check_sets(
    sources: Sequence[Source], rows: Sorted, labels: Sequence[str], limits: Expectations,
    languages: Mapping[str, Sequence[str | None]],
) -> list[ExpectationResult]:  # fmt: skip
    """The set rules over kept rows: size, repeats, language, leakage, rows per label."""
    results = []
    before = {normalise(row.text or "") for row in rows.kept.get("train", [])}
    before |= {normalise(row.text or "") for row in _leaked_texts(rows, sources)}
    for source in sources:
        texts = [normalise(row.text or "") for row in rows.kept[source.split]]
        seen: set[str] = set()
        repeats = [text in seen or seen.add(text) is not None for text in texts]
        table: dict[str, Sequence[object]] = {"repeats": repeats}
        checks = [
            Check("rows", source.split, "rows", f"at least {limits.min_rows:,} (min_rows)", low=limits.min_rows),
            _flag("duplicates", source.split, "repeats", limits.max_duplicates, "max_duplicates"),
        ]
        if source.split == "test":
            table["in_train"] = [text in before for text in texts]
            checks.append(_flag("leakage into train", "test", "in_train", limits.max_leakage, "max_leakage"))
        results += [_result(item, _observed(item)) for item in evaluate(table, checks)]
        results += _check_language(source.split, languages[source.split], limits)
    counts = Counter(row.label for row in rows.kept.get("train", []))
    return results + _check_labels(counts, labels, limits)


def _leaked_texts(rows: Sorted, sources: Sequence[Source]) -> list:
    numbers = {item.number for item in rows.leaked}
    return [row for source in sources if source.split == "train" for row in source.rows if row.number in numbers]


def _flag(name: str, split: str, column: str, share: float, key: str) -> Check:
    allowed = f"at most {share:.2%} of rows ({key})"
    return Check(name, split, "in_set", allowed, column=column, values=(False,), share=share)


def _check_language(split: str, found: Sequence[str | None], limits: Expectations) -> list[ExpectationResult]:
    if not limits.languages:
        return []
    share = limits.max_language_mismatch
    allowed = f"at most {share:.2%} of decided rows not in {', '.join(limits.languages)} (max_language_mismatch)"
    check = Check("language", split, "in_set", allowed, column="language", values=limits.languages, share=share)
    return [_result(item, _observed(item)) for item in evaluate({"language": found}, [check])]


def _check_labels(counts: Counter, labels: Sequence[str], limits: Expectations) -> list[ExpectationResult]:
    allowed = f"at least {limits.min_rows_per_label:,} in train for each label (min_rows_per_label)"
    check = Check("rows per label", "train", "between", allowed, column="rows", low=limits.min_rows_per_label)
    (outcome,) = evaluate({"rows": [counts[label] for label in labels]}, [check])
    few = sorted((counts[label], label) for label in labels if counts[label] < limits.min_rows_per_label)
    least = min(counts[label] for label in labels)
    observed = bounded([f"{count} for '{label}'" for count, label in few]) if few else f"{least:,} for the rarest"
    return [_result(outcome, observed)]


def _observed(outcome: Outcome) -> str:
    if outcome.check.kind == "rows":
        return f"{outcome.checked:,}"
    share = outcome.broken / outcome.checked if outcome.checked else 0.0
    detail = outcome.check.detail if outcome.broken else ""
    return f"{outcome.broken:,} of {outcome.checked:,} ({share:.2%}){detail}"


def _result(outcome: Outcome, observed: str) -> ExpectationResult:
    check = outcome.check
    return ExpectationResult(
        name=check.name, split=check.split, expectation=outcome.expectation, column=check.column,
        passed=outcome.passed, observed=observed, allowed=check.allowed, checked=outcome.checked,
        broken=outcome.broken,
    )  # fmt: skip
