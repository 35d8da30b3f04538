"""/v1/responses through OpenAI's SDK and its agents; prints what each of them got, in JSON.

The model is small, so calls are demanded and what they take is a choice of words: that it has the right shape is asked.
"""

import asyncio
import json
import sys
from typing import Literal

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from shapes import MOST

MODEL, URL = "smollm2-135m", f"{sys.argv[1]}/v1"
QUESTION = "What is the capital of France? Answer with one word."
TOOL = {
    "type": "function", "name": "get_weather", "description": "Tells the weather in a city.", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                   "required": ["city"], "additionalProperties": False},
}  # fmt: skip


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    size: Literal["small", "large"]


def sdk() -> dict[str, object]:
    client = OpenAI(base_url=URL, api_key="none", max_retries=0)
    ask = {"model": MODEL, "temperature": 0, "max_output_tokens": 20}
    found: dict[str, object] = {}
    whole = client.responses.create(input=QUESTION, **ask)
    found["whole"], found["usage"] = whole.output_text, whole.usage.total_tokens
    events = list(client.responses.create(input=QUESTION, stream=True, **ask))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    found["streamed"] = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    with client.responses.stream(input=QUESTION, **ask) as stream:
        found["helper"] = [*stream][-1].type, stream.get_final_response().output_text
    found["parsed"] = client.responses.parse(
        input=QUESTION, model=MODEL, text_format=City, temperature=0, max_output_tokens=MOST
    ).output_parsed.model_dump()
    called = client.responses.create(
        input=QUESTION, model=MODEL, tools=[TOOL], tool_choice="required", parallel_tool_calls=False,
        temperature=0, max_output_tokens=MOST,
    )  # fmt: skip
    (call,) = called.output
    found["call"] = call.name, json.loads(call.arguments)
    after = client.responses.create(
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        previous_response_id=called.id, **ask,
    )  # fmt: skip
    found["retrieved"] = client.responses.retrieve(after.id).output_text == after.output_text
    found["input"] = [item.type for item in client.responses.input_items.list(after.id)]
    client.responses.delete(after.id)
    try:
        client.responses.retrieve(after.id)
    except NotFoundError as error:
        found["deleted"] = error.code
    # One that may end by itself may have ended when the next call comes.
    endless = ask | {"max_output_tokens": 4000, "extra_body": {"ignore_eos": True}}
    started = client.responses.create(input="Once", background=True, **endless)
    found["cancelled"] = client.responses.cancel(started.id).status
    try:
        client.responses.create(model=MODEL, input="x", tools=[{"type": "web_search"}])
    except BadRequestError as error:
        found["refused"] = error.param
    return found


async def agents() -> dict[str, object]:
    """One agent with a tool, and one whose only way is to hand over to it."""
    set_default_openai_client(AsyncOpenAI(base_url=URL, api_key="none", max_retries=0))
    set_tracing_disabled(True)
    settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=MOST, temperature=0)
    called: list[str] = []

    @function_tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """Tells the weather in a city."""
        called.append(city)
        return f"It is sunny in {city}."

    weather = Agent(name="Weather", instructions="You tell the weather.", model=MODEL, tools=[get_weather],
                    model_settings=settings, tool_use_behavior="stop_on_first_tool")  # fmt: skip
    alone = await Runner.run(weather, "How is the weather in Rome?")
    triage = Agent(name="Triage", instructions="You hand over.", model=MODEL, handoffs=[weather],
                   model_settings=settings)  # fmt: skip
    handed = await Runner.run(triage, "How is the weather in Rome?")
    streamed = Runner.run_streamed(triage, "How is the weather in Rome?")
    async for _ in streamed.stream_events():
        pass
    return {
        "called": called, "alone": alone.final_output, "handed": [handed.last_agent.name, handed.final_output],
        "streamed": [streamed.last_agent.name, streamed.final_output],
    }  # fmt: skip


print(json.dumps({"sdk": sdk(), "agents": asyncio.run(agents())}))
