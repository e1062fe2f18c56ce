"""Sealed model directories of a few bytes, and candidates made of them."""

from collections.abc import Mapping
from pathlib import Path

from leitstand.files import digest_bytes, digest_json
from leitstand.types import ModelCandidate
from models.artifact import ClassifierConfig, seal, write_config

__all__ = ["candidate", "model_dir"]


def model_dir(folder: Path, *, weights: bytes = b"weights", use_case: str = "support") -> Path:
    """A folder that looks like a trained classifier to everything that does not compute with it."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    config = ClassifierConfig(use_case=use_case, labels=("card", "cash"), max_tokens=32, base_model="tiny")
    write_config(folder, config)
    seal(folder)
    return folder


def candidate(
    folder: Path, *, name: str = "support", weights: bytes = b"weights", attachments: Mapping[str, Path] | None = None
) -> ModelCandidate:
    """A candidate whose model lies in `folder`, written there unless it exists."""
    if not folder.exists():
        model_dir(folder, weights=weights, use_case=name)
    digest = seal(folder)
    return ModelCandidate(
        name=name, key=digest_json({"weights": digest}), model_dir=folder, weights_digest=digest,
        data_digest=digest_bytes(b"data"), base_model="package:tiny", commit="0" * 40, run_id="run-1", profile="quick",
        tracking_url="https://tracker.example/run-1", metrics={"accuracy": 0.93}, attachments=dict(attachments or {}),
    )  # fmt: skip
