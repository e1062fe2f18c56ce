"""The error tree of Leitstand.

    LeitstandError
    ├── ConfigurationError        a file, setting or argument is wrong         exit 2
    ├── MissingExtraError         an optional dependency is not installed      exit 2
    ├── NotFoundError             the named object does not exist              exit 1
    ├── ConflictError             the object exists with other content         exit 1
    ├── IntegrityError            bytes do not match their recorded digest     exit 1
    ├── ValidationFailed          a data set breaks its expectations           exit 5
    ├── PolicyDenied              a rule said no                               exit 3
    │   ├── AuthenticationFailed  nobody we know asked
    │   ├── ScopeMissing          the caller may not do this
    │   ├── QuotaExceeded         a rate, a budget or a concurrency limit is used up
    │   ├── ContentBlocked        a guard does not let a text pass
    │   ├── PromotionRejected     a gate failed
    │   └── InsufficientEvidence  a gate could not decide                      exit 4
    └── BackendError              something outside this process failed        exit 1
        ├── TransientBackendError worth retrying
        └── PermanentBackendError not worth retrying

A message says what happened, to which object, with which value; ``hint`` says what to do next. No
transport appears here: ``services/protocol.py`` maps errors to HTTP, the CLI maps them to exit codes.
"""

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "AuthenticationFailed",
    "BackendError",
    "ConfigurationError",
    "ConflictError",
    "ContentBlocked",
    "InsufficientEvidence",
    "IntegrityError",
    "LeitstandError",
    "MissingExtraError",
    "NotFoundError",
    "PermanentBackendError",
    "PolicyDenied",
    "PromotionRejected",
    "QuotaExceeded",
    "ScopeMissing",
    "TransientBackendError",
    "ValidationFailed",
    "bounded",
]


class LeitstandError(Exception):
    """Base of every error that Leitstand raises on purpose.

    Args:
        message: What happened, to which object, with which value.
        hint: What to do next; printed on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  Fix: {self.hint}" if self.hint else self.message


class ConfigurationError(LeitstandError):
    """A use-case file, a setting or an argument is wrong."""

    exit_code = 2


class MissingExtraError(LeitstandError):
    """A dependency that this feature needs is not installed."""

    exit_code = 2


class NotFoundError(LeitstandError):
    """The named object does not exist."""


class ConflictError(LeitstandError):
    """The object exists already, with other content."""


class IntegrityError(LeitstandError):
    """Stored bytes do not match the digest recorded for them."""


class ValidationFailed(LeitstandError):
    """A data set breaks its expectations; ``failures`` names each of them, ``report`` is the full one (JSON)."""

    exit_code = 5

    def __init__(
        self, message: str, *, failures: Sequence[str] = (), hint: str | None = None, report: Path | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.failures = tuple(failures)
        self.report = report


class PolicyDenied(LeitstandError):
    """A rule of the use case's policy said no."""

    exit_code = 3


class AuthenticationFailed(PolicyDenied):
    """No credential, or one that is not valid. The message never repeats the credential.

    Args:
        message: What is wrong with it.
        hint: What to do next.
        code: The error code of RFC 6750, such as ``invalid_token``; empty when no credential came.
    """

    def __init__(self, message: str, *, hint: str | None = None, code: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ScopeMissing(PolicyDenied):
    """We know who asks, and that they may not.

    Args:
        message: Who may not do what.
        scope: The scope that would allow it.
        hint: What to do next.
    """

    def __init__(self, message: str, *, scope: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.scope = scope


class QuotaExceeded(PolicyDenied):
    """A limit is reached.

    Args:
        message: Whose limit, which one, and its value.
        limit: Short name of the limit, such as ``tenant:tokens_per_day``.
        retry_after_s: Seconds until it admits again.
        hint: What to do next.
    """

    def __init__(self, message: str, *, limit: str, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.retry_after_s = retry_after_s


class ContentBlocked(PolicyDenied):
    """A guard does not let a text pass.

    Args:
        message: Which text, by stage; never its content.
        reasons: Reason codes of the rules that blocked.
        hint: What to do next.
    """

    def __init__(self, message: str, *, reasons: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reasons = tuple(reasons)


class PromotionRejected(PolicyDenied):
    """At least one gate failed."""


class InsufficientEvidence(PolicyDenied):
    """No gate failed, but at least one could not decide with the data at hand."""

    exit_code = 4


class BackendError(LeitstandError):
    """A store, server or provider outside this process failed."""


class TransientBackendError(BackendError):
    """The same call may succeed later (time-out, lock, 5xx)."""


class PermanentBackendError(BackendError):
    """The same call will fail again (credentials, missing bucket, full disk)."""


def bounded(items: Sequence[object], limit: int = 5) -> str:
    """Joins ``items`` for a message, at most ``limit`` of them, and counts the rest."""
    shown = ", ".join(str(item) for item in items[:limit])
    rest = len(items) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
