"""How much text a token may stand for: what bounds a prompt's characters before anything is tokenised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

# No Unicode character decomposes canonically into more than four, so composing makes at most four into one.
_COMPOSING = 4
_KEEPING_NORMALIZERS = frozenset({"NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel"})
_KEEPING_PRE_TOKENIZERS = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"})
_CUTTING_PRE_TOKENIZERS = frozenset({"Split", "Punctuation"})
_BYTE_LEVEL_ITSELF = frozenset(map(chr, (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))))
_CONTROL = frozenset({*range(0x20), 0x7F}) - frozenset(b"\t\n\r")


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Bounds on tokens: `max_chars` characters of text, at most, are one token; `may_shrink` says where that is no
    bound, since the tokenizer may drop or fuse characters without end (spaces around a special token, unknown
    characters, ...). Control characters, which some vocabularies do not know, are left out of account.
    """

    max_chars: int
    may_shrink: bool

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> TokenLengths:
        """Read the lengths from the vocabulary and from what each step of the tokenizer does to text."""
        vocabulary = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder().values()
        normalizers = _steps(backend.normalizer, "normalizers")
        pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
        factor = math.prod(_shrinks_by(step) for step in normalizers)
        may_shrink = (
            factor == math.inf
            or any(token.lstrip or token.rstrip for token in added)
            or not all(_keeps_all_text(step) for step in pre_tokenizers)
            or not _knows_all_text(
                backend, vocabulary, any(step["type"] == "ByteLevel" for step in (*normalizers, *pre_tokenizers))
            )
        )
        longest = max((len(token) for token in vocabulary), default=1)  # a byte's stand-in is a character of its own
        return cls(max(1, longest) * (int(factor) if factor < math.inf else _COMPOSING), may_shrink)


def _steps(component: Any, inner: str) -> list[dict[str, Any]]:
    """A normalizer or a pre-tokenizer as tokenizer.json tells it, sequences in a row."""
    if component is None:
        return []
    return _flat(json.loads(component.__getstate__()), inner)


def _flat(step: dict[str, Any], inner: str) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [leaf for part in step[inner] for leaf in _flat(part, inner)]


def _shrinks_by(normalizer: dict[str, Any]) -> float:
    """So many characters may become one."""
    kind = normalizer["type"]
    if kind in _KEEPING_NORMALIZERS:
        return 1
    if kind in ("NFC", "NFKC"):
        return _COMPOSING
    if kind == "Replace" and "String" in normalizer["pattern"] and normalizer["content"]:
        return max(1, math.ceil(len(normalizer["pattern"]["String"]) / len(normalizer["content"])))
    return math.inf


def _keeps_all_text(pre_tokenizer: dict[str, Any]) -> bool:
    kind = pre_tokenizer["type"]
    if kind in _CUTTING_PRE_TOKENIZERS:
        return bool(pre_tokenizer["behavior"] != "Removed")
    return kind in _KEEPING_PRE_TOKENIZERS


def _knows_all_text(backend: tokenizers.Tokenizer, vocabulary: dict[str, int], byte_level: bool) -> bool:
    """Whether each character becomes a token at least: all bytes have one, or each unknown character gets its own."""
    from tokenizers.models import BPE, Unigram

    model = backend.model
    if not isinstance(model, BPE | Unigram):
        return False  # a word of any length may be one unknown token
    if byte_level and _knows_bytes(lambda byte: _byte_level_char(byte) in vocabulary):
        return True
    if not isinstance(model, BPE):
        return '"byte_fallback":true' in backend.to_str() and _knows_bytes(lambda byte: f"<0x{byte:02X}>" in vocabulary)
    if model.byte_fallback and _knows_bytes(lambda byte: f"<0x{byte:02X}>" in vocabulary):
        return True
    return model.unk_token is not None and not model.fuse_unk


def _knows_bytes(known: Callable[[int], bool]) -> bool:
    """Whether of each character's UTF-8 bytes one at least has a token."""
    ascii_bytes = (byte for byte in range(0x80) if byte not in _CONTROL)
    first, following = range(0xC2, 0xF5), range(0x80, 0xC0)
    return all(map(known, ascii_bytes)) and (all(map(known, first)) or all(map(known, following)))


def _byte_level_char(byte: int) -> str:
    """The character that stands for a byte in byte-level vocabularies: itself where it prints, else one from 256 on."""
    if chr(byte) in _BYTE_LEVEL_ITSELF:
        return chr(byte)
    return chr(256 + sum(chr(other) not in _BYTE_LEVEL_ITSELF for other in range(byte)))
