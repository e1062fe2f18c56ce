"""A row's weight in training means how often it counts."""

import torch

from models.frozen import fit_head
from models.guesses import rank_labels


def fitted(features: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    weight, bias, _ = fit_head(
        features, labels, torch.ones(3), l2=1e-2, label_smoothing=0.1, iterations=200, report=lambda *_: None,
        row_weights=weights,
    )  # fmt: skip
    return features @ weight.T + bias


def test_equal_weights_change_nothing() -> None:
    torch.manual_seed(1)
    features, labels = torch.randn(60, 5), torch.arange(60) % 3
    torch.testing.assert_close(
        fitted(features, labels, torch.full((60,), 0.3)), fitted(features, labels, None), atol=1e-3, rtol=1e-3
    )


def test_a_row_of_hardly_any_weight_counts_as_if_it_were_another_label_or_none() -> None:
    torch.manual_seed(2)
    features, labels = torch.randn(60, 5), torch.arange(60) % 3
    weights = torch.ones(60)
    weights[:20] = 1e-6
    others = labels.clone()
    others[:20] = 0
    torch.testing.assert_close(
        fitted(features, labels, weights)[20:], fitted(features, others, weights)[20:], atol=1e-2, rtol=1e-2
    )


def test_guesses_rank_separable_labels_first_and_know_how_often_they_miss() -> None:
    torch.manual_seed(3)
    labels = torch.arange(120) % 4
    centres = 6 * torch.randn(4, 8)
    features = (centres[labels] + torch.randn(120, 8)).numpy()
    ranked, missed = rank_labels(features, labels.numpy(), centres.numpy(), 4, best=2, seed=0)
    assert ranked[:, 0].tolist() == [0, 1, 2, 3]
    assert ranked.shape == (4, 2)
    assert missed < 0.05
    assert rank_labels(features, labels.numpy(), features[:0], 4, best=9, seed=0)[0].shape == (0, 4)
