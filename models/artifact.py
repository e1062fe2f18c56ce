"""The files of a trained classifier, and their integrity.

    config.json          the encoder's Hugging Face configuration
    tokenizer.json       the fast tokenizer
    model.safetensors    weights: ``encoder.*``, ``head.weight`` (labels, hidden), ``head.bias`` (labels,), float32
    classifier.json      `ClassifierConfig`
    manifest.json        `Manifest`: size and sha256 of every other file

Training writes such a folder, the registry stores it, packaging puts it into a Bento, and every reader
calls `verify` first. Standard library and pydantic only, so that serving can import it.
"""

from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leitstand.errors import IntegrityError, NotFoundError
from leitstand.files import digest_file, digest_json, write_text

__all__ = [
    "MANIFEST",
    "ClassifierConfig",
    "FileEntry",
    "Manifest",
    "read_config",
    "read_manifest",
    "seal",
    "verify",
    "write_config",
]

MANIFEST = "manifest.json"
CONFIG = "classifier.json"


class ClassifierConfig(BaseModel):
    """What a model needs beside its weights to answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    use_case: str
    labels: tuple[str, ...] = Field(description="label of each logit, in order")
    max_tokens: int
    pooling: Literal["mean"] = "mean"
    temperature: float = Field(default=1.0, gt=0, description="logits are divided by it before the softmax")
    abstain_below: float = Field(default=0.5, ge=0, le=1)
    base_model: str


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """The weights digest of the version: sha256 over the names and digests of all files."""
        return digest_json({name: entry.sha256 for name, entry in self.files.items()})


def write_config(folder: Path, config: ClassifierConfig) -> None:
    """Writes ``classifier.json`` atomically."""
    write_text(folder / CONFIG, config.model_dump_json(indent=1))


def read_config(folder: Path) -> ClassifierConfig:
    """Reads ``classifier.json``.

    Raises:
        NotFoundError: The folder holds no classifier.
        IntegrityError: The file is damaged.
    """
    try:
        return ClassifierConfig.model_validate_json((folder / CONFIG).read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"No trained classifier in {folder}: {CONFIG} is missing") from error
    except ValidationError as error:
        raise IntegrityError(f"{folder / CONFIG} is damaged: {error.errors()[0]['msg']}") from error


def seal(folder: Path) -> str:
    """Writes the manifest over all files in the folder and returns the weights digest."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(sha256=digest_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = Manifest(files=files)
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest.digest


def read_manifest(folder: Path) -> Manifest:
    """Reads ``manifest.json``.

    Raises:
        NotFoundError: There is none.
        IntegrityError: It is damaged, or names a file outside the folder.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"No model in {folder}: {MANIFEST} is missing") from error
    except ValidationError as error:
        raise IntegrityError(f"{folder / MANIFEST} is damaged: {error.errors()[0]['msg']}") from error
    for name in manifest.files:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise IntegrityError(f"{folder / MANIFEST} names '{name}', which is not inside the model")
    return manifest


def verify(folder: Path) -> str:
    """Checks every file against the manifest and returns the weights digest.

    Raises:
        NotFoundError: There is no manifest.
        IntegrityError: A file is missing, truncated or changed; the message names it.
    """
    manifest = read_manifest(folder)
    hint = "fetch the version again, or restore the file from the registry"
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing; the manifest lists it", hint=hint)
        size = path.stat().st_size
        if size != entry.bytes:
            raise IntegrityError(f"{path} has {size} bytes, the manifest says {entry.bytes}", hint=hint)
        if digest_file(path) != entry.sha256:
            raise IntegrityError(f"{path} does not match its digest {entry.sha256}", hint=hint)
    return manifest.digest
