"""The kinds of values that the settings of recipes have, and the rule that no unknown key is passed over."""

from __future__ import annotations

from typing import Annotated

from secateur.errors import MissingExtraError
from secateur.experiments.choices import as_number

try:
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
except ImportError as error:  # `Step` is public, and the core does without this package
    raise MissingExtraError("pydantic", "lab") from error

Real = Annotated[float, BeforeValidator(as_number)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[list[Seed], Field(max_length=10_000)]
Plain = str | int | float | bool | None
EXACT = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Strict(BaseModel):
    """Settings of which every key is known, and every value of the kind that its field says."""

    model_config = EXACT | ConfigDict(extra="forbid")
