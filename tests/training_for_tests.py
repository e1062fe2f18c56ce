"""A random two-layer encoder and a data set of sixty rows: training in a second."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from leitstand.files import digest_bytes, digest_file
from leitstand.types import Snapshot, SplitInfo
from leitstand.usecase import UseCase
from models.snapshots import split_digest

__all__ = ["LABELS", "tiny_base", "tiny_snapshot", "tiny_use_case"]

LABELS = ("card", "cash", "transfer")
WORDS = {
    "card": ["card", "plastic", "chip"],
    "cash": ["cash", "note", "coin"],
    "transfer": ["transfer", "wire", "send"],
}
FILLER = ["my", "the", "a", "please", "why", "where", "is", "not", "arrived", "help", "today", "again", "now", "late"]


def tiny_base(folder: Path) -> Path:
    """An untrained BERT with a word-level tokenizer, as a local base model."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = [*specials, *FILLER, *(word for words in WORDS.values() for word in words)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_snapshot(folder: Path) -> Snapshot:
    """Sixty training rows and nine test rows of three labels that words tell apart."""
    random = np.random.default_rng(3)
    splits: dict[str, SplitInfo] = {}
    for split, count in (("train", 60), ("test", 9)):
        labels = [LABELS[row % len(LABELS)] for row in range(count)]
        texts = [
            " ".join(
                [*random.choice(FILLER, random.integers(1, 4)), *random.choice(WORDS[label], random.integers(2, 6))]
            )
            for label in labels
        ]
        path = folder / f"{split}.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
        splits[split] = SplitInfo(path=path, rows=count, digest=split_digest(zip(texts, labels, strict=True)))
    return Snapshot(
        use_case="tiny", digest=digest_bytes("".join(s.digest for s in splits.values()).encode()), labels=LABELS,
        splits=splits, sources={name: str(info.path) for name, info in splits.items()},
        source_digests={name: digest_file(info.path) for name, info in splits.items()},
    )  # fmt: skip


def tiny_use_case(base: Path | str, **profile: Any) -> UseCase:
    """A use case with one profile, ``tiny``; `profile` overrides its fields."""
    defaults = {
        "epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 2e-2, "precision": "fp32",
        "checkpoint_every_steps": 5,
    }  # fmt: skip
    return UseCase.model_validate(
        {
            "schema_version": 1, "name": "tiny", "title": "Tiny", "owner": "tests", "task": "text-classification",
            "data": {"train": "train.parquet", "test": "test.parquet", "labels": list(LABELS), "licence": "CC0-1.0"},
            "model": {"base": str(base), "max_tokens": 32},
            "training": {
                "default_profile": "tiny", "validation_fraction": 0.2, "profiles": {"tiny": defaults | profile}
            },
            "gates": [{"metric": "accuracy", "floor": 0.5}],
        }
    )  # fmt: skip
