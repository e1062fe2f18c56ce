"""From two tables of the inference log to the frames that a report is drawn from.

Checks both schemas, takes seeded samples, turns embeddings into a few plain columns, and writes down how
the rows were chosen, how exact that is, and what was left out. A fault of the tables' schema is an error;
a column that cannot be compared (missing, empty, the same single value everywhere) is left out with a note.

Embeddings are shown as coordinates on the first principal components of the *reference*, and as the
distance to its centroid: linear cost, unlike t-SNE, and the axes mean the same in every window.
Cost: O(sample) in time and memory, plus one pass over the label column.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from leitstand.errors import ConfigurationError, bounded

__all__ = ["MINIMUM_ROWS", "ReportData", "draw", "prepare"]

MINIMUM_ROWS = 10
COMPONENTS = 4
_KS_95 = 1.358  # asymptotic 5 % point of sqrt(nm/(n+m)) D, Smirnov 1948

_NUMBERS = {
    "score": "prediction",
    "characters": "text",
    "words": "text",
    "tokens": "text",
    "digit_share": "text",
    "upper_share": "text",
    "non_ascii_share": "text",
    "latency_ms": "service",
}
_NAMES = {"label": "prediction", "language": "text"}
_FLAGS = {"abstain": "prediction"}
_GROUPS = _NUMBERS | _NAMES | _FLAGS
_NEEDED = ("label", "score")
_NO_MARKUP = str.maketrans({"<": "‹", ">": "›", "&": "＆"})
_LONGEST = 80
_UNKNOWN_LABELS = 30  # feedback labels that the model never predicted, shown by name; anybody can send any


@dataclass(frozen=True)
class ReportData:
    """What Evidently is given.

    Attributes:
        reference: Sampled rows; one column per name in `numbers` and `categories`.
        window: The same of the window.
        labelled_reference: Rows with a feedback label; columns ``label``, ``feedback_label``.
        labelled_window: The same of the window.
        groups: Section to the columns that can be compared in it: text, prediction, embedding, service.
        numbers: Numerical columns.
        categories: Categorical columns.
        labelled_rows: Rows of the whole window with a feedback label.
        sampling: How the rows were chosen.
        exactness: How exact the numbers are.
        notes: What was left out, and why.
    """

    reference: pd.DataFrame
    window: pd.DataFrame
    labelled_reference: pd.DataFrame
    labelled_window: pd.DataFrame
    groups: Mapping[str, Sequence[str]]
    numbers: Sequence[str]
    categories: Sequence[str]
    labelled_rows: int
    sampling: str
    exactness: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Draft:
    groups: dict[str, list[str]] = field(default_factory=dict)
    numbers: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def draw(labels: pa.ChunkedArray, rows: int, random: np.random.Generator) -> np.ndarray:
    """Positions of at most `rows` rows in their order, drawn evenly through the labels.

    Each label keeps its share but for a row (systematic sampling).
    """
    total = len(labels)
    if total <= rows:
        return np.arange(total)
    codes = pc.rank(labels.cast(pa.string()), tiebreaker="dense").to_numpy()  # type: ignore[attr-defined]
    order = random.permutation(total)
    order = order[np.argsort(codes[order], kind="stable")]  # by label, in random order within each
    picked = ((np.arange(rows) + random.random()) * total / rows).astype(int)
    return np.sort(order[picked])


def prepare(
    reference: pa.Table, window: pa.Table, *, sample_rows: int, seed: int, whole: pa.Table | None = None
) -> ReportData:
    """Samples both tables and makes comparable frames of them.

    Args:
        reference: Rows of the reference window, with the columns of the inference log.
        window: Rows of the current window; may be empty.
        sample_rows: Most rows of either table to use, at least 1.
        seed: Decides which rows.
        whole: When `window` holds only rows that `draw` chose: ``label`` and ``feedback_label`` of all rows.

    Raises:
        ConfigurationError: The reference is empty, or one of the tables lacks `label` or `score` or has a
            column of another type; the message names every such column.
    """
    _check_schemas(reference, window)
    random = np.random.default_rng(seed)
    everything = window if whole is None else whole
    tables = [table.take(draw(table["label"], sample_rows, random)) for table in (reference, window)]
    labelled = [_labelled(table) for table in (reference, everything)]
    rows_with_labels = len(labelled[1])
    pairs = [frame.iloc[_some(len(frame), sample_rows, random)] for frame in labelled]
    draft = _Draft()
    frames = [pd.DataFrame(index=range(len(table))) for table in tables]
    _add_columns(tables, frames, draft)
    _add_embeddings(tables, frames, draft)
    return ReportData(
        reference=frames[0],
        window=frames[1],
        labelled_reference=pairs[0],
        labelled_window=pairs[1],
        groups=draft.groups,
        numbers=draft.numbers,
        categories=draft.categories,
        labelled_rows=rows_with_labels,
        sampling=_sampling(len(everything), len(tables[1]), len(reference), len(tables[0]), seed),
        exactness=_exactness(len(everything), len(tables[1]), len(tables[0]), pairs[1]),
        notes=tuple(draft.notes),
    )


def _check_schemas(reference: pa.Table, window: pa.Table) -> None:
    problems = [
        f"{name}.{problem}"
        for name, table in (("reference", reference), ("window", window))
        for problem in _problems(table.schema)
    ]
    if problems:
        raise ConfigurationError(
            f"Cannot compare the window with the reference: {bounded(problems, 12)}",
            hint="both must be tables of the inference log; build the reference again with the current version",
        )
    if len(reference) == 0:
        raise ConfigurationError(
            "The reference of the report holds no rows", hint="build it from the model's test split or a past window"
        )


def _problems(schema: pa.Schema) -> list[str]:
    wanted: list[tuple[Mapping[str, str], str, Callable[[pa.DataType], bool]]] = [
        (_NUMBERS, "a number", lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind)),
        (_NAMES | {"feedback_label": ""}, "text", lambda kind: _is_text(kind) or pa.types.is_null(kind)),
        (_FLAGS, "true or false", pa.types.is_boolean),
        ({"embedding": ""}, "binary", lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind)),
    ]
    found = [f"{name} is missing" for name in _NEEDED if name not in schema.names]
    for columns, what, fits in wanted:
        for name in columns:
            if name in schema.names and not fits(schema.field(name).type):
                found.append(f"{name} is {schema.field(name).type}, not {what}")
    return found


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _some(total: int, rows: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(total) if total <= rows else np.sort(random.choice(total, size=rows, replace=False))


def _labelled(table: pa.Table) -> pd.DataFrame:
    if "feedback_label" not in table.schema.names:
        return pd.DataFrame({"label": [], "feedback_label": []}, dtype=object)
    pairs = table.select(["label", "feedback_label"]).drop_null()
    predicted, told = ([_plain(v) for v in pairs[name].to_pylist()] for name in pairs.schema.names)
    known = set(predicted)
    unknown = Counter(label for label in told if label not in known).most_common(_UNKNOWN_LABELS)
    known |= {label for label, _ in unknown}
    told = [label if label in known else "(another label)" for label in told]
    return pd.DataFrame({"label": predicted, "feedback_label": told}, dtype=object)


def _add_columns(tables: Sequence[pa.Table], frames: Sequence[pd.DataFrame], draft: _Draft) -> None:
    for name, group in _GROUPS.items():
        lacking = [side for side, table in zip(_SIDES, tables, strict=True) if name not in table.schema.names]
        if lacking:
            draft.notes.append(f"“{name}” is missing in the {' and the '.join(lacking)}: not compared.")
            continue
        read = _numbers if name in _NUMBERS else _categories
        _add(name, group, [read(table[name]) for table in tables], frames, draft)


_SIDES = ("reference", "window")


def _numbers(column: pa.ChunkedArray) -> pd.Series:
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return pd.Series(np.where(np.isfinite(values), values, np.nan))


def _categories(column: pa.ChunkedArray) -> pd.Series:
    if pa.types.is_boolean(column.type):
        return pd.Series([None if v is None else "yes" if v else "no" for v in column.to_pylist()], dtype=object)
    return pd.Series([("unsure" if v == "" else _plain(v)) for v in column.to_pylist()], dtype=object)


def _plain(value: str | None) -> str | None:
    """A name that is safe in Evidently's page, which does not escape: no markup, no control characters, short."""
    if value is None:
        return None
    text = "".join(c if c.isprintable() else " " for c in value).translate(_NO_MARKUP)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _add(
    name: str, group: str, values: Sequence[pd.Series], frames: Sequence[pd.DataFrame], draft: _Draft
) -> None:  # fmt: skip
    """Takes a column in when both sides can be compared; a note says why when not."""
    for side, frame, each in zip(_SIDES, frames, values, strict=True):
        known = int(each.notna().sum())
        if known == 0 and len(frame):
            draft.notes.append(f"“{name}” has no value in the {side}: not compared.")
            return
        if known < MINIMUM_ROWS <= len(frame):
            draft.notes.append(f"“{name}” has only {known} values in the {side}: not compared.")
            return
    distinct = pd.unique(pd.concat([each.dropna() for each in values]))
    if len(distinct) == 1 and all(len(frame) for frame in frames):
        draft.notes.append(f"“{name}” is always {_shown(distinct[0])}, in both: nothing to compare.")
        return
    for frame, each in zip(frames, values, strict=True):
        frame[name] = each.to_numpy()
    draft.groups.setdefault(group, []).append(name)
    (draft.numbers if pd.api.types.is_numeric_dtype(values[0]) else draft.categories).append(name)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"“{value}”"


