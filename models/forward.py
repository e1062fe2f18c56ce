"""Runs a model over many texts without gradients: sorted batches, shared among processes."""

import torch
from torch import Tensor

from models.batching import EncodedTexts, sorted_batches
from models.distributed import Workers
from models.encoder import TextEncoderClassifier

__all__ = ["embeddings", "logits"]

TOKENS = 4096  # padded tokens per batch: a few MB of activations, large enough for full speed


def embeddings(model: TextEncoderClassifier, texts: EncodedTexts, workers: Workers) -> Tensor:
    """Pooled embeddings (n, hidden) float32 on the CPU, in the order of `texts`; the same on every process."""
    return _collect(model, texts, workers, width=model.head.in_features, head=False)


def logits(model: TextEncoderClassifier, texts: EncodedTexts, workers: Workers) -> Tensor:
    """Logits (n, labels) float32 on the CPU, in the order of `texts`; the same on every process."""
    return _collect(model, texts, workers, width=model.head.out_features, head=True)


@torch.no_grad()
def _collect(model: TextEncoderClassifier, texts: EncodedTexts, workers: Workers, *, width: int, head: bool) -> Tensor:
    training = model.training
    model.eval()
    found = torch.zeros(len(texts), width, device=workers.device)
    for rows in sorted_batches(texts.lengths, TOKENS)[workers.rank :: workers.size]:
        ids, mask = (tensor.to(workers.device) for tensor in texts.pad(rows))
        found[torch.from_numpy(rows).to(workers.device)] = model(ids, mask) if head else model.embed(ids, mask)
    model.train(training)
    return workers.total(found).cpu()
