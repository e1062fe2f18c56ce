"""Labelled feedback becomes training rows: joined with texts, deduplicated, checked, weighted by age.

Pure. Every row that is not used is set aside with its reason; nothing disappears. The result does not depend
on the order of the feedback, has no clock (ages count from the newest feedback), and never holds a text of the
test split or of the golden set. Whether a text is held out follows from the text alone, so one that was
once in test is never trained on later.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from governance.feedback_log import effective
from governance.rows import excerpt, normalise, text_defect, text_digest
from leitstand.types import Feedback
from leitstand.usecase import Expectations, FeedbackSpec
from models.source_trust import Guesses, Opinion, SourceFinding, examine_sources

__all__ = [
    "Boundaries", "FeedbackRow", "Selection", "SetAside", "TrainingRow", "join_texts", "recency_weight", "select_rows",
    "standing_labels",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """One source's standing label for one text."""

    text: str
    label: str
    source: str
    at: datetime
    request_id: str = ""
    index: int = 0

    @property
    def key(self) -> str:
        """The form in which two texts count as the same."""
        return normalise(self.text)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A row for training or test; `weight` in (0, 1], `origins` the labels that agreed, sorted by source."""

    text: str
    label: str
    at: datetime
    weight: float
    origins: tuple[FeedbackRow, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Who gave the label, sorted."""
        return tuple(row.source for row in self.origins)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that is not used: a digest and a short masked excerpt, never the whole text."""

    reason: str
    detail: str
    source: str
    label: str
    request_id: str
    index: int
    text_digest: str
    excerpt: str


@dataclass(frozen=True)
class Boundaries:
    """What the rows are measured against. Keys are normalised texts.

    Attributes:
        base: Key to label of the base's training rows.
        rows: Number of the base's training rows.
        labels: Labels of the base.
        test: Keys of the base's test rows.
        golden: Keys of the golden set.
    """

    base: Mapping[str, str]
    rows: int
    labels: tuple[str, ...]
    test: frozenset[str] = frozenset()
    golden: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Selection:
    """What became of the feedback.

    Attributes:
        train: Rows to learn from, oldest first.
        test: Rows held out, oldest first.
        new_labels: Admitted labels that the base lacks, sorted.
        in_base: Rows dropped because the base holds the same text with the same label.
        set_aside: Everything else, ordered.
        findings: What the tests said about each source.
    """

    train: list[TrainingRow]
    test: list[TrainingRow]
    new_labels: tuple[str, ...]
    in_base: int
    set_aside: list[SetAside]
    findings: list[SourceFinding] = field(default_factory=list)


def standing_labels(entries: Iterable[Feedback]) -> list[Feedback]:
    """Each source's standing label for each answer; withdrawn ones and mere ratings are left out."""
    by_source: dict[str, list[Feedback]] = defaultdict(list)
    for entry in entries:
        by_source[entry.source].append(entry)
    standing = [entry for said in by_source.values() for entry in effective(said).values() if entry.label is not None]
    return sorted(standing, key=lambda entry: (entry.at, entry.request_id, entry.index, entry.source))


def join_texts(standing: Iterable[Feedback], texts_of: Callable[[str], Sequence[str]]) -> tuple[list[FeedbackRow], int]:
    """Feedback rows with their texts, and how many have none (not kept, expired, erased, unknown request).

    Args:
        standing: As from `standing_labels`.
        texts_of: Request id to the request's texts, in order; empty when there are none.
    """
    cache: dict[str, Sequence[str]] = {}
    rows, missing = [], 0
    for entry in standing:
        if entry.request_id not in cache:
            cache[entry.request_id] = texts_of(entry.request_id)
        texts = cache[entry.request_id]
        if entry.label is None or entry.index >= len(texts) or not texts[entry.index]:
            missing += entry.label is not None
            continue
        text = texts[entry.index]
        rows.append(FeedbackRow(text, entry.label.strip(), entry.source, entry.at, entry.request_id, entry.index))
    return rows, missing


def recency_weight(age: timedelta, half_life: timedelta) -> float:
    """How much a row of this age counts: ``0.5 ** (age / half_life)``, in four decimals, at least 0.0001."""
    return max(round(0.5 ** (max(age, timedelta(0)) / half_life), 4), 0.0001)


def select_rows(
    rows: Sequence[FeedbackRow],
    boundaries: Boundaries,
    policy: FeedbackSpec,
    expectations: Expectations,
    guesses: Guesses | None = None,
) -> Selection:
    """Decides about every row.

    Args:
        rows: As from `join_texts`.
        boundaries: Base, test and golden set.
        policy: The use case's.
        expectations: What a text must be.
        guesses: A model's, on the rows' texts, for the plausibility of sources; None leaves these tests out.
    """
    sorter = _Sorter(boundaries, policy, expectations)
    return sorter.run(_newest_of_each(rows), guesses)


def _newest_of_each(rows: Sequence[FeedbackRow]) -> list[FeedbackRow]:
    """One opinion per source and text: the newest."""
    newest: dict[tuple[str, str], FeedbackRow] = {}
    for row in sorted(rows, key=lambda row: (row.at, row.request_id, row.index, row.text, row.label)):
        newest[row.source, row.key] = row
    return sorted(newest.values(), key=_order)


def _order(row: FeedbackRow) -> tuple[datetime, str, str]:
    return row.at, row.key, row.source


