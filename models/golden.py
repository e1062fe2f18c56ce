"""The golden set: a frozen sample of labelled rows on which forgetting shows. Never trained on.

A use case pins its file by digest (`data.golden`). Ingestion takes its texts out of train, feedback with its
texts is set aside, and every evaluation measures the slice ``golden`` on it. Drawn once, from the test
split, so that no training row is lost and no old number changes; from then on it stays, whatever test becomes.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from governance.rows import Row
from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError
from leitstand.files import digest_bytes, write_text
from leitstand.usecase import UseCase
from models.data_sources import read_source
from models.snapshots import Split

__all__ = ["Golden", "draw_golden", "load_golden", "write_golden"]


@dataclass(frozen=True)
class Golden:
    """The rows of a golden set, with the name of each row's label."""

    texts: list[str]
    labels: list[str]

    @property
    def rows(self) -> list[Row]:
        """The same as rows of a data source."""
        return [Row(n, *pair) for n, pair in enumerate(zip(self.texts, self.labels, strict=True), start=1)]

    def known(self, names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
        """Texts whose label is one of `names`, and the index of each label, (n,) int64."""
        place = {name: index for index, name in enumerate(names)}
        pairs = [(text, place[label]) for text, label in zip(self.texts, self.labels, strict=True) if label in place]
        return [text for text, _ in pairs], np.array([label for _, label in pairs], dtype=np.int64)


def load_golden(use_case: UseCase) -> Golden | None:
    """The golden set of `use_case`; None when it has none.

    Raises:
        NotFoundError: The file is not there.
        IntegrityError: It is not the file that the digest pins.
        ConfigurationError: It lacks a column, a text or a label.
    """
    spec = use_case.data.golden
    if spec is None:
        return None
    path = Path(use_case.resolve(spec.file))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"The golden set {path} cannot be read: {error}", hint="restore the file") from error
    if digest_bytes(content) != spec.digest:
        raise IntegrityError(
            f"{path} is not the pinned golden set: its digest is {digest_bytes(content)}",
            hint="restore the file; if it was changed on purpose, write this digest under data.golden.digest",
        )
    columns = {"text_column": use_case.data.text_column, "label_column": use_case.data.label_column}
    source = read_source(content, split="golden", uri=str(path), **columns)
    missing = [name for name in columns.values() if name not in source.columns]
    if missing or not all(row.text and row.label for row in source.rows):
        raise ConfigurationError(
            f"{path} needs a text and a label in every row" + (f"; it has no column {missing}" if missing else ""),
            hint="write it with `leitstand data golden NAME`",
        )
    return Golden([row.text or "" for row in source.rows], [row.label or "" for row in source.rows])


def draw_golden(split: Split, names: tuple[str, ...], *, per_label: int, seed: int) -> Golden:
    """Draws up to `per_label` different rows of each label without replacement, in the order of the split."""
    random = np.random.default_rng([seed, 0x601D])
    chosen: list[int] = []
    for label in range(len(names)):
        rows = np.flatnonzero(split.labels == label)
        chosen += random.permutation(rows)[:per_label].tolist()
    chosen.sort()
    return Golden([split.texts[row] for row in chosen], [names[split.labels[row]] for row in chosen])


def write_golden(golden: Golden, target: Path, *, text_column: str, label_column: str) -> str:
    """Writes the CSV and returns the digest to pin."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([text_column, label_column])
    writer.writerows(zip(golden.texts, golden.labels, strict=True))
    write_text(target, stream.getvalue())
    return digest_bytes(stream.getvalue().encode())
