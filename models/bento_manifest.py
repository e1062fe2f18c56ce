"""What a Bento knows about itself: ``serving.json``, written by packaging, read once at start.

Nothing is asked from a registry at run time; the facts of the version travel with its code.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from leitstand.errors import ConfigurationError

__all__ = ["ServingManifest", "read_manifest"]

FILE = Path(__file__).resolve().parent.parent / "serving.json"


class ServingManifest(BaseModel):
    """The identity and the limits of one served version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    use_case: str
    version: int
    title: str = ""
    model_tag: str
    weights_digest: str
    data_digest: str
    commit: str
    engine: Literal["openvino", "torch"]
    precision: Literal["auto", "fp32", "bf16", "int8"]
    max_batch_size: int
    max_queue: int
    deadline_ms: int
    max_text_bytes: int


def read_manifest(path: Path = FILE) -> ServingManifest | None:
    """The manifest beside the code, or None outside a Bento.

    Raises:
        ConfigurationError: The file is damaged.
    """
    try:
        return ServingManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConfigurationError(f"{path} is damaged: {error}", hint="package the version again") from error
