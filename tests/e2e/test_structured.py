"""Structured output of the real model: schemas out of a grammar, streams, several instances and stages."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.random_schema import random_schema
from longspan import LLM, SamplingParams, StructuredOutputs
from tests.e2e.conftest import Server
from tests.e2e.test_tools import MOST

MODEL, SCHEMAS, TOKENS = "smollm2-135m", 24, 160


def test_all_outputs_keep_to_their_schemas() -> None:
    schemas = [random_schema(seed) for seed in range(SCHEMAS)]
    params = [
        SamplingParams(max_tokens=TOKENS, seed=seed, structured_outputs=StructuredOutputs(json=schema))
        for seed, schema in enumerate(schemas)
    ]
    prompts = [f"As JSON: {json.dumps(schema)[:200]}\n" for schema in schemas]
    with LLM(MODEL, instances=2, policy="elastic_fcfs") as llm:
        answers = llm.generate(prompts, params)
    for schema, answer in zip(schemas, answers, strict=True):
        assert answer.finish_reason in ("stop", "length")
        if answer.finish_reason == "stop":
            jsonschema_rs.validate(schema, json.loads(answer.text, parse_float=Decimal))  # as it is written
    assert sum(answer.finish_reason == "stop" for answer in answers) > SCHEMAS / 2


class City(BaseModel):
    """Of a bounded length, so that every answer has an end."""

    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=20)
    inhabitants: int = Field(ge=0, le=10**8)


@pytest.fixture
def client(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


async def test_parse_and_streams_of_the_sdk(client: openai.AsyncOpenAI) -> None:
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "Describe Paris."}], "response_format": City,
           "seed": 5, "max_tokens": MOST,
           "extra_body": {"cache": False}}  # fmt: skip  # as exact as bf16 is, both times
    whole = await client.chat.completions.parse(**ask)
    assert isinstance(whole.choices[0].message.parsed, City)
    async with client.chat.completions.stream(**ask) as stream:
        streamed = await stream.get_final_completion()
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed
    assert streamed.choices[0].finish_reason == "stop"


async def test_many_at_once_and_some_that_leave(server: Server, client: openai.AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        stream = await client.completions.create(
            model=MODEL, prompt=f"{number}: ", max_tokens=60, seed=number, stream=True,
            extra_body={"guided_regex": r"[a-z]{5}( [a-z]{5}){3}\."},
        )  # fmt: skip
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].text
            if number % 4 == 3 and len(text) > 5:
                await stream.close()
                return ""
        return text

    texts = await asyncio.gather(*map(one, range(16)))
    for number, text in enumerate(texts):
        assert len(text) == (0 if number % 4 == 3 else 24), text
    await asyncio.to_thread(server.wait_until_free)


async def test_a_schema_that_crashes_its_compiler_is_a_400(server: Server, client: openai.AsyncOpenAI) -> None:
    chain = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(4000)) + '\nr4000: "x"\n'
    with pytest.raises(openai.BadRequestError, match="crashes"):
        await client.completions.create(model=MODEL, prompt="x", extra_body={"guided_grammar": chain})
    answer = await client.completions.create(model=MODEL, prompt="x", extra_body={"guided_choice": ["fine"]})
    assert answer.choices[0].text == "fine"
