"""Text to token ids and back, and chat messages to a prompt. transformers is imported only when one is loaded."""

from __future__ import annotations

import hashlib
import inspect
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.errors import ModelError, RequestError
from longspan.models.catalog import cache_dir

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)


class Tokenizer:
    """`backend` is the fast tokenizer itself, e.g. for `tokenizers.decoders.DecodeStream`.

    `eos_token_ids` ends a generation: what the tokenizer names, then whatever else the model's config does.
    """

    def __init__(self, hf_tokenizer: Any, eos_token_ids: Iterable[int] = ()) -> None:
        self._hf = hf_tokenizer
        self.backend: tokenizers.Tokenizer = hf_tokenizer.backend_tokenizer
        own = () if hf_tokenizer.eos_token_id is None else (int(hf_tokenizer.eos_token_id),)
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys((*own, *eos_token_ids)))
        self.vocab_size: int = self.backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, path: Path | str, eos_token_ids: Iterable[int] = ()) -> Tokenizer:
        """`path`: a folder in Hugging Face layout, or a .gguf file, whose tokenizer is converted once and kept."""
        path = Path(path)
        hf_tokenizer = _from_folder(path) if path.is_dir() else _from_gguf(path)
        if not hasattr(hf_tokenizer, "backend_tokenizer"):
            raise ModelError(f"{path} has no fast tokenizer; a tokenizer.json is needed")
        return cls(hf_tokenizer, eos_token_ids)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._hf.chat_template)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Releases Python's lock meanwhile: a very long prompt may be encoded in a thread of its own."""
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt of a conversation, in the model's own format. Raises RequestError where that has no place
        for what was asked; `template_kwargs` are variables of the template, such as enable_thinking."""
        if not self.has_chat_template:
            raise RequestError("this model has no chat template: use the completions endpoint", param="messages")
        if not messages:
            raise RequestError("there are no messages", param="messages")
        variables = dict(template_kwargs or {})
        if reserved := variables.keys() & inspect.signature(self._hf.apply_chat_template).parameters.keys():
            raise RequestError(f"{', '.join(sorted(reserved))} cannot be set for a chat template",
                               param="chat_template_kwargs")
        from jinja2 import TemplateError

        try:
            text = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                tools=None if tools is None else [dict(tool) for tool in tools],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **variables,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise RequestError(f"the model's chat template refuses these messages: {error}",
                               param="messages") from error
        return self.encode(text, add_special_tokens=False)


def _from_folder(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder} has no tokenizer that can be read ({error}); it should hold tokenizer.json "
                         "and tokenizer_config.json") from error


def _from_gguf(path: Path) -> Any:
    """Converting takes seconds, so the result is kept in the cache, under a name that changes with the file."""
    kept = _cache_folder(path)
    if kept.is_dir():
        return _from_folder(kept)
    from transformers import AutoTokenizer

    try:
        converted = AutoTokenizer.from_pretrained(  # type: ignore[no-untyped-call]
            path.parent, gguf_file=path.name, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"the tokenizer inside {path} cannot be read: {error}") from error
    _keep(converted, kept)
    return converted


def _cache_folder(path: Path) -> Path:
    import transformers

    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {transformers.__version__}"
    return cache_dir() / "tokenizers" / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _keep(converted: Any, folder: Path) -> None:
    """Appears whole or not at all; a cache that cannot be written only costs time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=folder.parent) as temporary:
            written = Path(temporary) / "written"
            converted.save_pretrained(written)
            written.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            logger.warning("the converted tokenizer cannot be kept in %s: %s", folder, error)
