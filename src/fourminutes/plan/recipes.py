"""Published recipes: how others trained, as part of a run, each with its source and how sure it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from fourminutes.errors import UserError
from fourminutes.plan.base import PlanModel
from fourminutes.plan.reading import read_mapping
from fourminutes.plan.words import dotted, first_problem

RECIPES = Path("config/recipes.yaml")


class Recipe(PlanModel):
    """A recipe; a run that names it is laid on top of it."""

    source: str = Field(min_length=1, description="where it was read")
    certainty: Literal["confirmed", "derived", "unconfirmed"] = Field(
        description="of its rates, whatever single values say of themselves. confirmed: read in the source; derived: "
        "arithmetic from what was; unconfirmed: remembered, or standing in for what nobody published"
    )
    run: dict[str, Any] = Field(description="values in a run's form")

    @model_validator(mode="after")
    def _stands_alone(self) -> Self:
        if "recipe" in self.run:
            raise ValueError("run.recipe: a recipe has none of its own; give it all its values")
        return self


def read_recipes() -> dict[str, Recipe]:
    """All recipes of the clone by name. Their values are checked as part of the runs that use them.

    Raises:
        UserError: the file is missing, is not YAML, or one of the recipes has not the form of one.
    """
    return {str(name): _recipe(str(name), raw) for name, raw in read_mapping(RECIPES, "a file of recipes").items()}


def _recipe(name: str, raw: Any) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        problem = first_problem(error, Recipe)
        raise UserError(f"{RECIPES}: {dotted((name, *problem.location), name)}: {problem.words}") from error
    except TypeError as error:
        raise UserError(f"{RECIPES}: {name}: {error}; dates and the like must be quoted") from error
