"""An answer of a form of its own, behind what the model thinks."""

from __future__ import annotations

from longspan.engine.answer_parser import AnswerReader
from longspan.engine.call_text import Piece
from longspan.engine.stop_strings import StopScanner


class ThoughtfulReader:
    """Reads thoughts up to their end, and all that follows as another reader does, whatever it looks like.

    end: the text that ends the thoughts, which its prompt has begun. White space around them is dropped.
    """

    def __init__(self, end: str, answer: AnswerReader) -> None:
        self._answer = answer
        self._thoughts = StopScanner((end,))
        self._space = ""  # at the end of the thoughts, as far as they are known
        self._thinks = self._is_first = True

    def feed(self, text: str) -> list[Piece]:
        if not self._thinks:
            return self._say(text)
        thought, end = self._thoughts.push(text)
        pieces = self._think(thought)
        if end is None:
            return pieces
        self._thinks, self._is_first = False, True
        return pieces + self._say(self._thoughts.rest)

    def finish(self) -> list[Piece]:
        if self._thinks:
            return self._think(self._thoughts.flush())
        return [] if self._is_first else self._answer.finish()

    def _think(self, text: str) -> list[Piece]:
        text = self._space + text
        known = text.rstrip()
        self._space = text[len(known) :]
        known = self._without_space(known)
        return [Piece("reasoning", known)] if known else []

    def _say(self, text: str) -> list[Piece]:
        text = self._without_space(text)
        return self._answer.feed(text) if text else []

    def _without_space(self, text: str) -> str:
        """None of it before the first other character."""
        if self._is_first:
            text = text.lstrip()
            self._is_first = not text
        return text
