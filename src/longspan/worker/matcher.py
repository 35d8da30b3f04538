"""Which tokens a grammar allows next. No torch: the process that tries grammars out has none.

llguidance does the work. Its limits are counts, the same on every machine, so that tensor-parallel ranks agree.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import llguidance

Mask = NDArray[np.bool_]

# A step of an ambiguous grammar may take any time; these make it a few milliseconds, and a matcher 40 MB at most. What
# describes data, not a language, stays far below them.
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 500,
    "step_max_items": 2000,
    "step_lexer_fuel": 100_000,
    "initial_lexer_fuel": 500_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}


_MOST_KEPT = 64  # grammars that are compiled already: to copy one takes microseconds
_NOTHING = ("NoExtensionBias", "NoExtension")  # in llguidance's words


class GrammarError(Exception):
    """The grammar cannot be compiled, or a step of it needs more than its limits allow."""


def is_installed() -> bool:
    """Tell whether grammars can be used here at all."""
    return importlib.util.find_spec("llguidance") is not None


class Vocabulary:
    """The tokens of one model, as grammars see them. To make one takes a good part of a second.

    tokenizer_json: what `tokenizers` writes of a tokenizer. eos_token_ids: any of them may follow a complete output.
    num_rows: token ids that the model has logits for.

    Raises:
        GrammarError: llguidance cannot read such a tokenizer.
    """

    def __init__(self, tokenizer_json: str, eos_token_ids: Sequence[int], num_rows: int) -> None:
        import llguidance

        self.num_rows = num_rows
        self.eos_token_ids = tuple(token for token in eos_token_ids if token < num_rows)
        try:
            self._tokens = llguidance.LLTokenizer(tokenizer_json, eos_token=list(eos_token_ids))
        except Exception as error:  # its errors are plain ValueErrors, or a panic of the library's
            raise GrammarError(f"the model's tokenizer cannot be used with grammars: {error}") from None
        self._limits = llguidance.LLParserLimits(**_LIMITS)
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._keeping = threading.Lock()

    def is_special(self, text: str) -> bool:
        """Whether a text is one special token."""
        tokens = self._tokens.tokenize_str(text, parse_special=True)
        return len(tokens) == 1 and self._tokens.is_special_token(tokens[0])

    def matcher(self, grammar: str, token_ids: Collection[int] = ()) -> Matcher:
        """Return a matcher of a grammar, as `translate` gives it, that has seen these tokens of the output."""
        matcher = Matcher(self, self._compiled(grammar).deep_copy())
        for token_id in token_ids:
            matcher.append(token_id)
        return matcher

    def _compiled(self, grammar: str) -> llguidance.LLMatcher:
        """One that has seen nothing, and never will: whoever asks for the same again does not hold up others anew."""
        import llguidance

        with self._keeping:
            found = self._kept.pop(grammar, None)
        if found is None:
            found = llguidance.LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
        with self._keeping:
            self._kept[grammar] = found
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return found

    def unpack(self, found: llguidance.LLMatcher) -> Mask:
        """Return which of the model's tokens it allows."""
        words = np.empty((self._tokens.vocab_size + 31) // 32, dtype=np.int32)
        found.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        bits = np.unpackbits(words.view(np.uint8), count=self._tokens.vocab_size, bitorder="little").view(np.bool_)
        if len(bits) < self.num_rows:
            bits = np.concatenate((bits, np.zeros(self.num_rows - len(bits), dtype=np.bool_)))
        return bits[: self.num_rows]

    def only_the_end(self) -> Mask:
        """Return a mask that allows end-of-sequence tokens, and nothing else."""
        mask = np.zeros(self.num_rows, dtype=np.bool_)
        mask[list(self.eos_token_ids)] = True
        return mask


class Matcher:
    """One output, as far as it came. `allowed` changes nothing, so a matcher follows from its tokens alone."""

    def __init__(self, vocabulary: Vocabulary, matcher: llguidance.LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._ended = False

    def allowed(self) -> Mask:
        """Return which tokens may follow, by token id. Raises GrammarError where that cannot be said.

        Behind the end of a complete output there may be nothing but end-of-sequence tokens.
        """
        self._check()
        if self._ended:
            return self._vocabulary.only_the_end()
        mask = self._vocabulary.unpack(self._matcher)
        self._check()
        return mask

    def append(self, token_id: int) -> None:
        """Take the next token. One that is not allowed makes `allowed` raise from then on."""
        if self._ended or self._matcher.is_error():
            return
        if token_id in self._vocabulary.eos_token_ids and self._matcher.is_accepting():
            self._ended = True
        else:
            self._matcher.consume_token(token_id)

    def _check(self) -> None:
        if self._matcher.is_error():
            error = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())
            raise GrammarError("nothing matches it" if error in _NOTHING else error)


def translate(kind: str, text: str, after: str = "", *, is_special: bool = False) -> str:
    """Return the grammar, as matchers read it, of a field of `StructuredOutputs` and its text.

    after: where it is no empty text, anything comes first, up to this and with it. is_special: whether that is a
    special token, which is no text to grammars.

    Raises:
        GrammarError: it cannot be translated.
        RecursionError: it is nested too deeply.
    """
    import llguidance

    try:
        if kind in ("json", "json_object"):
            found = llguidance.LLMatcher.grammar_from_json_schema(_without_odd_formats(text), defaults=_JSON)
        else:
            found = llguidance.grammar_from(_FORMATS[kind], text)
    except ValueError as error:
        raise GrammarError(str(error)) from None
    return _behind(str(found), after, is_special) if after else str(found)


def _behind(grammar: str, after: str, is_special: bool) -> str:
    """Behind that there may be a little white space before the answer."""
    in_json = grammar.startswith('{"grammars"')  # else in Lark
    answer, *others = json.loads(grammar)["grammars"] if in_json else [{"lark_grammar": grammar}]
    space = r"/[ \n]{0,4}/"
    if is_special:
        start = f"start: thought {after} {space} @answer\nthought: /(?s:.*)/"
    else:
        start = f"start: thought {space} @answer\nthought[lazy]: /(?s:.*)/ {json.dumps(after)}"
    return json.dumps({"grammars": [{"lark_grammar": start}, {**answer, "name": "answer"}, *others]})


def _without_odd_formats(schema: str) -> str:
    """Return a JSON schema without the formats that llguidance refuses: JSON Schema lets them say nothing."""
    if '"format"' not in schema:
        return schema
    return json.dumps(_without(json.loads(schema)))


def _without(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: value if name in _DATA else _without(value) for name, value in schema.items()
        if not (name == "format" and isinstance(value, str) and value not in _KNOWN)
    }  # fmt: skip


_KNOWN = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_DATA = ("const", "enum", "default", "examples")  # no schemas
# White space without end is what a small model may get lost in.
_JSON: Any = {"coerce_one_of": True, "whitespace_pattern": r"[ \n\r\t]{1,64}"}
_FORMATS: dict[str, Any] = {"regex": "regex", "choice": "choice", "grammar": "grammar"}


def shared_vocabulary(tokenizer_json: str, eos_token_ids: tuple[int, ...], num_rows: int) -> Vocabulary:
    """Return the vocabulary that all workers of this process share. Raises GrammarError."""
    with _MAKING:
        return _kept(tokenizer_json, eos_token_ids, num_rows)


_MAKING = threading.Lock()
_kept = lru_cache(maxsize=2)(Vocabulary)
