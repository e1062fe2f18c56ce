"""The record of a data set's validation: ``report.json``, and what the page and lineage are drawn from."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Example", "ExpectationResult", "SplitFacts", "ValidationReport"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExpectationResult(_Record):
    """One expectation: what is allowed, what was observed, and the verdict."""

    name: str
    split: str
    expectation: str
    column: str = ""
    passed: bool
    observed: str
    allowed: str
    checked: int = 0
    broken: int = 0

    def __str__(self) -> str:
        return f"{self.split}: {self.name}: observed {self.observed}; allowed {self.allowed}"


class SplitFacts(_Record):
    """What stands in one split. `rows` = `kept` + `quarantined` + `leaked`; the rest is about kept rows."""

    uri: str
    source_digest: str
    rows: int
    kept: int
    quarantined: int
    leaked: int
    duplicates: int
    reasons: dict[str, int]
    languages: dict[str, int]
    language_undecided: int
    language_checked: int
    labels: dict[str, int]
    length_bins: tuple[tuple[int, int, int], ...]
    median_chars: int
    longest_chars: int


class Example(_Record):
    """A row shown in the report: masked and cut to 60 characters."""

    split: str
    row: int
    kind: str
    detail: str
    label: str
    excerpt: str


class ValidationReport(_Record):
    """The verdict on a data set.

    The three leak counts are of distinct texts that stand in both splits: byte for byte, without white
    space at the ends, and normalised (runs of white space as one space, case folded).
    """

    schema_version: Literal[1] = 1
    use_case: str
    passed: bool
    source_digest: str
    licence: str
    attribution: str
    results: tuple[ExpectationResult, ...]
    splits: dict[str, SplitFacts]
    leaked_exact: int = 0
    leaked_stripped: int = 0
    leaked_normalised: int = 0
    label_count: int = 0
    examples: tuple[Example, ...] = ()

    @property
    def failures(self) -> list[str]:
        """One line per failed expectation, with observed and allowed values."""
        return [str(result) for result in self.results if not result.passed]
