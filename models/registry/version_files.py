"""The files of registered versions in a blob store, and what a killed registration leaves of them.

    NAME/KEY_ID/model/...          the model directory, its manifest written last
    NAME/KEY_ID/attachments/...    gate report, model card, ...

Nothing here makes a version visible: the registry does, after everything has been stored. Before the first
byte, a note of the attempt is written below `attempts`; it goes when the version is there. A note found
later under the registration lock therefore belongs to a killed attempt, and its files are removed.
A model directory is stored under the candidate's key, so repeating an attempt sends only what is missing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from leitstand.errors import ConflictError, IntegrityError, NotFoundError
from leitstand.files import atomic_dir, digest_file, write_text
from leitstand.ports import BlobStore
from leitstand.types import ModelCandidate, ModelVersion
from models.artifact import MANIFEST, read_manifest, verify
from models.blobs.disk import on_disk
from models.registry.facts import key_id

__all__ = ["VersionFiles"]


class VersionFiles:
    """Files of versions below one prefix of a blob store."""

    def __init__(self, blobs: BlobStore, attempts: Path) -> None:
        self._blobs = blobs
        self._attempts = attempts

    @contextmanager
    def attempt(self, candidate: ModelCandidate) -> Iterator[None]:
        """Notes an attempt to register for the length of the block; needs the registration lock."""
        note = self._attempts / f"{key_id(candidate.key)}.json"
        with on_disk(note):
            write_text(note, json.dumps({"name": candidate.name, "key": candidate.key}))
        yield
        note.unlink()

    def reclaim(self, *, keep: str, is_registered: Callable[[str, str], bool]) -> int:
        """Removes what killed attempts left, but for the one with the key `keep`; returns how many there were."""
        reclaimed = 0
        for note in sorted(self._attempts.glob("*.json")):
            attempt = json.loads(note.read_text())
            if attempt["key"] == keep:
                continue
            if not is_registered(attempt["name"], attempt["key"]):
                self.remove(attempt["name"], attempt["key"])
            note.unlink(missing_ok=True)
            reclaimed += 1
        return reclaimed

    def remove(self, name: str, key: str) -> None:
        """Removes every file of an attempt."""
        for blob in list(self._blobs.list(folder(name, key) + "/")):
            self._blobs.delete(blob)

    def store(self, candidate: ModelCandidate) -> dict[str, str]:
        """Stores all files of the candidate; returns names and digests of its attachments."""
        model = f"{folder(candidate.name, candidate.key)}/model"
        for name in [*read_manifest(candidate.model_dir).files, MANIFEST]:
            self._blobs.put_file(f"{model}/{name}", candidate.model_dir / name)
        return self.attach(candidate.name, candidate.key, candidate.attachments, {})

    def attach(self, name: str, key: str, files: Mapping[str, Path], there: Mapping[str, str]) -> dict[str, str]:
        """Stores attachments that are not `there` yet and returns all of them with their digests.

        Raises:
            ConflictError: One of them is there with other bytes; versions are immutable.
        """
        digests = {file: digest_file(path) for file, path in files.items()}
        for file, digest in digests.items():
            if there.get(file, digest) != digest:
                raise ConflictError(
                    f"'{name}' has another '{file}' attached already", hint="attach it under another name"
                )
        for file, path in files.items():
            if file not in there:
                self._blobs.put_file(f"{folder(name, key)}/attachments/{file}", path)
        return {**there, **digests}

    def fetch(self, version: ModelVersion, target: Path) -> None:
        """Copies the model directory into `target`, complete and verified or not at all.

        Raises:
            IntegrityError: A file is missing, truncated or changed; the message names it.
        """
        model = f"{folder(version.name, version.key)}/model"
        with on_disk(target), atomic_dir(target) as part:
            self._get(f"{model}/{MANIFEST}", part / MANIFEST, version)
            for name in read_manifest(part).files:
                self._get(f"{model}/{name}", part / name, version)
            digest = verify(part)
            if digest != version.weights_digest:
                raise IntegrityError(
                    f"The files of '{version.ref}' are the model {digest}, registered is {version.weights_digest}",
                    hint="register the model again",
                )

    def attachment(self, version: ModelVersion, name: str, digest: str | None, target: Path) -> Path:
        """Copies one attachment into the folder `target`."""
        if digest is None:
            there = ", ".join(version.attachments) or "none"
            raise NotFoundError(f"'{version.ref}' has no attachment '{name}'", hint=f"it has: {there}")
        path = target / name
        if self._get(f"{folder(version.name, version.key)}/attachments/{name}", path, version) != digest:
            path.unlink()
            raise IntegrityError(f"'{name}' of '{version.ref}' was changed after it was attached", hint="restore it")
        return path

    def _get(self, key: str, target: Path, version: ModelVersion) -> str:
        try:
            return self._blobs.get_file(key, target)
        except NotFoundError as error:
            raise IntegrityError(
                f"'{target.name}' of '{version.ref}' is missing from the registry's files ({key})",
                hint="restore it, or register the model again",
            ) from error


def folder(name: str, key: str) -> str:
    """Where the files of a candidate lie in the blob store."""
    return f"{name}/{key_id(key)}"
