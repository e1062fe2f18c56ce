"""A tiny classifier on disk, as training would leave it."""

from pathlib import Path

import torch

from models.artifact import ClassifierConfig
from models.encoder import build_classifier, load_base_tokenizer, save_classifier
from tests.training_for_tests import LABELS, tiny_base

__all__ = ["TEXTS", "tiny_classifier"]

TEXTS = [
    "where is my card",
    "please send the cash now",
    "transfer not arrived",
    "why is the wire late again please help",
    "card",
    "the note is not the coin " * 6,
]


def tiny_classifier(folder: Path) -> Path:
    """Untrained two-layer BERT with a head; answers differ between texts."""
    base = tiny_base(folder / "base")
    torch.manual_seed(11)
    module = build_classifier(base, len(LABELS))
    torch.nn.init.normal_(module.head.weight, std=1.0)
    config = ClassifierConfig(
        use_case="support", labels=LABELS, max_tokens=32, temperature=1.5, abstain_below=0.5, base_model="tiny"
    )
    save_classifier(module.eval(), load_base_tokenizer(base, 32), config, folder / "model")
    return folder / "model"
