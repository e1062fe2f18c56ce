"""The key `access` of the use-case file: who may ask."""

from pydantic import Field

from leitstand.specs.base import Spec

__all__ = ["AccessSpec"]


class AccessSpec(Spec):
    """Which scopes a caller needs, and whose callers are let in, once the gateway asks for credentials."""

    scopes: dict[str, str] = Field(
        default_factory=dict,
        description="scope that an action needs, like `predict: tickets.read`; others need USE_CASE:ACTION",
    )
    tenants: tuple[str, ...] = Field(default=(), description="tenants that may use it; empty: all")

    def scope(self, use_case: str, action: str) -> str:
        """The scope that `action` needs."""
        return self.scopes.get(action, f"{use_case}:{action}")
