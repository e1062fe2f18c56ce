"""What all parts of the use-case file share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Spec"]

Fraction = Annotated[float, Field(ge=0, le=1)]


class Spec(BaseModel):
    """Frozen; an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")