def _add_embeddings(tables: Sequence[pa.Table], frames: Sequence[pd.DataFrame], draft: _Draft) -> None:
    matrices = [_matrix(table) for table in tables]
    known = [int(np.isfinite(each).all(axis=1).sum()) if each.size else 0 for each in matrices]
    empty = [side for side, rows in zip(_SIDES, known, strict=True) if rows < MINIMUM_ROWS]
    if empty:
        draft.notes.append(f"The {' and the '.join(empty)} has too few embeddings: embedding drift is not shown.")
        return
    widths = [each.shape[1] for each in matrices]
    if widths[0] != widths[1]:
        draft.notes.append(
            f"Embeddings have {widths[0]} dimensions in the reference and {widths[1]} in the window: another encoder; "
            "embedding drift is not shown."
        )
        return
    centre, axes, shares = _principal_axes(matrices[0])
    columns = {"embedding distance": [np.linalg.norm(each - centre, axis=1) for each in matrices]}
    for number, axis in enumerate(axes.T, start=1):
        columns[f"embedding PC{number}"] = [(each - centre) @ axis for each in matrices]
    for name, values in columns.items():
        _add(name, "embedding", [pd.Series(each) for each in values], frames, draft)
    draft.notes.append(
        f"Embeddings are shown by their distance to the reference's centroid and on the reference's first "
        f"{len(shares)} principal components, which hold {sum(shares):.0%} of its variance."
    )


