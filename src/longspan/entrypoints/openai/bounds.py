"""How much of everything a request may hold, before any of it costs something."""

from __future__ import annotations

from dataclasses import dataclass

from longspan.engine.protocol import EngineClient

MAX_STOPS = 128
MAX_STOP_CHARS = 4096
MAX_STOPS_CHARS = 16384
MAX_STOP_TOKEN_IDS = 1024
MAX_NAME_CHARS = 1024
MAX_SCALAR_BYTES = 4096
MAX_ENVELOPE_BYTES = 65536
MAX_DEPTH = 32
MAX_SCHEMA_DEPTH = 100
MAX_NODES = 200_000

_ESCAPED = 12  # bytes that JSON takes for one character, at most: an escaped surrogate pair


@dataclass(frozen=True, slots=True)
class Bounds:
    """Derived from what one engine can serve; a request beyond them could not be served either.

    request_tokens: tokens of one request, prompt and output together.
    prompt_chars: characters of one prompt, or of all messages together: so many tokens, each the longest that the
        tokenizer has. Where a tokenizer drops text without end, only the body's size bounds them.
    choices: prompts times `n`; as many as may wait.
    vocab_size: token ids are below it.
    """

    request_tokens: int
    prompt_chars: int
    choices: int
    vocab_size: int

    @classmethod
    def of(cls, engine: EngineClient, max_body_bytes: int) -> Bounds:
        tokenizer, limit = engine.tokenizer, engine.request_limit
        longest = max_body_bytes if tokenizer.may_shrink else limit * tokenizer.max_token_chars
        return cls(limit, min(longest, max_body_bytes), engine.config.max_waiting, engine.vocab_size)

    @property
    def prompt_tokens(self) -> int:
        """One token at least is the answer's."""
        return max(1, self.request_tokens - 1)

    @property
    def prompt_bytes(self) -> int:
        """JSON of a text with more bytes has more characters than `prompt_chars`, however it is written."""
        return self.prompt_chars * _ESCAPED + 2
