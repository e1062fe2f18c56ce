"""Starts a training from a trained classifier: its encoder, and what its head knows of the labels in common.

Labels that the parent does not have keep the fresh head rows that the model came with. Reads files, trains nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from leitstand.errors import ConfigurationError, IntegrityError
from models.artifact import read_config
from models.encoder import TextEncoderClassifier

__all__ = ["load_weights"]


def load_weights(model: TextEncoderClassifier, labels: Sequence[str], parent: Path) -> int:
    """Copies the weights of the classifier in the folder `parent` into `model`; returns how many labels both know.

    Args:
        model: Built on the same base model, with one head row for each of `labels`.
        labels: Label of each head row.
        parent: As `models.artifact` describes it; the caller has verified it.

    Raises:
        ConfigurationError: The parent's encoder is of another architecture.
        IntegrityError: The weights cannot be read.
    """
    config = read_config(parent)
    try:
        weights = load_file(parent / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{parent / 'model.safetensors'} cannot be read: {error}") from error
    encoder = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    try:
        model.encoder.load_state_dict(encoder)
    except RuntimeError as error:
        raise ConfigurationError(
            f"No warm start from {parent}: its encoder ({config.base_model}) does not fit the base model",
            hint="keep `model.base` as it was for the champion, or set `retraining.warm_start: false`",
        ) from error
    theirs = {label: row for row, label in enumerate(config.labels)}
    known = [(row, theirs[label]) for row, label in enumerate(labels) if label in theirs]
    with torch.no_grad():
        for mine, other in known:
            model.head.weight[mine] = weights["head.weight"][other]
            model.head.bias[mine] = weights["head.bias"][other]
    return len(known)
