"""A reduced precision must not cost accuracy: compared on labelled texts before a Bento is built with it."""

from pathlib import Path

from leitstand.errors import PromotionRejected
from leitstand.usecase import UseCase
from models.loading import open_classifier

__all__ = ["MAX_DROP", "accuracy_drop", "check_precision"]

MAX_DROP = 0.002
SAMPLE = 2_000


def check_precision(
    model_dir: Path,
    use_case: UseCase,
    engine: str,
    precision: str,
    *,
    home: Path,
    sample: tuple[list[str], list[str]] | None = None,
) -> float | None:
    """Checks `precision` against fp32 and returns the drop in accuracy; None when it is fp32.

    Raises:
        NotFoundError: There is no snapshot to take a sample from.
        PromotionRejected: The drop exceeds 0.2 points.
    """
    if precision == "fp32":
        return None
    drop = accuracy_drop(model_dir, engine, precision, *(sample or _test_sample(use_case, home)))
    if drop > MAX_DROP:
        raise PromotionRejected(
            f"Precision {precision} loses {drop * 100:.2f} points of accuracy, {MAX_DROP * 100:.1f} are allowed",
            hint="package with --precision fp32",
        )
    return drop


def accuracy_drop(model_dir: Path, engine: str, precision: str, texts: list[str], labels: list[str]) -> float:
    """Accuracy in fp32 minus accuracy in `precision`, on the same texts; negative when it gains."""
    right = []
    for candidate in ("fp32", precision):
        predicted = open_classifier(model_dir, engine=engine, precision=candidate).predict(texts).labels
        right.append(sum(a == b for a, b in zip(predicted, labels, strict=True)))
    return (right[0] - right[1]) / len(texts)


def _test_sample(use_case: UseCase, home: Path) -> tuple[list[str], list[str]]:
    """Up to 2,000 evenly spaced rows of the test split that was ingested last."""
    from models.snapshots import latest, load_split  # noqa: PLC0415  -- pyarrow, only for a reduced precision

    snapshot = latest(use_case.name, home)
    split = load_split(snapshot, "test")
    rows = range(0, len(split.texts), max(1, len(split.texts) // SAMPLE))
    return [split.texts[row] for row in rows], [snapshot.labels[split.labels[row]] for row in rows]
