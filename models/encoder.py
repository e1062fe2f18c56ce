"""The text classifier as a torch module, and its way to disk and back.

Encoder, mean pooling over real tokens, dropout, one linear layer. Training fits it, the torch engine runs
it, the export traces it. Only torch, transformers, tokenizers and safetensors are imported, so that a
Bento can hold this module; no training logic is here.
"""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError
from leitstand.files import atomic_dir
from models.artifact import ClassifierConfig, read_config, seal, verify, write_config

__all__ = [
    "TextEncoderClassifier",
    "build_classifier",
    "load_base_tokenizer",
    "load_classifier_module",
    "load_tokenizer",
    "save_classifier",
]

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"


class TextEncoderClassifier(nn.Module):
    """Scores every label for every text.

    Args:
        encoder: A pretrained encoder whose first output is (n, tokens, hidden).
        labels: Number of labels.
        dropout: On the pooled embedding, while training.
    """

    def __init__(self, encoder: PreTrainedModel, labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = cast(Any, None)  # the [CLS] pooler takes no part in mean pooling
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean of the last hidden states over real tokens: (n, hidden) from two (n, tokens) int64 tensors."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (n, labels), not yet divided by the temperature."""
        return self.head(self.dropout(self.embed(input_ids, attention_mask)))


def build_classifier(base: Path, labels: int, *, dropout: float = 0.0) -> TextEncoderClassifier:
    """A classifier on the pretrained encoder in the folder `base`, in float32, with a fresh head.

    `dropout` replaces the rates of all dropout layers of the encoder, too.

    Raises:
        ConfigurationError: transformers cannot build the encoder from that folder.
    """
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        encoder = AutoModel.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"The base model in {base} cannot be loaded: {error}", hint="name a text encoder that transformers knows"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return TextEncoderClassifier(encoder, labels, dropout)


def load_base_tokenizer(base: Path, max_tokens: int) -> Tokenizer:
    """The base model's fast tokenizer, which truncates to `max_tokens` and pads to the longest of a batch.

    Raises:
        ConfigurationError: The folder holds no tokenizer that works without Python code.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(base, local_files_only=True)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"The base model in {base} has no usable fast tokenizer: {error}", hint="add its tokenizer.json"
        ) from error
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(pad_id=loaded.pad_token_id or 0, pad_token=loaded.pad_token or "[PAD]")
    return tokenizer


def save_classifier(model: TextEncoderClassifier, tokenizer: Tokenizer, config: ClassifierConfig, target: Path) -> str:
    """Writes the folder described in `models.artifact` and returns its weights digest.

    The folder appears whole or not at all. Equal weights give equal bytes.
    """
    weights = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in model.state_dict().items()}
    with atomic_dir(target) as part:
        model.encoder.config.save_pretrained(part)
        tokenizer.save(str(part / TOKENIZER))
        save_file(weights, part / WEIGHTS)
        write_config(part, config)
        return seal(part)


def load_classifier_module(folder: Path, *, attention: str = "sdpa") -> tuple[TextEncoderClassifier, ClassifierConfig]:
    """The classifier in `folder`, verified against its manifest, in float32 and evaluation mode.

    Args:
        folder: As `save_classifier` wrote it.
        attention: transformers' attention implementation, ``sdpa`` or ``eager``.

    Raises:
        NotFoundError: The folder holds no classifier.
        IntegrityError: A file is missing, truncated, changed, or does not fit the configuration.
    """
    verify(folder)
    config = read_config(folder)
    encoder_config = AutoConfig.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_config(encoder_config, dtype=torch.float32, attn_implementation=attention)
    model = TextEncoderClassifier(encoder, len(config.labels))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise IntegrityError(f"{folder / WEIGHTS} does not fit {folder / 'config.json'}: {error}") from error
    return model.eval(), config


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`; it truncates to the model's ``max_tokens`` and pads to the longest of a batch.

    Raises:
        NotFoundError: The folder holds no tokenizer.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise NotFoundError(f"No tokenizer in {folder}: {TOKENIZER} is missing")
    return Tokenizer.from_file(str(path))
