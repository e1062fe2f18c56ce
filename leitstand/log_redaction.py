"""Takes secrets out of log lines, whatever put them there: the last step before a line is written.

By form: JWTs and JWEs, our API keys, bearer credentials, passwords in URLs; by name: values of fields such as
`authorization` or `password`. Nothing should log a secret in the first place; this is for the day that something does.
"""

import logging
import re
from collections.abc import MutableMapping
from typing import Any

__all__ = ["REDACTED", "RedactingFormatter", "redact", "redact_line"]

REDACTED = "[redacted]"
BY_FORM = re.compile(
    r"\beyJ[\w-]{8,}(?:\.[\w-]*){2,4}"  # a JWT or JWE: its header begins with {"
    r"|\blsk_[0-9a-f]{16}_[\w-]{20,}"
    r"|(?<=://)[^\s/@:\"']{0,200}:[^\s/@\"']{1,200}(?=@)"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{1,8000}?-----END [A-Z ]*PRIVATE KEY-----"
)
BY_NAME = re.compile(
    r"""((?:authorization|x-api-key|api[_-]key|password|passwd|client_secret|secret|access_token|refresh_token)"""
    r"""\\?["']?\s*[:=,]\s*b?\\?["']?)(?!\[redacted\]|[Bb]earer \[redacted\])([^\s"',}\])\\]{4,})""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without what looks like a secret."""
    return BY_NAME.sub(rf"\1{REDACTED}", BY_FORM.sub(REDACTED, text))


def redact_line(_: Any, __: str, line: str | MutableMapping[str, Any]) -> str | MutableMapping[str, Any]:
    """The last processor of structlog: gets the rendered line."""
    return redact(line) if isinstance(line, str) else line


class RedactingFormatter(logging.Formatter):
    """Redacts what another formatter of `logging` makes."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        return redact(self._inner.format(record))
