"""Text to token ids and back, and chat messages to a prompt. Imports transformers only to load one."""

from __future__ import annotations

import hashlib
import inspect
import logging
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.cache import cache_dir, is_own, private_folder, remove_leftovers
from longspan.engine.chat_format import ChatFormat
from longspan.engine.token_lengths import TokenLengths
from longspan.errors import ConfigError, ModelError, RequestError
from longspan.models.catalog import ResolvedModel
from longspan.models.config import load_model_config

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

_FOLDER, _TEMPORARY = "tokenizers", ".tokenizer-"


class Tokenizer:
    """A model's tokenizer; `backend` is the fast tokenizer itself, e.g. for `tokenizers.decoders.DecodeStream`.

    Any of `eos_token_ids` ends a generation: the tokenizer's own, and those that the model's config adds.
    Text is encoded as transformers does when it is called with the text alone: whatever truncation and padding a
    tokenizer.json asks for, nothing is cut off, and nothing added. Threads may share one.
    """

    def __init__(self, hf_tokenizer: Any, eos_token_ids: Iterable[int] = ()) -> None:
        self._hf = hf_tokenizer
        self.backend: tokenizers.Tokenizer = hf_tokenizer.backend_tokenizer
        own = () if hf_tokenizer.eos_token_id is None else (int(hf_tokenizer.eos_token_id),)
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys((*own, *eos_token_ids)))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = hf_tokenizer.split_special_tokens
        self._lengths = TokenLengths.of(self.backend)
        special = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        response_template = getattr(hf_tokenizer, "response_template", None)
        self.chat_format = ChatFormat.of(hf_tokenizer.chat_template, response_template, special)
        self._own_parameters = frozenset(inspect.signature(hf_tokenizer.apply_chat_template).parameters)

    @classmethod
    def load(cls, model: ResolvedModel, chat_template: Path | None = None) -> Tokenizer:
        """Load a tokenizer. One inside a GGUF file is converted at its first use, and the result kept.

        chat_template: a file with the one to use, instead of the model's own. Raises ModelError, ConfigError.
        """
        with _LOADING:
            hf_tokenizer = _from_folder(model.path) if model.kind == "hf" else _from_gguf(model.path)
        if not hasattr(hf_tokenizer, "backend_tokenizer"):
            raise ModelError(f"{model.path} has no fast tokenizer; a tokenizer.json is needed")
        if chat_template is not None:
            hf_tokenizer.chat_template = _read_template(chat_template)
        _warn_of_broken_templates(hf_tokenizer.chat_template, chat_template or model.path)
        return cls(hf_tokenizer, load_model_config(model.path).eos_token_ids)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._hf.chat_template)

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of text than this."""
        return self._lengths.max_chars

    @property
    def may_shrink(self) -> bool:
        """Whether a text may be longer than its tokens times `max_token_chars`, since parts of it become none."""
        return self._lengths.may_shrink

    def token(self, token_id: int) -> str | None:
        """Return the token's name in the vocabulary; None where it has none."""
        return self.backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode the text. Releases Python's lock meanwhile: a very long one may be encoded in a thread of its own."""
        try:
            (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError:
            said = "the text is not valid Unicode: it holds half of a surrogate pair"
            raise RequestError(said, param="prompt", code="invalid_unicode") from None
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def info(self) -> dict[str, str | None]:
        """Return its class, chat template (the default one of several) and special tokens, by transformers' names."""
        template = self._hf.chat_template
        template = template.get("default") if isinstance(template, dict) else template
        special = {name: getattr(self._hf, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return {"tokenizer_class": type(self._hf).__name__, "chat_template": template, **special}

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> list[int]:
        """Return the token ids of `render_chat`."""
        text = self.render_chat(
            messages, tools=tools, add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message, **template_kwargs,
        )  # fmt: skip
        return self.encode(text, add_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """Return the prompt of a conversation, in the model's own format; `template_kwargs` are variables of that
        format, such as enable_thinking. Raises RequestError where it has no place for what was asked."""
        if not self.has_chat_template:
            raise RequestError("the model has no chat template; send it plain prompts", param="messages")
        if not messages:
            raise RequestError("there are no messages", param="messages")
        if reserved := template_kwargs.keys() & self._own_parameters:
            raise RequestError(
                f"{', '.join(sorted(reserved))} cannot be set for a chat template",
                param="chat_template_kwargs", code="unsupported_parameter",
            )  # fmt: skip
        if not self.chat_format.tells_tools:
            messages, tools = self.chat_format.told(messages, tools), None
        messages = self.chat_format.history.fitted(messages)
        from jinja2 import TemplateError

        try:
            text: str = self._hf.apply_chat_template(
                [dict(message) for message in messages],
                tools=None if tools is None else [dict(tool) for tool in tools],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **template_kwargs,
            )
            return text
        except Exception as error:  # a template is a program, and may fail in any way
            about_messages = isinstance(error, TemplateError) or not template_kwargs
            raise RequestError(
                f"the model's chat template refuses these messages: {type(error).__name__}: {str(error)[:200]}",
                param="messages" if about_messages else "chat_template_kwargs",
                code="chat_template_failed",
            ) from error


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"chat_template {path} cannot be read: {error}") from error


def _warn_of_broken_templates(templates: Any, path: Path) -> None:
    """A chat template that cannot be compiled fails every conversation, but plain prompts are served."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils import chat_template_utils

    compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)  # with the tags of transformers
    for template in templates.values() if isinstance(templates, dict) else [templates] if templates else []:
        if compile_template is not None:
            try:
                compile_template(template)
            except TemplateSyntaxError as error:
                logger.warning(
                    "%s: the chat template is broken in line %s (%s): conversations will be refused until it is mended",
                    path, error.lineno, error.message,
                )  # fmt: skip


_LOADING = threading.Lock()
"""transformers imports its parts when they are first asked for, which two threads must not do at once."""


def _from_folder(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers and tokenizers make of a damaged file, plain Exception included
        raise ModelError(
            f"{folder} has no tokenizer that can be read ({_in_one_line(error)}); it should hold a tokenizer.json "
            "and a tokenizer_config.json; if a download was cut short, fetch them again"
        ) from error


def _from_gguf(path: Path) -> Any:
    """Converting takes seconds, so the result is kept in the cache under a name that changes with the file.
    To read it back needs no AutoTokenizer, which would import torch."""
    kept = _cache_folder(path)
    if _is_own_folder(kept):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(kept, local_files_only=True)
    from transformers import AutoTokenizer

    try:
        converted = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(
            f"the tokenizer inside {path} cannot be read ({_in_one_line(error)}); fetch or convert the file again"
        ) from error
    _keep(converted, kept)
    return converted


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _cache_folder(path: Path) -> Path:
    import transformers

    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {transformers.__version__}"
    return cache_dir() / _FOLDER / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _is_own_folder(folder: Path) -> bool:
    """What somebody else may have put there is not believed: a chat template is a program."""
    return all(is_own(path) for path in (cache_dir(), folder.parent, folder)) and all(map(is_own, folder.iterdir()))


def _keep(converted: Any, folder: Path) -> None:
    """Appears whole or not at all; a cache that cannot be written only costs time."""
    try:
        parent = private_folder(_FOLDER)
        remove_leftovers(parent, _TEMPORARY)
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=parent) as temporary:
            written = Path(temporary) / "written"
            converted.save_pretrained(written)
            for path in (written, *written.iterdir()):
                path.chmod(path.stat().st_mode & ~0o022)  # whatever the umask: what others may write is not read again
            if folder.exists() and not _is_own_folder(folder):
                folder.rename(Path(temporary) / "not-ours")
            written.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            logger.warning("the converted tokenizer cannot be kept in %s: %s", folder, error)
