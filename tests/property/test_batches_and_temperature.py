"""Batches lose and repeat no row; a temperature changes no decision."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.batching import epoch_batches, passes, sorted_batches
from models.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood, softmax

lengths = arrays(np.int64, st.integers(1, 400), elements=st.integers(1, 128))


@given(lengths=lengths, size=st.integers(1, 40), seed=st.integers(0, 2**31), epoch=st.integers(0, 50))
def test_an_epoch_is_a_permutation_in_batches_of_the_size_asked_for(
    lengths: np.ndarray, size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert sum(len(batch) != size for batch in batches) <= 1
    again = epoch_batches(lengths, size, seed=seed, epoch=epoch)
    assert all(np.array_equal(one, two) for one, two in zip(batches, again, strict=True))


@given(lengths=lengths, budget=st.integers(1, 2000))
def test_passes_keep_order_and_budget(lengths: np.ndarray, budget: int) -> None:
    rows = np.arange(len(lengths))
    parts = passes(rows, lengths, budget)
    assert np.array_equal(np.concatenate(parts), rows)
    assert all(len(part) == 1 or len(part) * lengths[part].max() <= budget for part in parts)


@given(lengths=lengths)
def test_sorted_batches_start_with_the_longest_and_hold_every_row(lengths: np.ndarray) -> None:
    order = np.concatenate(sorted_batches(lengths, 512))
    assert sorted(order) == list(range(len(lengths)))
    assert list(lengths[order]) == sorted(lengths, reverse=True)


def test_grouping_by_length_leaves_little_padding() -> None:
    random = np.random.default_rng(0)
    sizes = np.clip(random.lognormal(2.7, 0.5, 5000).astype(np.int64), 4, 128)

    def padded(batches: list[np.ndarray]) -> int:
        return sum(len(batch) * int(sizes[batch].max()) for batch in batches)

    order = random.permutation(5000)
    plain = padded([order[at : at + 32] for at in range(0, 5000, 32)])
    assert padded(epoch_batches(sizes, 32, seed=0, epoch=0)) < 1.1 * sizes.sum() < 0.6 * plain


logits = arrays(np.float32, st.tuples(st.integers(2, 30), st.integers(2, 6)), elements=st.floats(-20, 20, width=32))


@settings(deadline=None)
@given(logits=logits, seed=st.integers(0, 1000))
def test_the_fitted_temperature_keeps_decisions_and_never_raises_the_loss(logits: np.ndarray, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    temperature = fit_temperature(logits, labels)
    assert 0.05 <= temperature <= 20
    before = negative_log_likelihood(logits, labels)
    assert negative_log_likelihood(logits, labels, temperature) <= before + 1e-3 * (1 + before)
    scores = softmax(logits, temperature)
    # Equal logits may swap places by rounding; a decision is kept when the old winner still scores highest.
    kept = scores[np.arange(len(scores)), logits.argmax(axis=1)]
    assert np.allclose(kept, scores.max(axis=1), rtol=1e-6)
    assert 0 <= expected_calibration_error(scores, labels) <= 1
