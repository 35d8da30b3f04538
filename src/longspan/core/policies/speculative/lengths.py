"""Output lengths, learned from requests that finished.

Both papers predict from the prompt's text (a fine-tuned BERT; a search among prompts seen before). The scheduler knows
no text, so it goes by what it does know: how long the prompt is, and what prompts of that length led to.
"""

from __future__ import annotations

from collections import defaultdict

from longspan.core.books.request import Request
from longspan.core.policies.parts.predictions import FIRST_GUESS, OutputLengths


class LearnedLengths:
    """The mean output of each class of prompts; a class is the prompts between two powers of two.

    While a class has none, the mean of all; while none has finished, a guess.
    """

    def __init__(self) -> None:
        self._everyone = _Mean()
        self._classes: defaultdict[int, _Mean] = defaultdict(_Mean)

    @property
    def num_learned(self) -> int:
        """The number of requests that it has learned from."""
        return self._everyone.count

    def learn(self, request: Request) -> None:
        """Learn from a request that came to its own end."""
        for mean in (self._everyone, self._classes[_class_of(request)]):
            mean.add(request.num_output_tokens)

    def left(self, request: Request) -> int:
        """Return the tokens that a request is expected to generate yet: at least one, at most what it may.

        One that has outlived the prediction is expected to go on for a tenth of what it has (LoongServe's rule).
        """
        seen = self._classes.get(_class_of(request), self._everyone)
        return OutputLengths(seen.value if seen.count else FIRST_GUESS).left(request)


class _Mean:
    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) / self.count


def _class_of(request: Request) -> int:
    return request.num_prompt_tokens.bit_length()
