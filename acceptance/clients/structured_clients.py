"""Structured output and tools through LangChain, instructor and OpenAI's SDK; prints what each of them got, in JSON.

The model is small, so what it says is of no use; that it has the right shape is what is asked.
"""

import json
import sys

import instructor
from langchain_openai import ChatOpenAI
from openai import OpenAI, pydantic_function_tool

from shapes import MOST, QUESTION, City, GetWeather

MODEL, URL = "smollm2-135m", f"{sys.argv[1]}/v1"


def langchain() -> list[object]:
    model = ChatOpenAI(model=MODEL, base_url=URL, api_key="none", seed=1, max_tokens=MOST, max_retries=0)
    found = []
    for method in ("json_schema", "function_calling"):
        found.append(model.with_structured_output(City, method=method).invoke(QUESTION).model_dump())
    message = model.bind_tools([GetWeather], tool_choice="any").invoke(QUESTION)
    found.append([call["name"] for call in message.tool_calls])
    streamed = None
    for chunk in model.bind_tools([GetWeather], tool_choice="GetWeather").stream(QUESTION):
        streamed = chunk if streamed is None else streamed + chunk
    found.append([GetWeather(**call["args"]).model_dump() for call in streamed.tool_calls])
    free = model.bind_tools([GetWeather]).invoke(QUESTION)
    found.append(isinstance(free.content, str))
    return found


def with_instructor() -> list[object]:
    found = []
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(base_url=URL, api_key="none"), mode=mode)
        city = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], response_model=City, max_tokens=MOST, seed=1
        )
        found.append(city.model_dump())
    return found


def openai_sdk() -> list[object]:
    client = OpenAI(base_url=URL, api_key="none")
    ask = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": MOST, "seed": 1}
    parsed = client.chat.completions.parse(**ask, response_format=City).choices[0].message.parsed
    tool = pydantic_function_tool(GetWeather)
    called = client.chat.completions.parse(**ask, tools=[tool], tool_choice="required").choices[0].message.tool_calls
    return [parsed.model_dump(), [call.function.parsed_arguments.model_dump() for call in called]]


if __name__ == "__main__":
    print(json.dumps({"langchain": langchain(), "instructor": with_instructor(), "openai": openai_sdk()}))
