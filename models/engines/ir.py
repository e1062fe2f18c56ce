"""The files of an exported OpenVINO graph: ``model.xml``, ``model.bin`` and ``export.json``.

``export.json`` says which weights the graph came from, so that a graph left over from other weights is
never used. Needs neither OpenVINO nor torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from leitstand.errors import IntegrityError, NotFoundError
from leitstand.files import digest_file, digest_json

__all__ = ["Export", "ir_folder", "is_current", "read_export", "source_digest"]

FORMAT = 2  # 2: the pooled embedding is a second output
SOURCES = ("config.json", "model.safetensors")


class Export(BaseModel):
    """Where a graph came from and how it wants its input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    format: int = FORMAT
    source: str
    packed: bool
    weights: Literal["fp32", "int8"]
    openvino: str
    bin_bytes: int


def ir_folder(model_dir: Path, precision: str) -> Path:
    """Where the graph for `precision` lies: in the folder (a Bento), else beside it, so that the model stays as sealed.

    int8 weights have a graph of their own.
    """
    name = "openvino-int8" if precision == "int8" else "openvino"
    inside = model_dir / name
    return inside if inside.is_dir() else model_dir.parent / f".{model_dir.name}.graphs" / name


def read_export(folder: Path) -> Export:
    """Reads ``export.json``.

    Raises:
        NotFoundError: There is no exported graph.
        IntegrityError: It is damaged or truncated.
    """
    try:
        export = Export.model_validate_json((folder / "export.json").read_bytes())
        size = (folder / "model.bin").stat().st_size
    except FileNotFoundError as error:
        raise NotFoundError(f"No exported graph in {folder}", hint="package the version again") from error
    except ValidationError as error:
        raise IntegrityError(f"{folder / 'export.json'} is damaged", hint="delete the folder") from error
    if size != export.bin_bytes:
        raise IntegrityError(
            f"{folder / 'model.bin'} has {size} bytes, the export says {export.bin_bytes}", hint="delete the folder"
        )
    return export


def source_digest(model_dir: Path) -> str | None:
    """Digest of the files that a graph is made from, or None in a Bento, which holds only the graph."""
    if not (model_dir / "model.safetensors").is_file():
        return None
    return digest_json({name: digest_file(model_dir / name) for name in SOURCES})


def is_current(model_dir: Path, folder: Path) -> bool:
    """Whether `folder` holds a whole graph of these weights, in the present format."""
    try:
        export = read_export(folder)
    except (NotFoundError, IntegrityError):
        return False
    source = source_digest(model_dir)
    return export.format == FORMAT and (source is None or export.source == source)
