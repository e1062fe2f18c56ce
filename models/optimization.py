"""Pieces of the optimizer: which parameter learns how fast, when, at which precision, and its average.

Pure functions over a model and a profile; the loop itself is in `models.finetune`.
"""

import ctypes
import math
import re
import sys

import psutil
import torch
from torch import Tensor, nn

from leitstand.errors import ConfigurationError
from leitstand.usecase import TrainingProfile
from models.encoder import TextEncoderClassifier

__all__ = [
    "Average",
    "autocast_dtype",
    "class_weights",
    "freeze_embeddings",
    "parameter_groups",
    "rate_factor",
    "tune_process",
]

_LAYER = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def freeze_embeddings(model: TextEncoderClassifier) -> None:
    """Stops training of the word embeddings.

    They are half of a small encoder's parameters, and each step touches few of their rows, yet AdamW
    would read and write all of them.
    """
    model.encoder.get_input_embeddings().weight.requires_grad_(False)


def parameter_groups(model: TextEncoderClassifier, profile: TrainingProfile) -> list[dict]:
    """AdamW groups: the head at its own rate, encoder layers at a rate that decays downwards.

    Biases and norms are not decayed. Each group holds its peak rate as ``peak``.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    depth = 1 + max((_layer(name) for name, _ in named), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in named:
        if name.startswith("head."):
            peak = profile.head_learning_rate
        else:
            peak = profile.learning_rate * profile.layer_decay ** (depth - 1 - _layer(name))
        decay = profile.weight_decay if value.ndim > 1 else 0.0
        groups.setdefault((peak, decay), []).append(value)
    return [
        {"params": values, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), values in groups.items()
    ]


def _layer(name: str) -> int:
    """Depth of a parameter's layer, from 0; -1 for the embeddings below them."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else -1


def rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Share of the peak rate in `step` (from 0) of `total`: a linear rise, then a linear or cosine fall to 0."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class Average:
    """Exponential moving average of the trained parameters (Polyak averaging with decay).

    The decay grows with the steps, ``min(decay, (1 + t) / (10 + t))``, so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.tensors = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the parameters after `step` (from 0)."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, value in self._live.items():
            self.tensors[name].lerp_(value, weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges average and parameters; a second call restores them."""
        for name, value in self._live.items():
            kept = value.detach().clone()
            value.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 when matrix products should run in it, None for float32 throughout.

    ``auto`` takes bf16 where the hardware multiplies it: GPUs from Ampere on, CPUs with AVX512-BF16 or
    AMX. Elsewhere bf16 is emulated and slower. It is a rule and not a measurement, so that a resumed run
    and a repeated run compute the same.

    Raises:
        ConfigurationError: bf16 is asked for and the device cannot.
    """
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if precision == "bf16" and not able:
        raise ConfigurationError(
            f"precision: bf16 is not supported by this {device.type}", hint="write `precision: auto` or `fp32`"
        )
    return torch.bfloat16 if able and precision != "fp32" else None


def tune_process() -> int:
    """Sets threads and allocator of this process for training on a CPU; returns the number of threads.

    One thread per physical core (fewer when OMP_NUM_THREADS or the affinity mask say so). glibc returns
    every freed activation to the kernel by default and pays for it in page faults; its thresholds are raised.
    """
    threads = max(1, min(torch.get_num_threads(), psutil.cpu_count(logical=False) or 1))
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return threads


def class_weights(labels: Tensor, count: int, kind: str) -> Tensor:
    """(count,) float32 loss weights: ones, or inversely proportional to how often each label occurs."""
    if kind == "none":
        return torch.ones(count)
    seen = torch.bincount(labels, minlength=count).clamp(min=1).float()
    return len(labels) / (count * seen)
