"""Batches of texts of similar length, so that little work goes into padding.

An epoch is a permutation of the rows, a pure function of seed and epoch number: shuffled, cut into pools
of several batches, sorted by length within each pool, cut into batches, and the batches shuffled. Texts
of one batch have similar lengths, but which texts meet differs in every epoch. A batch whose padded size
exceeds the token budget is computed in several passes whose gradients are added, so the budget bounds
memory and never changes the result beyond rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

__all__ = ["EncodedTexts", "encode", "epoch_batches", "passes", "sorted_batches"]

POOL = 32  # batches per pool: padding is nearly gone, and a pool is still a fair sample


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of texts, not padded.

    Attributes:
        ids: One (tokens,) int64 array per text.
        lengths: (n,) int64, number of tokens of each text.
        pad_id: Fills the end of shorter rows.
    """

    ids: tuple[np.ndarray, ...]
    lengths: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    def pad(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask`` of these rows, both (n, longest) int64."""
        lengths = self.lengths[rows]
        input_ids = np.full((len(rows), int(lengths.max())), self.pad_id, dtype=np.int64)
        for position, row in enumerate(rows):
            input_ids[position, : self.lengths[row]] = self.ids[row]
        mask = np.arange(input_ids.shape[1])[None, :] < lengths[:, None]
        return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> EncodedTexts:
    """Tokenises `texts`, truncated as the tokenizer is set up, without padding."""
    padding = tokenizer.padding or {"pad_id": 0}
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    ids = tuple(np.asarray(item.ids, dtype=np.int64) for item in plain.encode_batch(list(texts)))
    return EncodedTexts(ids, np.array([len(item) for item in ids], dtype=np.int64), int(padding["pad_id"]))


def epoch_batches(lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: each row once, `batch_size` rows per batch, the last pool's rest in a smaller one.

    Args:
        lengths: (n,) number of tokens per text.
        batch_size: Rows per optimizer step, over all processes together.
        seed: Of the run.
        epoch: Counts from 0.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * POOL):
        pool = order[start : start + batch_size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """All rows from longest to shortest in batches of at most `token_budget` padded tokens; for evaluation.

    Longest first, so that running out of memory shows at once.
    """
    return passes(np.argsort(-lengths, kind="stable"), lengths, token_budget)


def passes(rows: np.ndarray, lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Cuts `rows` into runs whose padded size stays within `token_budget`; a run has at least one row."""
    runs: list[np.ndarray] = []
    start, longest = 0, 0
    for position, row in enumerate(rows):
        longest = max(longest, int(lengths[row]))
        if position > start and longest * (position - start + 1) > token_budget:
            runs.append(rows[start:position])
            start, longest = position, int(lengths[row])
    return [*runs, rows[start:]] if len(rows) else []
