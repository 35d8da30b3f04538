"""Fields that say how an answer must look: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from longspan.entrypoints.openai.bounds import MAX_NAME_CHARS
from longspan.entrypoints.openai.json_values import missing
from longspan.errors import RequestError
from longspan.structured_outputs import MAX_CHOICES, StructuredOutputs

Schema = dict[str, Any]


def _off(value: bool) -> bool:
    if value:
        raise ValueError("it is not supported; leave it out")
    return value


Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]

def _schema_text(schema: object) -> str | None:
    """The order of its properties is the order of the answer's."""
    if schema is None or isinstance(schema, str):
        return schema
    if not isinstance(schema, dict):
        raise PydanticCustomError("schema_type", "it must be a JSON schema: an object, or its text")
    return msgspec.json.encode(schema).decode()


SchemaText = Annotated[str | None, BeforeValidator(_schema_text, json_schema_input_type=Schema | str | None)]
Off = Annotated[bool, AfterValidator(_off)]


class JSONSchemaFormat(BaseModel):
    """`strict` changes nothing: the schema is always kept to."""

    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)] = "answer"
    description: str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None


class StructuredOutputsField(BaseModel):
    """vLLM's. The last four would change what is allowed, so no other values are taken."""

    model_config = ConfigDict(strict=True)

    json_: Annotated[SchemaText, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    structural_tag: None = None
    whitespace_pattern: None = None
    disable_any_whitespace: Off | None = None
    disable_additional_properties: Off | None = None


class StructureFields(BaseModel):
    """The part of a request that says what its answer must look like; one of these at most."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsField | None = None
    guided_json: SchemaText = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    def structure(self) -> tuple[str, StructuredOutputs] | None:
        """Return what the answer must look like, and the field that says so. Raises RequestError."""
        found = {name: given for name in STRUCTURE_FIELDS if (given := self._given(name)) is not None}
        if len(found) > 1:
            told = " and ".join(found)
            raise RequestError(f"{told} do not go together", param=list(found)[1], code="invalid_value")
        for name, given in found.items():
            try:
                return name, StructuredOutputs(**given)
            except RequestError as error:
                raise named(error, name) from None
        return None

    def _given(self, name: str) -> dict[str, Any] | None:
        """Arguments of StructuredOutputs, from one field; None where it asks for nothing."""
        value = getattr(self, name)
        if value is None:
            return None
        if isinstance(value, ResponseFormat):
            return _of_response_format(value)
        if isinstance(value, StructuredOutputsField):
            given = {
                "json": value.json_, "json_object": value.json_object or False, "regex": value.regex,
                "choice": value.choice, "grammar": value.grammar,
            }  # fmt: skip
            return given if any(one not in (None, False) for one in given.values()) else None
        return {name.removeprefix("guided_"): value}


STRUCTURE_FIELDS = tuple(StructureFields.model_fields)


def schema_structure(name: str, schema: Schema) -> tuple[str, StructuredOutputs]:
    """Return what a field says that has a JSON schema. name: of the field. Raises RequestError."""
    try:
        return name, StructuredOutputs(json=_schema_text(schema))
    except RequestError as error:
        raise named(error, name) from None


def json_object_structure(name: str) -> tuple[str, StructuredOutputs]:
    """Return what a field says that asks for any JSON object."""
    return name, StructuredOutputs(json_object=True)


def named(error: RequestError, name: str) -> RequestError:
    """Return the error in the client's own words. name: of the field that said what the answer must look like."""
    if error.param != "structured_outputs":
        return error
    said = str(error).replace("structured_outputs", name, 1)
    return RequestError(said, param=name, code=error.code)


def _of_response_format(value: ResponseFormat) -> dict[str, Any] | None:
    if value.type == "text":
        return None
    if value.type == "json_object":
        return {"json_object": True}
    if value.json_schema is None:
        raise missing("response_format.json_schema")
    return {"json": _schema_text(value.json_schema.schema_)}
