"""Judges a labelled data set against its use case's expectations, and says what was found.

Rows that break a rule are set aside (`governance.rows`); whether the set as a whole may be trained on
is decided by Great Expectations (`governance.data_checks`). Reads and writes no files.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from governance.data_checks import check_columns, check_rows, check_sets
from governance.language import detect
from governance.rows import Quarantined, Row, Sorted, Source, excerpt, normalise, sort_rows
from governance.validation_report import Example, ExpectationResult, SplitFacts, ValidationReport
from leitstand.usecase import DataSpec, Expectations

__all__ = ["RULES_VERSION", "Validation", "unreadable_report", "validate"]

LANGUAGE_SAMPLE = 20_000
EXAMPLES_PER_KIND = 8
LENGTH_BINS = 24
RULES_VERSION = 1  # raise it when a rule changes, so that cached verdicts are not used again


@dataclass(frozen=True)
class Validation:
    """The report, and the rows behind it."""

    report: ValidationReport
    rows: Sorted


def validate(
    use_case: str, spec: DataSpec, sources: Sequence[Source], labels: Sequence[str], *, source_digest: str,
    golden: Sequence[Row] = (),
) -> Validation:  # fmt: skip
    """Sorts the rows and checks every expectation. Bad data does not raise: the report says `passed=False`."""
    results = check_columns(sources, spec)
    rows = sort_rows(sources, labels, spec.expectations, golden)
    languages: dict[str, list[str | None]] = {source.split: [] for source in sources}
    if all(result.passed for result in results):
        languages = {split: _languages(kept, spec.expectations) for split, kept in rows.kept.items()}
        results += check_rows(sources, rows, labels, spec.expectations)
        results += check_sets(sources, rows, labels, spec.expectations, languages)
    exact, stripped, normalised = _shared_texts(sources)
    report = ValidationReport(
        use_case=use_case,
        passed=all(result.passed for result in results),
        source_digest=source_digest,
        licence=spec.licence,
        attribution=spec.attribution,
        results=tuple(results),
        splits={source.split: _facts(source, rows, labels, languages[source.split]) for source in sources},
        leaked_exact=exact,
        leaked_stripped=stripped,
        leaked_normalised=normalised,
        label_count=len(labels),
        examples=tuple(_examples(rows)),
    )
    return Validation(report, rows)


def unreadable_report(use_case: str, spec: DataSpec, failures: Sequence[str], source_digest: str) -> ValidationReport:
    """The report on a data set of which a file could not be read at all."""
    results = tuple(
        ExpectationResult(
            name="readable file", split="source", expectation="file_is_readable", passed=False, observed=failure,
            allowed="a file of the format that its name says, in UTF-8",
        )
        for failure in failures
    )  # fmt: skip
    return ValidationReport(
        use_case=use_case, passed=False, source_digest=source_digest, licence=spec.licence,
        attribution=spec.attribution, results=results, splits={},
    )  # fmt: skip


def _languages(rows: Sequence[Row], limits: Expectations) -> list[str | None]:
    """Languages of at most 20,000 rows, evenly spread, so that the check stays within seconds."""
    step = max(1, -(-len(rows) // LANGUAGE_SAMPLE))
    if not limits.languages:
        return []
    return detect([row.text or "" for row in rows[::step]], limits.languages)


def _shared_texts(sources: Sequence[Source]) -> tuple[int, int, int]:
    texts = {source.split: {row.text for row in source.rows if row.text} for source in sources}
    train, test = texts.get("train", set()), texts.get("test", set())
    exact, stripped, normalised = (
        len({form(text) for text in train} & {form(text) for text in test}) for form in (str, str.strip, normalise)
    )
    return exact, stripped, normalised


def _facts(source: Source, rows: Sorted, labels: Sequence[str], languages: Sequence[str | None]) -> SplitFacts:
    kept = rows.kept[source.split]
    bad = [item for item in rows.quarantined if item.split == source.split]
    lengths = sorted(len(row.text or "") for row in kept)
    counts = Counter(row.label or "" for row in kept)
    found = Counter(language for language in languages if language)
    return SplitFacts(
        uri=source.uri,
        source_digest=source.digest,
        rows=len(source.rows),
        kept=len(kept),
        quarantined=len(bad),
        leaked=sum(item.split == source.split for item in rows.leaked),
        duplicates=len(kept) - len({normalise(row.text or "") for row in kept}),
        reasons=dict(Counter(item.reason.value for item in bad).most_common()),
        languages=dict(found.most_common()),
        language_undecided=sum(language is None for language in languages),
        language_checked=len(languages),
        labels={label: counts[label] for label in labels},
        length_bins=_bins(lengths),
        median_chars=lengths[len(lengths) // 2] if lengths else 0,
        longest_chars=lengths[-1] if lengths else 0,
    )


def _bins(lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(first, last, rows) of equally wide ranges of character counts; `lengths` is sorted."""
    if not lengths:
        return ()
    width = max(1, -(-(lengths[-1] + 1) // LENGTH_BINS))
    counts = Counter(length // width for length in lengths)
    return tuple((place * width, place * width + width - 1, counts[place]) for place in range(max(counts) + 1))


def _examples(rows: Sorted) -> Iterator[Example]:
    shown: Counter[str] = Counter()
    for item in sorted([*rows.quarantined, *rows.leaked], key=lambda item: item.reason.value):
        shown[item.reason.value] += 1
        if shown[item.reason.value] <= EXAMPLES_PER_KIND:
            yield _example(item)
    for split, kept in rows.kept.items():
        yield from _repeats(split, kept)


def _example(item: Quarantined) -> Example:
    return Example(
        split=item.split, row=item.number, kind=item.reason.value, detail=item.detail, label=item.label or "",
        excerpt=item.excerpt,
    )  # fmt: skip


def _repeats(split: str, kept: Sequence[Row]) -> Iterator[Example]:
    first: dict[str, int] = {}
    shown = 0
    for row in kept:
        text = normalise(row.text or "")
        if text in first and shown < EXAMPLES_PER_KIND:
            shown += 1
            yield Example(
                split=split, row=row.number, kind="duplicate", detail=f"the same text as row {first[text]}",
                label=row.label or "", excerpt=excerpt(row.text),
            )  # fmt: skip
        first.setdefault(text, row.number)