def _matrix(table: pa.Table) -> np.ndarray:
    """Embeddings as rows × dimensions, float32; a row without one, or of another width, is NaN."""
    if "embedding" not in table.schema.names:
        return np.empty((len(table), 0), dtype=np.float32)
    raw = table["embedding"].to_pylist()
    widths = np.array([len(each or b"") for each in raw], dtype=int)
    filled = widths[(widths > 0) & (widths % 2 == 0)]
    width = int(np.bincount(filled).argmax()) if filled.size else 0
    matrix = np.full((len(raw), width // 2), np.nan, dtype=np.float32)
    fits = np.flatnonzero(widths == width) if width else np.empty(0, dtype=int)
    if fits.size:
        matrix[fits] = np.frombuffer(b"".join(raw[i] for i in fits), dtype="<f2").reshape(len(fits), -1)
    return matrix


def _principal_axes(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, the first axes as columns, and the share of variance on each; axes point to their largest part."""
    rows = matrix[np.isfinite(matrix).all(axis=1)].astype(np.float64)
    centre = rows.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(rows - centre, rowvar=False).reshape(rows.shape[1], -1))
    variances, vectors = np.clip(variances[::-1], 0, None), vectors[:, ::-1]
    count = min(COMPONENTS, int((variances > variances[0] * 1e-9).sum()))
    axes = vectors[:, :count]
    axes = axes * np.where(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0) < 0, -1.0, 1.0)
    return centre, axes, variances[:count] / (variances.sum() or 1.0)


def _sampling(window: int, used: int, reference: int, used_reference: int, seed: int) -> str:
    parts = [
        f"all {total:,} rows of the {side}"
        if total == taken
        else f"{taken:,} of the {total:,} rows of the {side}, drawn at random within each predicted label (seed {seed})"
        for side, total, taken in (("window", window, used), ("reference", reference, used_reference))
    ]
    return f"Computed on {parts[0]} and {parts[1]}."


def _exactness(total: int, used: int, reference: int, labelled: pd.DataFrame) -> tuple[str, ...]:
    """Standard errors in percentage points and the smallest difference that a two-sample test could see."""
    if used == 0:
        return ()
    lines = []
    if used < total:
        left = np.sqrt(1 - used / total)  # correction for a finite population
        lines.append(
            f"A share read from the sample misses the window's by at most {50 * left / np.sqrt(used):.2f} points "
            f"(standard error, worst at 50 %); shares of predicted labels by at most {100 / used:.2g} points."
        )
    lines.append(
        f"With {used:,} rows, a share is known to {50 / np.sqrt(used):.2f} points as an estimate of the traffic behind "
        "the window (standard error, worst at 50 %)."
    )
    resolution = _KS_95 * np.sqrt((used + reference) / (used * reference))
    lines.append(
        f"Kolmogorov-Smirnov distances below {min(resolution, 1):.3f} are no evidence of drift at 5 % in a single test."
    )
    if len(labelled):
        accuracy = float((labelled["label"] == labelled["feedback_label"]).mean())
        error = 100 * np.sqrt(max(accuracy * (1 - accuracy), 0.25 / len(labelled)) / len(labelled))
        lines.append(
            f"Accuracy is measured on {len(labelled):,} labelled rows: standard error {error:.2f} points, if the rows "
            "that got a label are like the others."
        )
    return tuple(lines)
