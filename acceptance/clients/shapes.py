"""What the programs beside this one ask the model for, and the shapes that its answers must have."""

from typing import Literal

from pydantic import BaseModel, Field

MOST = 700  # tokens: more than the longest answer that keeps to the shape, with all the white space that it may have
QUESTION = "Paris is the capital of France, with two million inhabitants."


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    size: Literal["small", "large"]


class GetWeather(BaseModel):
    """Tells the weather in a city."""

    city: str = Field(max_length=30)
