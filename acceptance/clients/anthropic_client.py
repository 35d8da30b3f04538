"""/v1/messages through Anthropic's SDK; prints what it got, in JSON. Calls are demanded: the model is small."""

import json
import sys

from anthropic import Anthropic, BadRequestError, NotFoundError
from anthropic.types import Usage

from shapes import MOST

MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
TOOLS = [{
    "name": "get_weather", "description": "Tells the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                     "required": ["city"], "additionalProperties": False},
}]  # fmt: skip


def tokens(usage: Usage) -> tuple[int, int]:
    """In and out, whether they were found in the server's cache or not."""
    return usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens


client = Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
# The newest of Claude's models have no temperature, nor has the SDK.
ask = {"model": MODEL, "messages": QUESTION, "max_tokens": 20, "system": "You are brief.",
       "extra_body": {"temperature": 0}}  # fmt: skip
found: dict[str, object] = {}
whole = client.messages.create(**ask)
found["whole"], found["stop_reason"] = whole.content[0].text, whole.stop_reason
counted = client.messages.count_tokens(model=MODEL, messages=QUESTION, system="You are brief.")
found["counted"] = counted.input_tokens == tokens(whole.usage)[0]
with client.messages.stream(**ask) as stream:
    found["streamed"] = "".join(stream.text_stream)
    found["usage"] = tokens(stream.get_final_message().usage) == tokens(whole.usage)
stopped = client.messages.create(**ask, stop_sequences=["aris"])
found["stopped"] = stopped.stop_reason, stopped.stop_sequence
demanded = ask | {"tools": TOOLS, "max_tokens": MOST}
calls = []
for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather"}):
    message = client.messages.create(**demanded, tool_choice=choice)
    (call,) = message.content
    with client.messages.stream(**demanded, tool_choice=choice) as stream:
        (streamed,) = stream.get_final_message().content
    calls.append([message.stop_reason, call.name, call.input, streamed.input])
found["calls"] = calls
history = [*QUESTION, {"role": "assistant", "content": [call.to_dict()]},
           {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]}]
found["after"] = client.messages.create(**ask | {"messages": history, "tools": TOOLS}).role
refused = []
for kind, wrong in ((BadRequestError, {"max_tokens": 9000}), (NotFoundError, {"model": "another"})):
    try:
        client.messages.create(**ask | wrong)
    except kind as error:
        refused.append(error.body["error"]["type"])
found["refused"] = refused
print(json.dumps(found))
