"""What each token adds to the UTF-8 of a text: its true bytes, which may be part of a character only."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Reads it from the vocabulary, as the tokenizer's decoder would. One for all requests; what was asked is kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        steps = _steps(tokenizer.decoder)
        kinds = {step["type"] for step in steps}
        self._byte_of = _byte_level_alphabet() if "ByteLevel" in kinds else {}
        self._byte_fallback = "ByteFallback" in kinds
        self._replaced = [_replacement(step) for step in steps if step["type"] in ("Replace", "Metaspace")]
        self._anchor: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
        self._known = bool(self._byte_of or self._byte_fallback or self._replaced)
        self._kept: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """Return the token's bytes: none for ids beyond the vocabulary; a special token's are its name's."""
        found = self._kept.get(token_id)
        if found is None:
            found = self._kept[token_id] = self._read(token_id)
        return found

    def _read(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if not self._known:
            return self._decoded(token_id)
        if self._byte_fallback and (match := _BYTE_FALLBACK.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self._byte_of:
            return b"".join(self._bytes_of(char) for char in token)
        for pattern, content in self._replaced:
            token = token.replace(pattern, content)
        return token.encode("utf-8", "replace")

    def _bytes_of(self, char: str) -> bytes:
        byte = self._byte_of.get(char)
        return char.encode("utf-8", "replace") if byte is None else bytes([byte])

    def _decoded(self, token_id: int) -> bytes:
        """By a decoder that is not known here: what the token adds behind another one."""
        before = self._tokenizer.decode(self._anchor, skip_special_tokens=False)
        text = self._tokenizer.decode([*self._anchor, token_id], skip_special_tokens=False)
        return text.removeprefix(before).encode("utf-8", "replace")


def _steps(decoder: Any) -> list[dict[str, Any]]:
    return [] if decoder is None else _flat(json.loads(decoder.__getstate__()))


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [leaf for part in step["decoders"] for leaf in _flat(part)]


def _replacement(step: dict[str, Any]) -> tuple[str, str]:
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    return step["pattern"].get("String", ""), step["content"]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's: a byte that prints stands for itself, the others for the characters from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
