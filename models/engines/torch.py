"""Runs a classifier with torch: on a GPU when there is one, and as the reference on CPUs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from leitstand.errors import ConfigurationError
from models.encoder import load_classifier_module
from models.engines.cpus import available_cpus

__all__ = ["TorchEngine"]

FloatArray = npt.NDArray[np.float32]


class TorchEngine:
    """Logits of token ids. One call at a time uses all threads, or the GPU.

    Args:
        model_dir: As `models.artifact` describes it.
        precision: ``fp32`` or ``bf16`` (autocast).
        threads: Compute threads of the process; 0 means one per available CPU.

    Raises:
        ConfigurationError: Unknown precision.
        IntegrityError: The weights are damaged.
    """

    name = "torch"
    concurrency = 1

    def __init__(self, model_dir: Path, *, precision: str = "fp32", threads: int = 0) -> None:
        if precision not in ("fp32", "bf16"):
            raise ConfigurationError(f"The torch engine has no precision '{precision}'", hint="use fp32 or bf16")
        self.precision = precision
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(threads or available_cpus())
        module, _ = load_classifier_module(model_dir)
        self._module = module.to(self._device)

    def run(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """Logits (n, labels) of one batch, padded to its longest text."""
        return self.run_with_embedding(ids)[0]

    def run_with_embedding(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, FloatArray]:
        """Logits (n, labels) and pooled embeddings (n, hidden) of one batch."""
        width = max(len(text) for text in ids)
        tokens = np.zeros((len(ids), width), np.int64)
        mask = np.zeros_like(tokens)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = text
            mask[row, : len(text)] = 1
        bf16 = self.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            pooled = self._module.embed(
                torch.from_numpy(tokens).to(self._device), torch.from_numpy(mask).to(self._device)
            )
            logits = self._module.head(pooled)
        return logits.float().cpu().numpy(), pooled.float().cpu().numpy()
