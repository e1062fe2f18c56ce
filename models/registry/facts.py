"""What a registry keeps beside a version's files: one flat map of strings, the same for every registry."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from leitstand.errors import ConfigurationError, IntegrityError
from leitstand.files import digest_bytes
from leitstand.types import ModelCandidate, ModelVersion
from models.artifact import verify

__all__ = [
    "KEY_ID",
    "attachments_fact",
    "attachments_of",
    "check_candidate",
    "check_name",
    "facts_of",
    "is_complete",
    "key_id",
    "version_of",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
PREFIX = "leitstand."
STATE = PREFIX + "state"
READY = "ready"
KEY_ID = PREFIX + "key_id"
ATTACHMENTS = PREFIX + "attachments"
PLAIN = ("key", "weights_digest", "data_digest", "base_model", "commit", "run_id", "tracking_url", "profile", "parent")


def key_id(key: str) -> str:
    """A short hexadecimal name for a candidate's key: fit for folders and search filters."""
    return digest_bytes(key.encode()).removeprefix("sha256:")[:32]


def facts_of(candidate: ModelCandidate, attachments: Mapping[str, str]) -> dict[str, str]:
    """The facts of a complete version; `attachments` maps file names to digests."""
    facts = {PREFIX + field: str(getattr(candidate, field)) for field in PLAIN if getattr(candidate, field)}
    return facts | {
        STATE: READY,
        KEY_ID: key_id(candidate.key),
        PREFIX + "schema_version": "1",
        PREFIX + "metrics": json.dumps(candidate.metrics, sort_keys=True),
        **attachments_fact(attachments),
    }


def attachments_fact(attachments: Mapping[str, str]) -> dict[str, str]:
    """The fact that holds names and digests of the attachments."""
    return {ATTACHMENTS: json.dumps(dict(attachments), sort_keys=True)}


def is_complete(facts: Mapping[str, Any]) -> bool:
    """Whether these facts belong to a version that Leitstand registered to the end."""
    return facts.get(STATE) == READY


def attachments_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """File names of the attachments with their digests."""
    return json.loads(facts.get(ATTACHMENTS, "{}"))


def version_of(
    name: str, version: int, facts: Mapping[str, Any], *, aliases: tuple[str, ...], created_at: datetime
) -> ModelVersion:
    """The record of a version.

    Raises:
        IntegrityError: A fact is missing or damaged.
    """
    try:
        plain = {field: facts[PREFIX + field] for field in PLAIN if PREFIX + field in facts}
        return ModelVersion(
            name=name, version=version, aliases=tuple(sorted(aliases)), created_at=created_at,
            metrics=json.loads(facts[PREFIX + "metrics"]), attachments=tuple(sorted(attachments_of(facts))), **plain,
        )  # fmt: skip
    except (KeyError, ValidationError, json.JSONDecodeError) as error:
        raise IntegrityError(
            f"The registry's facts about '{name}:{version}' are damaged: {error}", hint="register the model again"
        ) from error


def check_name(name: str) -> None:
    """Refuses a name that is no plain word: it becomes a folder and a search filter.

    Raises:
        ConfigurationError: It is none.
    """
    if not NAME.fullmatch(name):
        raise ConfigurationError(f"'{name}' is no model name", hint="use letters, digits, '_', '-' and '.'")


def check_candidate(candidate: ModelCandidate) -> None:
    """Refuses a candidate whose files are not what it says.

    Raises:
        IntegrityError: A model file is truncated or changed, or the folder is another model's.
        ConfigurationError: The name is no plain word; an attachment has a path for a name, or does not exist.
    """
    check_name(candidate.name)
    digest = verify(candidate.model_dir)
    if digest != candidate.weights_digest:
        raise IntegrityError(
            f"{candidate.model_dir} holds the model {digest}, the candidate says {candidate.weights_digest}",
            hint="train or fetch the model again",
        )
    for name, path in candidate.attachments.items():
        if not name or "/" in name or name.startswith("."):
            raise ConfigurationError(f"'{name}' is no name for an attachment", hint="use a plain file name")
        if not path.is_file():
            raise ConfigurationError(f"The attachment '{name}' does not exist: {path}", hint="write it first")
