"""What a training method is given and what it hands back."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from leitstand.usecase import TrainingProfile
from models.batching import EncodedTexts
from models.curves import Curves
from models.distributed import Workers
from models.encoder import TextEncoderClassifier

__all__ = ["Fitted", "Labelled", "Task"]


@dataclass(frozen=True)
class Labelled:
    """Texts with the index of their label, (n,) int64, and how much each counts, (n,) float32; None: the same."""

    texts: EncodedTexts
    labels: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """One fit.

    Attributes:
        model: Fitted in place.
        train: Rows to learn from.
        validation: Rows held out of the fit, to watch, choose and calibrate.
        profile: How to fit.
        seed: All randomness follows from it.
        folder: For whatever a restart needs.
        workers: The processes that share the work.
        curves: Takes every measured point.
    """

    model: TextEncoderClassifier
    train: Labelled
    validation: Labelled
    profile: TrainingProfile
    seed: int
    folder: Path
    workers: Workers
    curves: Curves


@dataclass(frozen=True)
class Fitted:
    """The outcome of a fit.

    Attributes:
        validation_logits: (n, labels) float32, of the model before any refit on the validation rows.
        steps: Optimizer steps taken, over all restarts.
        seconds: Time spent fitting, over all restarts.
        resumed: An earlier process did part of the work.
        stopped_early: The validation loss had stopped falling.
    """

    validation_logits: Tensor
    steps: int
    seconds: float
    resumed: bool
    stopped_early: bool
