"""From tokens to text, piece by piece: whole characters only, and never a piece of a stop string.

Text is decoded in a short window of tokens, so each token costs the same however long the output is. The
`DecodeStream` of tokenizers does nearly this, but decodes again all tokens since its last piece of text (a
run of 4,000 special tokens or broken bytes takes it a second), cannot be flushed, repeats the prompt's tail
when the prompt ends inside a character, and is of no use after its `Invalid prefix` error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from longspan.core.events import FinishReason
from longspan.engine.protocol import TokenIds
from longspan.engine.stop_strings import StopScanner
from longspan.engine.token_bytes import TokenBytes
from longspan.sampling_params import SamplingParams

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character has at most 4 bytes, a token at least one: a longer run without a whole character is broken.
_MAX_PENDING = 5
# Tokens of the prompt that the output's first token joins.
_MIN_CONTEXT, _MAX_CONTEXT, _PROMPT_TAIL = 6, 10, 64


class Detokenizer:
    """The decoding half of a tokenizer; one for all requests of an engine. skips_special: such tokens have no text."""

    def __init__(self, tokenizer: Tokenizer, skips_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skips_special
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes = TokenBytes(tokenizer)
        self.with_special = Detokenizer(tokenizer, False) if skips_special else self
        """The same, but special tokens have their names as text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of all these tokens together."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skips_special)

    def has_text(self, token_id: int) -> bool:
        """Tell whether it has text: not special tokens, nor ids beyond the vocabulary with which some models pad it."""
        shown = not self._skips_special or token_id not in self._special
        return shown and self._tokenizer.id_to_token(token_id) is not None

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to a text's UTF-8, perhaps part of a character; of a special token, its name."""
        return self._bytes[token_id]


class TextStream:
    """The text that tokens add to a prompt's. Pieces are whole characters and join to `decode` of all tokens.

    (But for byte-fallback decoders, which break a whole run of bytes if its end is broken, even characters
    that were good by themselves and are out already.)
    """

    def __init__(self, detokenizer: Detokenizer, prompt_token_ids: TokenIds) -> None:
        self._detokenizer = detokenizer
        # The text of context + pending starts with `given`, which the client has already; the rest is new.
        self._context, self._given = self._prompt_context(prompt_token_ids)
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Return the text that is complete now; empty while a character is not."""
        if not self._detokenizer.has_text(token_id):
            return ""
        self._pending.append(token_id)
        text = self._detokenizer.decode(self._context + self._pending)
        new = self._after_given(text)
        broken = text.endswith(_BROKEN)
        if (broken or not new) and len(self._pending) < _MAX_PENDING:
            return ""
        self._context, self._pending = self._pending, []
        self._given = self._detokenizer.decode(self._context)
        if not broken:
            return new
        self._given = self._given[:-1]  # what comes next may still mend the last one
        return new[:-1]

    def flush(self) -> str:
        """Return what was kept back, when no more tokens come."""
        text = self._after_given(self._detokenizer.decode(self._context + self._pending))
        self._context, self._given, self._pending = [], "", []
        return text

    def _after_given(self, text: str) -> str:
        if text.startswith(self._given):
            return text[len(self._given) :]
        # The prompt ended inside a character, and this token completes it: the whole character is new.
        pairs = zip(self._given, text, strict=False)
        same = next((i for i, (old, now) in enumerate(pairs) if old != now), len(text))
        return text[same:]

    def _prompt_context(self, prompt_token_ids: TokenIds) -> tuple[list[int], str]:
        """The prompt's last tokens with text, from a character's start on (or nearly so), and their text."""
        tail = [token for token in map(int, prompt_token_ids[-_PROMPT_TAIL:]) if self._detokenizer.has_text(token)]
        for size in range(_MIN_CONTEXT, _MAX_CONTEXT):
            context = tail[-size:]
            text = self._detokenizer.decode(context)
            if not text.startswith(_BROKEN):
                break
        return context, text


@dataclass(frozen=True, slots=True)
class Delta:
    """The text that one token added. stop_reason: the stop string or stop token id, if it was one of these.
    text_offset: characters of the output before the token, or before the character that it is a part of."""

    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    text_offset: int = 0


class OutputProcessor:
    """The output of one request: its text, and when it ends."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        prompt_token_ids: TokenIds,
        params: SamplingParams,
        eos_token_ids: Collection[int],
    ) -> None:
        self._stream = TextStream(detokenizer, prompt_token_ids)
        self._scanner = StopScanner(params.stop, include=params.include_stop_str_in_output)
        self._eos: frozenset[int] = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._max_tokens, self._min_tokens = params.max_tokens, params.min_tokens
        self.num_tokens = 0
        self._detokenizer = detokenizer if params.logprobs is not None else None
        self._num_characters = 0
        self._unfinished = b""  # of the tokens whose text has not come yet
        self.finish_reason: FinishReason | None = None

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end the output, wherever they come."""
        return self._eos | self._stop_token_ids

    def push(self, token_id: int) -> Delta:
        """Take the next token. An end-of-sequence or stop token adds no text of its own."""
        assert self.finish_reason is None, "a token after the end"
        self.num_tokens += 1
        reason, cause = self._end(token_id)
        offset = self._num_characters + len(self._unfinished.decode(errors="ignore"))
        text = "" if reason == "stop" else self._stream.push(token_id)
        if reason is not None:
            text += self._stream.flush()
        self._num_characters += len(text)
        if self._detokenizer is not None:
            self._unfinished = b"" if text else self._unfinished + self._text_bytes(token_id)
        if self.num_tokens > self._min_tokens:
            text, stop = self._scanner.push(text)
        else:
            stop = None
        if stop is not None:
            reason, cause = "stop", stop
        elif reason is not None:
            text += self._scanner.flush()
        self.finish_reason = reason
        return Delta(text, reason, cause, offset)

    def _text_bytes(self, token_id: int) -> bytes:
        detokenizer = self._detokenizer
        return detokenizer.token_bytes(token_id) if detokenizer and detokenizer.has_text(token_id) else b""

    def _end(self, token_id: int) -> tuple[FinishReason | None, str | int | None]:
        if token_id in self._eos:
            return "stop", None
        if token_id in self._stop_token_ids:
            return "stop", token_id
        if self._max_tokens is not None and self.num_tokens >= self._max_tokens:
            return "length", None
        return None, None
