"""The key `budgets` of the use-case file: what callers may use."""

from leitstand.specs.base import Spec

__all__ = ["BudgetsSpec"]


class BudgetsSpec(Spec):
    """Rates, concurrency, and what may be used per day."""
