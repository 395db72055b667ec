"""Numbers and words of others, each with how sure it is and where it was read."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Certainty(StrEnum):
    """How sure a published number is."""

    CONFIRMED = "confirmed"
    DERIVED = "derived"
    UNCONFIRMED = "unconfirmed"


class Form(BaseModel):
    """Unknown keys, unknown certainties and texts in place of numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(Form):
    """Something published, how sure it is and where it was read."""

    certainty: Certainty
    source: str = Field(description="key into the table of sources")


class Fact(Claim):
    """One published number; its unit is in the name of the field that holds it."""

    value: float = Field(strict=True)


class Text(Claim):
    """One published statement that is no number, such as a device's name."""

    value: str = Field(strict=True)


class Source(Form):
    """Where a number was read."""

    title: str
    where: str = Field(description="address or repository")
