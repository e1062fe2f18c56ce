"""What arguments of several commands mean: a moment, and who runs the command."""

import getpass
from datetime import UTC, datetime

from leitstand.errors import ConfigurationError

__all__ = ["current_user", "moment_of"]


def moment_of(text: str, option: str = "") -> datetime:
    """The moment that `text` names, in UTC; without a time zone it is meant in UTC.

    Args:
        text: ISO 8601.
        option: Named in the error.

    Raises:
        ConfigurationError: It is no moment.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        said = f"{option}: '{text}'" if option else f"'{text}'"
        raise ConfigurationError(f"{said} is no moment", hint="write it like 2026-11-24T14:03") from error
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)


def current_user() -> str:
    """The name of the user, or ``unknown`` where the system has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
