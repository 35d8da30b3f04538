"""LlamaIndex's OpenAILike: both endpoints, streams, structured output and tools; prints what it got, in JSON."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from shapes import MOST, QUESTION, City, GetWeather


def model(**settings: object) -> OpenAILike:
    return OpenAILike(
        model="smollm2-135m", api_base=f"{sys.argv[1]}/v1", api_key="none", context_window=8192, max_retries=0,
        **{"is_chat_model": True, "is_function_calling_model": True, "temperature": 0, "max_tokens": 20} | settings,
    )  # fmt: skip


def get_weather(city: str) -> str:
    return f"sunny in {city}"


def main() -> dict[str, object]:
    question = [ChatMessage(role="user", content="What is the capital of France? Answer with one word.")]
    plain = model(is_chat_model=False)
    shaping = model(max_tokens=MOST, temperature=1, additional_kwargs={"seed": 1})
    by_schema = model(max_tokens=MOST, temperature=1, additional_kwargs={"seed": 1},
                      should_use_structured_outputs=True)  # fmt: skip
    prompt = PromptTemplate("{text}")
    tool = FunctionTool.from_defaults(get_weather, fn_schema=GetWeather)
    asked = shaping.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    called = shaping.get_tool_calls_from_response(asked)
    return {
        "whole": model().chat(question).message.content,
        "streamed": "".join(piece.delta for piece in model().stream_chat(question)),
        "completion": plain.complete("The capital of France is").text,
        "streamed completion": "".join(p.delta for p in plain.stream_complete("The capital of France is")),
        "by a tool": shaping.structured_predict(City, prompt, text=QUESTION).model_dump(),
        "by its schema": by_schema.structured_predict(City, prompt, text=QUESTION).model_dump(),
        "called": [[call.tool_name, call.tool_kwargs] for call in called],
    }


print(json.dumps(main()))
