"""Drift reports in a bucket: ``reports/<use case>/<file>``, the same names and relative links as on disk.

The blob store is handed in; whether to publish is the settings' choice (`publishes`). A window's page is
stored before its record and the index last, so that no reader of the bucket follows a link into nothing.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from leitstand.errors import NotFoundError
from leitstand.ports import BlobStore
from leitstand.settings import Settings

__all__ = ["PREFIX", "publish", "publishes", "withdraw"]

PREFIX = "reports"


def publishes(settings: Settings) -> bool:
    """Whether reports go to the blob store: when one is named. Its default is a folder beside the reports."""
    return bool(settings.blobs.uri)


def publish(blobs: BlobStore, folder: Path, use_case: str, stems: Iterable[str]) -> Sequence[str]:
    """Stores page and record of each report, then the index; returns the keys.

    Args:
        blobs: Where to.
        folder: The use case's folder of reports.
        use_case: Its name.
        stems: Names of the reports without suffix.

    Raises:
        NotFoundError: A report is not on disk.
    """
    names = [f"{stem}{suffix}" for stem in stems for suffix in (".html", ".json")]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise NotFoundError(f"No report '{missing[0]}' in {folder}", hint="build it before it is published")
    if (folder / "index.html").is_file():
        names.append("index.html")
    for name in names:
        blobs.put_file(_key(use_case, name), folder / name)
    return [_key(use_case, name) for name in names]


def withdraw(blobs: BlobStore, use_case: str, names: Iterable[str]) -> None:
    """Removes files that retention removed on disk; those that are not there are no error."""
    for name in names:
        blobs.delete(_key(use_case, name))


def _key(use_case: str, name: str) -> str:
    return f"{PREFIX}/{use_case}/{name}"
