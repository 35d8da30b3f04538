"""What the programs beside this one ask the model for, and the shapes that its answers must have."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MOST = 700  # tokens: more than the longest answer that keeps to the shape, with all the white space that it may have
QUESTION = "Paris is the capital of France, with two million inhabitants."


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")  # or a model that is small goes on with properties of its own

    name: str = Field(max_length=30)
    size: Literal["small", "large"]


class GetWeather(BaseModel):
    """Tells the weather in a city."""

    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=30)
