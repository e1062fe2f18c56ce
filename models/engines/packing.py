"""Packs texts of different lengths into few rows of equal width, so that almost nothing computed is padding.

Padding every text of a batch to the longest one wastes half of the work on real traffic. Several texts can
share a row instead, when attention stays within each text, positions restart, and pooling knows which
token belongs to which text. Filling rows of equal width is multiway number partitioning; the greedy
longest-first rule (Graham 1969, "Bounds on Multiprocessing Timing Anomalies") is within a few percent here.
Pure functions over numpy arrays.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ROW_TOKENS", "Packed", "pack"]

# Attention costs grow with the width and padding falls with it; 64 measured best for texts of 8 to 47 tokens.
ROW_TOKENS = 64

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """A batch as rows. All arrays are int64.

    Attributes:
        input_ids: (rows, width) token ids, 0 where nothing is.
        position_ids: (rows, width) position of the token within its text.
        segments: (rows, width) index of the text that the token belongs to, -1 where nothing is.
        order: (n,) 0..n-1, the texts for which the graph pools.
    """

    input_ids: IntArray
    position_ids: IntArray
    segments: IntArray
    order: IntArray

    @property
    def fill(self) -> float:
        """Share of the computed tokens that belong to a text."""
        return float((self.segments >= 0).mean())


def pack(ids: Sequence[Sequence[int]], *, row_tokens: int = ROW_TOKENS) -> Packed:
    """Lays the texts out in rows about `row_tokens` wide; a longer text widens all rows.

    With ``row_tokens=0`` every text gets its own row (plain padding).

    Args:
        ids: Token ids of each text; no text may be empty.
        row_tokens: Wanted width of a row.
    """
    rows = _assign([len(text) for text in ids], row_tokens)
    width = max(sum(len(ids[text]) for text in row) for row in rows)
    shape = (len(rows), width)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments = np.full(shape, -1, np.int64)
    positions = np.arange(width)
    for number, row in enumerate(rows):
        start = 0
        for text in row:
            end = start + len(ids[text])
            input_ids[number, start:end] = ids[text]
            position_ids[number, start:end] = positions[: end - start]
            segments[number, start:end] = text
            start = end
    return Packed(input_ids, position_ids, segments, np.arange(len(ids)))


def _assign(lengths: list[int], row_tokens: int) -> list[list[int]]:
    """Indices of the texts in each row: longest first, each into the row with the fewest tokens."""
    longest = max(lengths)
    if row_tokens < 1:
        return [[text] for text in range(len(lengths))]
    count = min(len(lengths), max(1, round(sum(lengths) / max(longest, row_tokens))))
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, row) for row in range(count)]
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        load, row = heap[0]
        rows[row].append(text)
        heapq.heapreplace(heap, (load + lengths[text], row))
    return rows
