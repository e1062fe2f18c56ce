"""Anchors: copies of signed heads that the holder of the trail cannot change. Here: in a folder on another host.

One anchor is one file, ``NAME/SEQUENCE.json``, written once and never again. `models.blobs.anchors` is the same on S3
with object lock.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from governance.audit.reading import Reader
from governance.audit.verify_standalone import parse_statement, read_public_keys
from leitstand.errors import IntegrityError, PermanentBackendError

__all__ = ["AnchorStore", "FolderAnchors", "anchor_heads"]


class AnchorStore(Protocol):
    """Where anchors are kept."""

    def put(self, name: str, content: bytes) -> bool:
        """Keeps an anchor for good; False when there is one of that name already, which is left as it is.

        Raises:
            TransientBackendError: Worth trying later.
            PermanentBackendError: It will be refused again.
        """
        ...

    def read(self) -> Sequence[tuple[str, bytes]]:
        """Name and content of every anchor, by name."""
        ...


class FolderAnchors:
    """`AnchorStore` in a folder, which only helps where the gateway's host cannot change it afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, content: bytes) -> bool:
        """See `AnchorStore.put`."""
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        except FileExistsError:
            return False
        except OSError as error:
            raise PermanentBackendError(f"{path} cannot be written: {error}", hint="check the folder") from error
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return True

    def read(self) -> Sequence[tuple[str, bytes]]:
        """See `AnchorStore.read`."""
        return [
            (str(path.relative_to(self._folder)), path.read_bytes()) for path in sorted(self._folder.rglob("*.json"))
        ]


def anchor_heads(folder: Path, store: AnchorStore) -> dict[str, int]:
    """Anchors the newest signed head of every chain; returns the sequences that are new there, by chain.

    Raises:
        IntegrityError: A head is not one that we signed.
    """
    keys = read_public_keys(sorted((folder / "public_keys").glob("*.pem")))
    new = {}
    for chain in Reader(folder).chains():
        head = chain / "head.json"
        if not head.is_file():
            continue
        content = head.read_bytes()
        try:
            statement = parse_statement(content, keys, str(head))
        except ValueError as error:
            raise IntegrityError(f"{head}: {error}", hint="run `leitstand audit verify`") from error
        if store.put(f"{chain.name}/{statement.sequence:020d}.json", content):
            new[chain.name] = statement.sequence
    return new
