"""Fits only the head: the encoder embeds every text once, then multinomial logistic regression.

The problem is convex, so L-BFGS ends at the same optimum whatever the start; nothing is random. Features
are standardised for the fit, and the standardisation is folded into the head's weights afterwards.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from leitstand.files import atomic_path
from models.checkpoints import disk_errors
from models.forward import embeddings
from models.optimization import class_weights
from models.task import Fitted, Task

__all__ = ["fit_frozen", "fit_head", "initialise_head"]

ROUND = 10  # iterations between two reports


def fit_frozen(task: Task) -> Fitted:
    """Fits ``task.model.head``; with ``profile.refit``, once more on train and validation rows together."""
    started = time.monotonic()
    features, held_out, resumed = _embed_once(task)
    labels = task.train.labels
    steps = _fit(task, features, labels, task.train.weights, report=True)
    with torch.no_grad():
        logits = task.model.head.cpu()(held_out)
    _report_validation(task, steps, logits)
    if task.profile.refit:
        weights = None
        if task.train.weights is not None and task.validation.weights is not None:
            weights = torch.cat([task.train.weights, task.validation.weights])
        both = torch.cat([features, held_out]), torch.cat([labels, task.validation.labels])
        _fit(task, *both, weights, report=False)
    task.model.head.to(task.workers.device)
    return Fitted(logits, steps, time.monotonic() - started, resumed, stopped_early=False)


def initialise_head(task: Task) -> None:
    """Fits the head on frozen embeddings as a start for training everything (LP-FT, Kumar et al. 2022)."""
    features, _, _ = _embed_once(task)
    _fit(task, features, task.train.labels, task.train.weights, report=False, iterations=100)
    task.model.head.to(task.workers.device)


def fit_head(
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    l2: float,
    label_smoothing: float,
    iterations: int,
    report: Callable[[int, float], None],
    row_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Multinomial logistic regression with a ridge penalty.

    Minimises mean weighted cross-entropy + l2 / 2 * |W|^2 over W for standardised features.

    Args:
        features: (n, hidden) float32.
        labels: (n,) int64.
        weights: (labels,) loss weight of each label.
        l2: Strength of the penalty; the bias is not penalised.
        label_smoothing: Share of the target that is spread over all labels.
        iterations: At most this many.
        report: Called now and then with iterations done and the objective.
        row_weights: (n,) how much each row counts; None: all the same.

    Returns:
        Weight (labels, hidden) and bias (labels,) for features as given, and the iterations taken.
    """
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    inputs = (features - mean) / scale
    weight = torch.zeros(len(weights), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(weights), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ROUND, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(bias, inputs, weight.t())
        loss = _mean_loss(logits, labels, weights, label_smoothing, row_weights)
        loss = loss + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    done = 0
    while done < iterations:
        loss = optimizer.step(objective).item()
        reached = int(optimizer.state[weight]["n_iter"])
        if reached == done:
            break
        done = reached
        report(done, loss)
    folded = weight.detach() / scale
    return folded, bias.detach() - folded @ mean, done


def _mean_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float, row_weights: Tensor | None
) -> Tensor:
    if row_weights is None:
        return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing)
    losses = functional.cross_entropy(
        logits, labels, weight=weights, label_smoothing=label_smoothing, reduction="none"
    )  # fmt: skip
    return (losses * row_weights).sum() / (weights[labels] * row_weights).sum()


def _fit(
    task: Task, features: Tensor, labels: Tensor, row_weights: Tensor | None, *, report: bool,
    iterations: int | None = None,
) -> int:  # fmt: skip
    profile, head = task.profile, task.model.head

    def show(done: int, loss: float) -> None:
        if report:
            task.curves.add(done, done, "train", loss=loss)
            task.curves.advance(done, loss=loss)

    weight, bias, steps = task.workers.share(
        fit_head(
            features,
            labels,
            class_weights(labels, head.out_features, profile.class_weights),
            l2=profile.l2,
            label_smoothing=profile.label_smoothing,
            iterations=iterations or profile.epochs,
            report=show,
            row_weights=row_weights,
        )
        if task.workers.leads
        else None
    )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return steps


def _report_validation(task: Task, step: int, logits: Tensor) -> None:
    labels = task.validation.labels
    loss = float(functional.cross_entropy(logits, labels))
    accuracy = float((logits.argmax(1) == labels).float().mean())
    task.curves.add(step, step, "validation", loss=loss, accuracy=accuracy)
    task.curves.advance(step, validation_accuracy=accuracy)


def _embed_once(task: Task) -> tuple[Tensor, Tensor, bool]:
    """Embeddings of train and validation rows, kept in the run folder so that a restart finds them."""
    path = task.folder / "embeddings.safetensors"
    kept = task.workers.share(_read(path, task) if task.workers.leads else None)
    if kept is not None:
        return kept["train"], kept["validation"], True
    train = embeddings(task.model, task.train.texts, task.workers)
    validation = embeddings(task.model, task.validation.texts, task.workers)
    if task.workers.leads:
        with disk_errors(path), atomic_path(path) as part:
            save_file({"train": train, "validation": validation}, part)
    return train, validation, False


def _read(path: Path, task: Task) -> dict[str, Tensor] | None:
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):
        return None
    sizes = {name: len(value) for name, value in kept.items()}
    return kept if sizes == {"train": len(task.train.texts), "validation": len(task.validation.texts)} else None
