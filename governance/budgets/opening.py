"""Chooses the store of counts from the settings."""

from pathlib import Path

from governance.budgets.port import BudgetStore
from governance.budgets.sqlite import SqliteBudgetStore
from leitstand.errors import ConfigurationError, MissingExtraError
from leitstand.settings import Settings

__all__ = ["open_budget_store"]


def open_budget_store(settings: Settings) -> BudgetStore:
    """The store of `settings.budgets.uri`; by default SQLite below `home`. Connects when first used.

    Raises:
        ConfigurationError: The URI names a kind of store that there is not.
        MissingExtraError: It is Redis, and its client is not installed.
    """
    uri = settings.budgets.uri
    if uri.startswith(("redis://", "rediss://", "unix://")):
        try:
            from governance.budgets.redis import RedisBudgetStore  # noqa: PLC0415 -- an optional dependency
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "Budgets in Redis need its client", hint="pip install 'leitstand[gateway]'"
            ) from error
        return RedisBudgetStore(uri, settings.budgets.timeout_s)
    if "://" in uri:
        raise ConfigurationError(
            f"Budgets cannot be counted at '{uri}'", hint="give redis://host:port/db, or the path of a file"
        )
    return SqliteBudgetStore(Path(uri) if uri else settings.root / "budgets" / "budgets.db")
