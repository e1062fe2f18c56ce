"""The key `guards` of the use-case file: what texts may pass."""

from leitstand.specs.base import Spec

__all__ = ["GuardsSpec"]


class GuardsSpec(Spec):
    """The chain of rules on texts and answers."""