class _Sorter:
    def __init__(self, boundaries: Boundaries, policy: FeedbackSpec, expectations: Expectations) -> None:
        self.boundaries, self.policy, self.expectations = boundaries, policy, expectations
        self.set_aside: list[SetAside] = []
        self.in_base = 0

    def run(self, rows: list[FeedbackRow], guesses: Guesses | None) -> Selection:
        sound = [row for row in rows if not self._rejected(row)]
        findings = self._examine(sound, guesses)
        failed = {item.source: item for item in reversed(findings) if item.failed}
        trusted = self._keep(sound, lambda row: row.source not in failed, "untrusted_source",
            lambda row: failed[row.source].reason)  # fmt: skip
        admitted = self._keep(trusted, self._admits, "label_not_admitted", self._why_not)
        agreed = self._settle(admitted)
        kept = self._common_enough(self._capped(agreed))
        newest = max((row.at for group in kept for row in group), default=None)
        train: list[TrainingRow] = []
        test: list[TrainingRow] = []
        for group in kept:
            lead = max(group, key=_order)
            age = newest - lead.at if newest else timedelta(0)
            origins = tuple(sorted(group, key=lambda row: row.source))
            row = TrainingRow(lead.text, lead.label, lead.at, recency_weight(age, self.policy.half_life), origins)
            (test if _held_out(lead.key, self.policy.hold_out) else train).append(row)
        for side in (train, test):
            side.sort(key=lambda row: (row.at, normalise(row.text)))
        new = sorted({row.label for row in [*train, *test]} - set(self.boundaries.labels))
        aside = sorted(self.set_aside, key=lambda item: (item.reason, item.source, item.request_id, item.index))
        return Selection(train, test, tuple(new), self.in_base, aside, findings)

    def _rejected(self, row: FeedbackRow) -> bool:
        defect = text_defect(row.text, self.expectations)
        if defect:
            self._aside(row, defect[0].value, defect[1])
        elif not row.label:
            self._aside(row, "label_missing", "no label")
        elif row.key in self.boundaries.test:
            self._aside(row, "also_in_test", "the test split holds the same text")
        elif row.key in self.boundaries.golden:
            self._aside(row, "also_in_golden", "the golden set holds the same text")
        else:
            return False
        return True

    def _examine(self, rows: Sequence[FeedbackRow], guesses: Guesses | None) -> list[SourceFinding]:
        opinions = [Opinion(row.source, row.key, row.label) for row in rows]
        return examine_sources(opinions, self.boundaries.base, guesses, self.policy.trust)

    def _admits(self, row: FeedbackRow) -> bool:
        rule = self.policy.new_labels
        known = row.label in self.boundaries.labels
        return known or rule == "allow" or (rule == "ask" and row.label in self.policy.approved_labels)

    def _why_not(self, row: FeedbackRow) -> str:
        if self.policy.new_labels == "never":
            return f"'{excerpt(row.label)}' is a new label, and feedback.new_labels is `never`"
        return f"'{excerpt(row.label)}' is a new label; to admit it, name it in feedback.approved_labels"

    def _settle(self, rows: Sequence[FeedbackRow]) -> list[list[FeedbackRow]]:
        """Per text the rows of the label that more than half of its sources give, and that the base does not refute."""
        texts: dict[str, list[FeedbackRow]] = defaultdict(list)
        for row in rows:
            texts[row.key].append(row)
        agreed = []
        for key, group in texts.items():
            label, votes = Counter(row.label for row in group).most_common(1)[0]
            winners = [row for row in group if row.label == label]
            if 2 * votes <= len(group):
                self._all_aside(group, "conflicting_label", f"{len(group)} sources do not agree by a majority")
                continue
            self._all_aside([row for row in group if row.label != label], "outvoted", f"{votes} sources say otherwise")
            known = self.boundaries.base.get(key)
            if known is None:
                agreed.append(winners)
            elif known == label:
                self.in_base += len(winners)
            else:
                self._all_aside(winners, "contradicts_base", f"the base labels this text '{known}'")
        return agreed

    def _capped(self, groups: list[list[FeedbackRow]]) -> list[list[FeedbackRow]]:
        """Cuts the rows that a source alone vouches for to its share; the newest stay."""
        limit = int(self.policy.max_source_share * (self.boundaries.rows + len(groups)))
        used: Counter[str] = Counter()
        kept = []
        for group in sorted(groups, key=lambda group: _order(max(group, key=_order)), reverse=True):
            source = group[0].source if len(group) == 1 else ""
            used[source] += 1
            if source and used[source] > limit:
                self._all_aside(group, "source_share", f"the source has its {limit:,} rows (max_source_share)")
            else:
                kept.append(group)
        return kept

    def _common_enough(self, groups: list[list[FeedbackRow]]) -> list[list[FeedbackRow]]:
        counts = Counter(group[0].label for group in groups)
        kept = []
        for group in groups:
            label, least = group[0].label, self.policy.min_rows_per_new_label
            if label in self.boundaries.labels or counts[label] >= least:
                kept.append(group)
            else:
                self._all_aside(group, "new_label_too_rare", f"{counts[label]} rows, {least} are needed")
        return kept

    def _keep(
        self, rows: Sequence[FeedbackRow], wanted: Callable[[FeedbackRow], bool], reason: str,
        detail: Callable[[FeedbackRow], str],
    ) -> list[FeedbackRow]:  # fmt: skip
        for row in rows:
            if not wanted(row):
                self._aside(row, reason, detail(row))
        return [row for row in rows if wanted(row)]

    def _all_aside(self, rows: Iterable[FeedbackRow], reason: str, detail: str) -> None:
        for row in rows:
            self._aside(row, reason, detail)

    def _aside(self, row: FeedbackRow, reason: str, detail: str) -> None:
        label = row.label if row.label in self.boundaries.labels else excerpt(row.label)
        self.set_aside.append(
            SetAside(reason, detail, row.source, label, row.request_id, row.index, text_digest(row.text),
                excerpt(row.text))
        )  # fmt: skip


def _held_out(key: str, share: float) -> bool:
    """Whether a text belongs to the held-out share: a function of the text alone."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") < share * 2**64
