"""Log-probabilities of a prompt, as they come from wherever its chunks are computed."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import numpy as np

from longspan.engine.detokenizer import Detokenizer
from longspan.outputs import PositionLogprobs, TokenLogprob
from longspan.worker.messages import PromptScores


class PromptLogprobs:
    """One prompt's: arrays, of which `positions` makes what clients see.

    prompt_token_ids: int32 [P]. top: how many of the best tokens at each.
    """

    def __init__(self, prompt_token_ids: np.ndarray, top: int, detokenizer: Detokenizer) -> None:
        count = len(prompt_token_ids)
        self.top = top
        self._prompt, self._detokenizer = prompt_token_ids, detokenizer
        self._logprobs = np.full(count, np.nan, dtype=np.float32)
        self._ranks = np.zeros(count, dtype=np.int32)
        self._top_ids = np.zeros((count, top), dtype=np.int32)
        self._top_logprobs = np.zeros((count, top), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._prompt)

    def token_bytes(self, token_id: int) -> bytes:
        return self._detokenizer.token_bytes(token_id)

    @property
    def complete(self) -> bool:
        """Whether all are there. (The first token has none, for nothing comes before it.)"""
        return bool((self._ranks[1:] > 0).all())

    def add(self, scores: PromptScores) -> None:
        """Take those of some positions; they may come again."""
        at = np.frombuffer(scores.positions, dtype="<i4")
        self._logprobs[at] = np.frombuffer(scores.logprobs, dtype=np.float32)
        self._ranks[at] = np.frombuffer(scores.ranks, dtype=np.int32)
        self._top_ids[at] = np.frombuffer(scores.top_ids, dtype=np.int32).reshape(len(at), -1)
        self._top_logprobs[at] = np.frombuffer(scores.top_logprobs, dtype=np.float32).reshape(len(at), -1)

    def positions(self) -> Iterator[tuple[int, PositionLogprobs | None]]:
        """Yield each token and its log-probabilities, None for the first. text_offset: in the prompt's own text."""
        raw, characters = self._detokenizer.token_bytes, codecs.getincrementaldecoder("utf-8")("ignore")
        offset = 0
        columns = (self._prompt, self._logprobs, self._ranks, self._top_ids, self._top_logprobs)
        for number, (token, logprob, rank, ids, logprobs) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            if number == 0:
                yield token, None
            else:
                top = tuple(
                    TokenLogprob(i, raw(i), each, place)
                    for place, (i, each) in enumerate(zip(ids, logprobs, strict=True), start=1)
                )
                yield token, PositionLogprobs(TokenLogprob(token, raw(token), logprob, rank), top, offset)
            if self._detokenizer.has_text(token):
                offset += len(characters.decode(raw(token)))
