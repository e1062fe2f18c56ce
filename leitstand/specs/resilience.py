"""The key `resilience` of the use-case file: what happens when an upstream is slow or gone."""

from leitstand.specs.base import Spec

__all__ = ["ResilienceSpec"]


class ResilienceSpec(Spec):
    """Breakers, retries and fallbacks."""
