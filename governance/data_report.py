"""The page on a data set's validation: what was read, kept and set aside, and which expectations held.

Drawn by our own template, because Great Expectations' Data Docs load styles and scripts from the
network. The charts are SVG in the page's own colours, so they can be read in light and dark.
"""

from collections.abc import Sequence
from pathlib import Path

from governance.validation_report import SplitFacts, ValidationReport
from leitstand.pages import write_page

__all__ = ["write_report"]

TEMPLATES = Path(__file__).parent / "templates"
WIDTH, HEIGHT, GAP = 640, 160, 2


def write_report(target: Path, report: ValidationReport) -> Path:
    """Writes the self-contained HTML page atomically and returns its path."""
    splits = report.splits
    return write_page(
        target,
        "data_report.html",
        search=TEMPLATES,
        report=report,
        failed=[result for result in report.results if not result.passed],
        total={
            name: sum(getattr(facts, name) for facts in splits.values())
            for name in ("rows", "kept", "quarantined", "leaked", "duplicates")
        },
        histograms={name: _bars(facts) for name, facts in splits.items() if facts.length_bins},
        labels=_label_rows(splits),
        width=WIDTH,
        height=HEIGHT,
    )


def _bars(facts: SplitFacts) -> list[dict[str, float | str]]:
    """Rectangles of the length histogram, in user units, with a text for each."""
    highest = max(count for _, _, count in facts.length_bins)
    step = WIDTH / len(facts.length_bins)
    return [
        {
            "x": round(place * step, 1),
            "y": round(HEIGHT - HEIGHT * count / highest, 1),
            "width": round(step - GAP, 1),
            "height": round(HEIGHT * count / highest, 1),
            "title": f"{first}–{last} characters: {count:,} rows",
        }
        for place, (first, last, count) in enumerate(facts.length_bins)
    ]


def _label_rows(splits: dict[str, SplitFacts]) -> Sequence[dict[str, object]]:
    """One row per label: its counts in each split, and the width of its bar in percent of the commonest."""
    counts = {name: facts.labels for name, facts in splits.items()}
    first = counts.get("train", {})
    most = max(first.values(), default=0) or 1
    ranked = sorted(first, key=lambda label: (-first[label], label))
    return [
        {
            "label": label,
            "counts": [counts[split].get(label, 0) for split in counts],
            "percent": round(100 * first[label] / most, 1),
        }
        for label in ranked
    ]
