"""Fields that would change the answer and are not served: refused by name, unless they ask for nothing special."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from longspan.entrypoints.openai.bounds import MAX_SCALAR_BYTES
from longspan.errors import RequestError

# Field -> the values that ask for nothing special. Anything else is refused.
Harmless = Mapping[str, tuple[object, ...]]
UNSUPPORTED: Harmless = {
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "guided_whitespace_pattern": (None,),
    "length_penalty": (None, 1),
    "logits_processors": (None, []),
    "prompt_embeds": (None,),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
}
UNSUPPORTED_COMPLETION: Harmless = {
    **UNSUPPORTED,
    "best_of": (None, 1),
    "suffix": (None, ""),
}
UNSUPPORTED_CHAT: Harmless = {
    **UNSUPPORTED,
    "audio": (None,),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
UNSUPPORTED_MESSAGE: Harmless = {
    "audio": (None,),
    "function_call": (None,),
}


def refuse_unsupported(place: str, raw: bytes, harmless: tuple[object, ...]) -> None:
    """Raises RequestError unless `raw`, the field's JSON, is one of the `harmless` values. What is long is none."""
    if len(raw) <= MAX_SCALAR_BYTES:
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        else:
            if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless):
                return
    raise RequestError(f"{place} is not supported", param=place, code="unsupported_parameter")
