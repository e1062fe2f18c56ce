"""Which answers should be labelled next, and the feedback that a label makes. Functions over window rows.

Half of the purpose is learning: the answers that the model is least sure of (smallest margin between its two
best labels, Scheffer et al. 2001), spread over the embedding space by greedy k-centre (Sener & Savarese 2018,
ICLR), so that twenty wordings of one question are not all asked. The other half is measuring: a share is
drawn at random from all other answers. The first part is taken with certainty and the second with a known
probability, so weighting each label by the inverse of its inclusion probability estimates the accuracy of
the whole window without bias (Horvitz & Thompson 1952, JASA 47), however hard the questions that were chosen.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leitstand.files import digest_json
from leitstand.types import Feedback

__all__ = ["QUEUE_SCHEMA", "choose", "kept_inclusion", "margins", "opinion", "top_guesses", "weighted_accuracy"]

POOL = 5
"""The spread-out rows are chosen among the most uncertain ones, this many times as many as are wanted."""

QUEUE_SCHEMA = pa.schema(
    [
        ("use_case", pa.string()), ("request_id", pa.string()), ("index", pa.int32()),
        ("at", pa.timestamp("us", tz="UTC")), ("version", pa.int32()), ("label", pa.string()), ("score", pa.float32()),
        ("margin", pa.float32()), ("probabilities", pa.binary()), ("reason", pa.string()),
        ("inclusion_probability", pa.float64()),
    ]
)  # fmt: skip


def choose(window: pa.Table, count: int, *, random_share: float = 0.2, seed: int = 0) -> pa.Table:
    """The labelling queue: at most `count` rows of `QUEUE_SCHEMA`, the most informative first, then the random ones.

    Rows that have a feedback label already and answers of shadow models are left out. The order of the window's
    rows does not matter.

    Args:
        window: Rows of the inference log; ``feedback_label`` may be missing.
        count: Rows wanted.
        random_share: Share of `count` that is drawn at random from the rows that were not chosen for learning.
        seed: Of the draw.
    """
    rows = _candidates(window)
    wanted = min(count, rows.num_rows)
    drawn = wanted if wanted == rows.num_rows else min(round(random_share * count), wanted)
    margin = margins(rows)
    first = _spread(rows, margin, wanted - drawn) if wanted > drawn else np.empty(0, dtype=np.int64)
    rest = np.setdiff1d(np.arange(rows.num_rows), first)
    lucky = np.sort(np.random.default_rng([seed, 0x1AB]).choice(rest, size=drawn, replace=False))
    taken = np.concatenate([first, lucky]).astype(np.int64)
    certain = [True] * len(first) + [False] * len(lucky)
    share = drawn / len(rest) if len(rest) else 1.0
    found = rows.take(pa.array(taken))
    columns = {name: found[name] for name in QUEUE_SCHEMA.names if name in found.column_names}
    columns["margin"] = pa.array(margin[taken].astype(np.float32))
    columns["reason"] = pa.array(["uncertain" if sure else "random" for sure in certain], pa.string())
    columns["inclusion_probability"] = pa.array([1.0 if sure else share for sure in certain], pa.float64())
    return pa.table([columns[name] for name in QUEUE_SCHEMA.names], schema=QUEUE_SCHEMA)


def margins(rows: pa.Table) -> np.ndarray:
    """(n,) float64 in [0, 1]: the best probability minus the second; the score where a row has no probabilities."""
    found = rows["score"].to_numpy().astype(np.float64)
    for place, content in enumerate(rows["probabilities"].to_pylist()):
        values = np.frombuffer(content or b"", "<f2")
        if len(values) > 1:
            second, best = np.sort(values.astype(np.float64))[-2:]
            found[place] = best - second
    return found


def kept_inclusion(folder: Path) -> dict[tuple[str, int], float]:
    """Inclusion probabilities of all answers that were ever in a queue, by request id and index.

    Args:
        folder: ``home/labelling/USE_CASE``. For an answer that was in several queues, the first one counts.
    """
    found: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("*.parquet"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        for row in pq.read_table(path, columns=["request_id", "index", "inclusion_probability"]).to_pylist():
            found.setdefault((row["request_id"], row["index"]), row["inclusion_probability"])
    return found


def top_guesses(probabilities: bytes, labels: Sequence[str], count: int) -> list[tuple[str, float]]:
    """The likeliest labels with their probabilities; empty when the row holds none, or of another label set."""
    values = np.frombuffer(probabilities, "<f2").astype(np.float64)
    if len(values) != len(labels):
        return []
    order = [int(place) for place in np.argsort(-values, kind="stable")[:count]]
    return [(labels[place], float(values[place])) for place in order]


def weighted_accuracy(correct: np.ndarray, inclusion: np.ndarray) -> tuple[float, float]:
    """Accuracy of the window that a queue was chosen from, and its standard error.

    The ratio form (Hájek) of the Horvitz-Thompson estimate, with the linearised Poisson variance, which is
    conservative for a draw without replacement.

    Args:
        correct: (n,) whether the model was right on each labelled row of the queue.
        inclusion: (n,) the inclusion probabilities.
    """
    weights = 1.0 / inclusion
    value = float((weights * correct).sum() / weights.sum())
    spread = (1 - inclusion) * (weights * (correct - value)) ** 2
    return value, float(np.sqrt(spread.sum()) / weights.sum())


def opinion(
    said: Iterable[Feedback], use_case: str, request_id: str, index: int, *, label: str | None, source: str,
    now: datetime,
) -> Feedback | None:  # fmt: skip
    """The feedback that makes `label` the source's standing label (None: withdraws it); None when it is already.

    Its id follows from what it says and from how often the source spoke about the answer before, so that
    recording the same file twice changes nothing, and a correction of a correction still counts.

    Args:
        said: All feedback about this answer, of any source.
        use_case: Name of the use case.
        request_id: Names the answer, with `index`.
        index: Position of the text within the request.
        label: The right label.
        source: Who says so.
        now: The present.
    """
    mine = sorted((entry for entry in said if entry.source == source), key=lambda entry: (entry.at, entry.feedback_id))
    labelled = [entry for entry in mine if entry.label is not None or entry.rating is None]
    if (labelled[-1].label if labelled else None) == label:
        return None
    identity = digest_json([use_case, request_id, index, source, label, len(mine)])
    at = max([now, *(entry.at + timedelta(microseconds=1) for entry in mine[-1:])])
    return Feedback(
        feedback_id=f"label-{identity[7:39]}", request_id=request_id, index=index, use_case=use_case, label=label,
        source=source, at=at,
    )  # fmt: skip


def _candidates(window: pa.Table) -> pa.Table:
    keep = np.array([route != "shadow" for route in window["route"].to_pylist()], dtype=bool)
    if "feedback_label" in window.column_names:
        keep &= np.array([label is None for label in window["feedback_label"].to_pylist()], dtype=bool)
    return window.filter(pa.array(keep)).sort_by([("request_id", "ascending"), ("index", "ascending")])


def _spread(rows: pa.Table, margin: np.ndarray, count: int) -> np.ndarray:
    """Rows that are uncertain and far from each other, in the order in which they were chosen."""
    pool = np.argsort(margin, kind="stable")[: POOL * count]
    contents = [rows["embedding"][int(row)].as_py() or b"" for row in pool]
    if not contents or not contents[0] or len({len(content) for content in contents}) != 1:
        return pool[:count]  # no embeddings, or of several models: uncertainty alone decides
    points = np.stack([np.frombuffer(content, "<f2").astype(np.float32) for content in contents])
    points /= np.linalg.norm(points, axis=1, keepdims=True).clip(min=1e-9)
    chosen, nearest = [0], 1.0 - points @ points[0]
    nearest[0] = -np.inf
    while len(chosen) < count:
        place = int(np.argmax(nearest))
        chosen.append(place)
        nearest = np.minimum(nearest, 1.0 - points @ points[place])
        nearest[chosen] = -np.inf
    return pool[chosen]
