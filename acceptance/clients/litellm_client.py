"""Chats, streams, structured output, tools through LiteLLM's two ways to such a server; prints what it got, in JSON."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks a host for prices

import litellm

from shapes import MOST, QUESTION, City

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"],
    "additionalProperties": False}}}  # fmt: skip
ASK = {"messages": [{"role": "user", "content": "What is the capital of France? Answer with one word."}],
       "temperature": 0, "max_tokens": 20}  # fmt: skip
litellm.suppress_debug_info = True  # else what it prints of errors stands among what is printed here
SHAPED = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": MOST, "seed": 1}


def arguments(choice: litellm.Choices) -> dict[str, object]:
    """Of its first call. For vLLM LiteLLM takes `additionalProperties` out of the schema, so they may have no end."""
    text = choice.message.tool_calls[0].function.arguments
    return {"cut": text} if choice.finish_reason == "length" else json.loads(text)


def through(provider: str) -> dict[str, object]:
    server = {"model": f"{provider}/smollm2-135m", "api_base": f"{sys.argv[1]}/v1", "api_key": "none", "num_retries": 0}
    whole = litellm.completion(**server, **ASK)
    chunks = list(litellm.completion(**server, **ASK, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks)
    shaped = litellm.completion(**server, **SHAPED, response_format=City)
    called = litellm.completion(**server, **SHAPED, tools=[TOOL], tool_choice="required")
    streamed = litellm.stream_chunk_builder(list(litellm.completion(
        **server, **SHAPED, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}},
        stream=True)))  # fmt: skip
    call = called.choices[0].message.tool_calls[0]
    history = [*SHAPED["messages"], called.choices[0].message.model_dump(),
               {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]  # fmt: skip
    after = litellm.completion(**server, messages=history, tools=[TOOL], max_tokens=10)
    try:
        litellm.completion(**server, messages=ASK["messages"], temperature=7)
        refused = None
    except litellm.BadRequestError as error:
        refused = error.status_code
    return {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "tokens": [whole.usage.total_tokens, built.usage.total_tokens],
        "shaped": City.model_validate_json(shaped.choices[0].message.content).model_dump(),
        "calls": [arguments(answer.choices[0]) for answer in (called, streamed)],
        "after a tool": after.choices[0].finish_reason,
        "refused": refused,
    }  # fmt: skip


print(json.dumps({provider: through(provider) for provider in ("openai", "hosted_vllm")}))
