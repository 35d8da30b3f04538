"""Tokenizers of each kind, trained in a moment: what tests of text and tokens share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog; then it sleeps.",
    "Grüße aus Köln! 日本語 😀 naïve café",
    "def f(x): return x + 1",
] * 20
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """As SmolLM2, Llama 3 and Qwen have them."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def composing() -> Tokenizer:
    """Byte-level, after NFC, as Qwen2 has it."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def metaspace() -> Tokenizer:
    """As SentencePiece's unigrams become, with all bytes known."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    scored = [(piece, -float(i)) for piece, i in pieces]
    tokenizer.model = Unigram(scored + [(byte, -1000.0) for byte in BYTES], unk_id=0, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def llama2() -> Tokenizer:
    """As SentencePiece's BPE becomes: spaces are prepended and replaced, unknown characters fall back to bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {byte: 3 + i for i, byte in enumerate(BYTES)}
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyzTDG", "th", "▁th", "er"]:
        vocabulary[piece] = len(vocabulary)
    model = BPE(vocabulary, [("t", "h"), ("▁", "th"), ("e", "r")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def word_pieces() -> Tokenizer:
    """As BERT has them: text is cleaned, and a word may be unknown as a whole."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def stripping() -> Tokenizer:
    """Byte-level, with an added token that takes the spaces around it with it."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|cut|>", lstrip=True, rstrip=True), AddedToken("quick brown", normalized=False)])
    return tokenizer


def squeezing() -> Tokenizer:
    """Byte-level, after runs of spaces have become one."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    return tokenizer


ZOO: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make for make in (byte_level, composing, metaspace, llama2, word_pieces, stripping, squeezing)
}


def save(tokenizer: Tokenizer, folder: Path, **settings: object) -> Path:
    """As transformers saves it. Returns the folder."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **settings).save_pretrained(folder)
    return folder
