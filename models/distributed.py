"""One process or many: what training needs to know about its peers.

`open_workers` joins the process group when torchrun or ``accelerate launch`` started this process, and
stands alone otherwise. NCCL on GPUs, gloo on CPUs. Every process must see the snapshot and the base
model under the same paths; only rank 0 writes, so the run folder need not be shared. Start several with

    torchrun --nproc-per-node 4 -m models.train_main ...
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Workers", "open_workers"]


@dataclass(frozen=True)
class Workers:
    """This process among its peers.

    Attributes:
        rank: 0 writes files and talks to the tracker.
        size: Number of processes; a global batch is shared among them.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, with gradients averaged over processes in the last backward pass of a step."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


@contextlib.contextmanager
def open_workers() -> Iterator[Workers]:
    """Joins the process group that the launcher described, for the length of the block."""
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        yield _described()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield _described()
    finally:
        dist.destroy_process_group()


def _described() -> Workers:
    joined = dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
    if not torch.cuda.is_available():
        return Workers(rank, size, torch.device("cpu"))
    index = rank % torch.cuda.device_count() if joined else torch.cuda.current_device()
    torch.cuda.set_device(index)
    return Workers(rank, size, torch.device("cuda", index))
