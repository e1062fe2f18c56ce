"""Checkpoints of a training run: whole or absent, the newest two kept.

    step-00000200/state.safetensors   every tensor
    step-00000200/state.json          everything else, and the digest of the tensors

Nothing is pickled. A folder appears by rename once both files are on disk, so a kill at any moment leaves
the previous checkpoint; one that is damaged all the same is skipped with a warning.
"""

import contextlib
import errno
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leitstand.errors import PermanentBackendError
from leitstand.files import atomic_dir, canonical_json, digest_file

__all__ = ["Checkpoints", "disk_errors"]

KEPT = 2
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in `folder`. Written by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes the state after `step` and removes all but the newest two.

        Raises:
            PermanentBackendError: The disk is full or cannot be written; nothing half-written stays.
        """
        target = self._folder / f"step-{step:08d}"
        with disk_errors(target), atomic_dir(target) as part:
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part / "state.safetensors"
            )
            digest = digest_file(part / "state.safetensors")
            (part / "state.json").write_text(canonical_json({"step": step, "tensors": digest, "facts": dict(facts)}))
        for old in self._stored()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Step, tensors and facts of the newest whole checkpoint, or None."""
        for folder in reversed(self._stored()):
            try:
                state = json.loads((folder / "state.json").read_text())
                if digest_file(folder / "state.safetensors") == state["tensors"]:
                    return int(state["step"]), load_file(folder / "state.safetensors"), state["facts"]
            except (OSError, ValueError, KeyError, SafetensorError):
                pass
            _log.warning("Checkpoint %s is damaged; an older one is used", folder)
        return None

    def clear(self) -> None:
        """Removes all of them; a finished run needs none."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stored(self) -> list[Path]:
        return sorted(self._folder.glob("step-????????"))


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turns a failed write into an error that says where, and what to do.

    Raises:
        PermanentBackendError: Writing below `target` failed.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in _DISK and error.errno is not None:
            raise
        free = shutil.disk_usage(_existing(target)).free // 2**20
        raise PermanentBackendError(
            f"Writing {target} failed: {error} ({free} MiB free)",
            hint="free some space or move LEITSTAND_HOME to a larger disk, then run again; it resumes",
        ) from error


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
