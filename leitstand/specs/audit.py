"""The key `audit` of the use-case file: what is recorded about every inference."""

from leitstand.specs.base import Spec

__all__ = ["AuditSpec"]


class AuditSpec(Spec):
    """How durable a record must be, and how long it is kept."""
