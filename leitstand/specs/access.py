"""The key `access` of the use-case file: who may ask."""

from leitstand.specs.base import Spec

__all__ = ["AccessSpec"]


class AccessSpec(Spec):
    """Which scopes a caller needs."""
