"""A small classifier of prompt injections: hashed n-grams and logistic regression, in numpy.

Features: which character n-grams (3 to 5, over folded text in lower case) and which words and word pairs occur,
hashed to 2^15 places, each worth 1/sqrt(how many). Trained by `benchmarks/guard_model.py`; what it was trained on and
how good it is stands in `data/injection_model.json` and docs/explanation/guardrails.md. English and German.
"""

import json
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from governance.guards.text import normalise

__all__ = ["BINS", "InjectionModel", "features"]

DATA = Path(__file__).parent / "data"
BINS = 2**15
MAX_BYTES = 8192
CHARACTERS = (3, 4, 5)
_MIX = np.uint32(2654435761)  # Knuth's multiplicative hashing


def features(text: str) -> np.ndarray:
    """The places in [0, BINS) that a text's n-grams are hashed to, each once; the first 8,192 characters count."""
    words = normalise(text[:MAX_BYTES]).data.lower()[:MAX_BYTES].split()
    if not words:
        return np.zeros(0, np.uint32)
    letters = np.frombuffer(b" " + b" ".join(words) + b" ", np.uint8).astype(np.uint32)
    parts = [_hashes(letters, size) for size in CHARACTERS if len(letters) >= size]
    pairs = [b"%b %b" % pair for pair in pairwise(words)]
    spelled = np.fromiter(map(zlib.crc32, [*words, *pairs]), np.uint32, 2 * len(words) - 1)
    return np.unique(np.concatenate([*parts, spelled * _MIX >> np.uint32(17)]))


def _hashes(letters: np.ndarray, size: int) -> np.ndarray:
    count = len(letters) - size + 1
    mixed = np.full(count, size, np.uint32)
    for offset in range(size):
        mixed = mixed * np.uint32(16777619) ^ letters[offset : offset + count]  # FNV-1
    return mixed * _MIX >> np.uint32(17)


class InjectionModel:
    """Scores texts; see `governance.guards.checks.Check`."""

    def __init__(self) -> None:
        self._weights, self._bias = _load()

    def judge(self, texts: Sequence[str]) -> list[float]:
        """The probability of an injection, for each text."""
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> float:
        places = features(text)
        if not len(places):
            return 0.0
        logit = self._bias + float(self._weights[places].sum()) / math.sqrt(len(places))
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, logit))))


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, float]:
    about = json.loads((DATA / "injection_model.json").read_text(encoding="utf-8"))
    return np.load(DATA / "injection_model.npy").astype(np.float32), about["bias"]
