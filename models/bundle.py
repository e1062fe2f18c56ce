"""Moves registered versions and Bentos between installations, through a folder or an S3 prefix.

    files/HEX                          the bytes, named by their SHA-256
    versions/NAME/VERSION.json         index of a registered version: its files, digests and facts
    bentos/NAME/TAG.json               index of a Bento: one ``.bento`` file

The index is written last, so a reader sees whole bundles only. Files are named by content: a push that
was killed sends what is missing, and versions that share files store them once. A pull checks every digest
before anything is imported. Aliases do not travel: a version is promoted where it serves.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError
from leitstand.files import digest_file
from leitstand.ports import BlobStore, ModelRegistry
from leitstand.types import ModelCandidate, ModelRef, ModelVersion
from models import bento_files
from models.artifact import FileEntry

__all__ = ["Bundle", "pull_bento", "pull_version", "push_bento", "push_version"]

MODEL, ATTACHMENTS = "model", "attachments"
Say = Callable[[str], None]


def _silent(message: str) -> None:
    """Drops progress messages."""


class Bundle(BaseModel):
    """The index of one bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: Literal["version", "bento"]
    name: str
    tag: str
    files: dict[str, FileEntry]
    version: ModelVersion | None = None

    @property
    def key(self) -> str:
        """Where the index lies in the store."""
        return _index_key(self.kind, self.name, self.tag)


def push_version(registry: ModelRegistry, ref: ModelRef, store: BlobStore, say: Say = _silent) -> Bundle:
    """Stores model files, attachments and facts of a version; pushing it again sends nothing.

    Raises:
        NotFoundError: No such version.
        IntegrityError: The registry's own files are damaged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        version = registry.fetch(ref, folder / MODEL)
        for name in version.attachments:
            registry.attachment(version.ref, name, folder / ATTACHMENTS)
        facts = version.model_copy(update={"aliases": ()})
        paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        bundle = Bundle(
            kind="version", name=version.name, tag=str(version.version), files=_entries(paths), version=facts
        )
        return _push(bundle, paths, store, say)


def pull_version(
    registry: ModelRegistry, ref: ModelRef, store: BlobStore, cache: Path, say: Say = _silent
) -> ModelVersion:
    """Registers a pushed version here and returns it; it may get another number. Pulling again changes nothing.

    Args:
        registry: Takes the version.
        ref: Name and number it was pushed as.
        store: Where it was pushed to.
        cache: Folder for downloads; a pull that was killed goes on with what lies there.
        say: Takes progress messages.

    Raises:
        NotFoundError: No such bundle, or it is not complete yet.
        IntegrityError: A file does not match its digest; nothing was registered.
    """
    bundle, folder = _pull("version", ref.name, str(ref.version), store, cache, say)
    version = bundle.version
    if version is None:
        raise IntegrityError(f"The bundle of '{ref}' says nothing about its version", hint="push it again")
    fields = set(ModelCandidate.model_fields) - {"model_dir", "attachments"}
    candidate = ModelCandidate(
        **version.model_dump(include=fields), model_dir=folder / MODEL,
        attachments={name: folder / ATTACHMENTS / name for name in version.attachments},
    )  # fmt: skip
    registered = registry.register(candidate)
    shutil.rmtree(folder)
    return registered


def push_bento(tag: str, store: BlobStore, cache: Path, say: Say = _silent) -> Bundle:
    """Exports a Bento and stores it; a push that was killed goes on with the export in `cache`."""
    name, version, path = bento_files.export(tag, cache)
    paths = {f"{name}-{version}.bento": path}
    bundle = _push(Bundle(kind="bento", name=name, tag=version, files=_entries(paths)), paths, store, say)
    path.unlink()
    return bundle


def pull_bento(tag: str, store: BlobStore, cache: Path, say: Say = _silent) -> str:
    """Imports a pushed Bento into the local store and returns its tag; it is left alone when it is there."""
    name, colon, version = tag.partition(":")
    if not colon:
        raise ConfigurationError(f"'{tag}' is no Bento tag", hint="write NAME:VERSION")
    bundle, folder = _pull("bento", name, version, store, cache, say)
    imported = bento_files.load(f"{bundle.name}:{bundle.tag}", folder / next(iter(bundle.files)))
    shutil.rmtree(folder)
    return imported


def _index_key(kind: str, name: str, tag: str) -> str:
    return f"{kind}s/{name}/{tag}.json"


def _file_key(entry: FileEntry) -> str:
    return f"files/{entry.sha256.removeprefix('sha256:')}"


def _entries(paths: Mapping[str, Path]) -> dict[str, FileEntry]:
    return {name: FileEntry(sha256=digest_file(path), bytes=path.stat().st_size) for name, path in paths.items()}


def _push(bundle: Bundle, paths: Mapping[str, Path], store: BlobStore, say: Say) -> Bundle:
    for name, entry in bundle.files.items():
        say(f"{name} ({entry.bytes:,} bytes)")
        store.put_file(_file_key(entry), paths[name])
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index.json"
        index.write_text(bundle.model_dump_json(indent=1), encoding="utf-8")
        store.put_file(bundle.key, index)
    return bundle


def _pull(kind: str, name: str, tag: str, store: BlobStore, cache: Path, say: Say) -> tuple[Bundle, Path]:
    """Fetches index and files into a folder named by the index's digest, and checks every digest."""
    bundle, digest = _index(_index_key(kind, name, tag), store)
    folder = cache / f"{kind}-{digest.removeprefix('sha256:')[:32]}"
    for path, entry in bundle.files.items():
        target = folder / path
        if target.is_file() and digest_file(target) == entry.sha256:
            continue
        say(f"{path} ({entry.bytes:,} bytes)")
        if store.get_file(_file_key(entry), target) != entry.sha256:
            target.unlink()
            raise IntegrityError(
                f"'{path}' of {kind} '{name}:{tag}' does not match its digest {entry.sha256}", hint="push it again"
            )
    return bundle, folder


def _index(key: str, store: BlobStore) -> tuple[Bundle, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.json"
        try:
            digest = store.get_file(key, path)
            bundle = Bundle.model_validate_json(path.read_bytes())
        except NotFoundError as error:
            there = ", ".join(other for other in store.list(key.split("/", 1)[0] + "/")) or "none"
            raise NotFoundError(f"No bundle '{key}' there: {error.message}", hint=f"bundles there: {there}") from error
        except ValidationError as error:
            raise IntegrityError(f"The index '{key}' is damaged: {error}", hint="push it again") from error
    for name in bundle.files:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise IntegrityError(f"The index '{key}' names '{name}', which is not inside the bundle")
    return bundle, digest
