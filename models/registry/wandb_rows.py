"""What `models.registry.wandb` needs of W&B, without importing it."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Row", "WandbCalls"]


@dataclass(frozen=True)
class Row:
    """One version in the registry's collection; `version` counts from 1, W&B's own ``v0`` is 1."""

    version: int
    facts: dict[str, Any]
    aliases: tuple[str, ...]
    created_at: datetime


class WandbCalls(Protocol):
    """What `models.registry.wandb` needs of W&B."""

    def names(self) -> list[str]: ...

    def rows(self, name: str) -> list[Row]: ...

    def add(self, name: str, folder: Path, facts: dict[str, str]) -> int:
        """Logs the folder, waits until it is committed, links it, and returns its number in the collection."""
        ...

    def download(self, name: str, version: int, target: Path) -> None: ...

    def put_attachment(self, key: str, path: Path) -> None: ...

    def get_attachment(self, key: str, target: Path) -> None: ...

    def set_facts(self, name: str, version: int, facts: dict[str, str]) -> None: ...

    def set_alias(self, name: str, version: int, alias: str) -> None: ...

    def remove_alias(self, name: str, version: int, alias: str) -> None: ...

    def note(self, name: str, text: str | None = None) -> str:
        """The collection's description; sets it when `text` is given."""
        ...
