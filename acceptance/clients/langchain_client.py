"""Prints what LangChain makes of one question: whole, streamed, and how many tokens it counted."""

import json
import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="smollm2-135m", base_url=f"{sys.argv[1]}/v1", api_key="none", temperature=0, max_tokens=20, max_retries=0
)
question = "What is the capital of France? Answer with one word."
whole = model.invoke(question)
streamed = "".join(piece.content for piece in model.stream(question))
print(json.dumps([whole.content, streamed, whole.usage_metadata["total_tokens"]]))
