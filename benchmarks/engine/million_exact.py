"""Is the server exact at 131,072 tokens? In fp32, over HTTP, on two instances, beside transformers.

The model has one layer whose attention is sharp wherever the keys are (million_model.py). A prompt is cut at sampled
positions, and where it ends; of each part some tokens are generated, greedily. transformers computes the whole prompt
once, its last hidden states at those positions, and goes on from each with the tokens that the server gave.

How much such a comparison sees is told by transformers itself: what its log probabilities would be without the first
half of the context.

    python -m benchmarks.engine.million_exact [--tokens 131072]

Exits with 1 if a token is another one, or a log probability differs by more than 0.001.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM

from benchmarks.common import arguments, save, say
from benchmarks.engine.million_log import LongLife, read_life
from benchmarks.engine.million_model import LongModel, id_of, random_ids
from benchmarks.http_server import end_cleanly_on_sigterm, serving
from longspan.metrics.event_log import read_event_log

INSTANCES = 2
GENERATED, TOP = 4, 20
TOLERANCE = 1e-3
PATIENCE_S = 7200.0


@dataclass(frozen=True)
class Generated:
    """tokens: that follow a prompt. top: at each of them, the best tokens' log probabilities."""

    tokens: list[int]
    top: list[dict[int, float]]


def ask(url: str, prompt: Sequence[int]) -> Generated:
    body = {"prompt": list(prompt), "max_tokens": GENERATED, "logprobs": TOP, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        found = json.loads(answer.read())["choices"][0]["logprobs"]
    top = [{id_of(name): value for name, value in best.items()} for best in found["top_logprobs"]]
    return Generated([id_of(name) for name in found["tokens"]], top)


class Theirs:
    """transformers' model, in fp32, once it has computed the prompt."""

    def __init__(self, folder: Path, prompt: Sequence[int], ends: Sequence[int]) -> None:
        """ends: lengths of the parts of the prompt that are asked about."""
        self._model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._prompt = list(prompt)
        with torch.inference_mode():
            whole = self._model(
                torch.tensor([self._prompt]), use_cache=True, logits_to_keep=torch.tensor([end - 1 for end in ends])
            )
        self._first = dict(zip(ends, whole.logits[0].log_softmax(-1), strict=True))
        self._cache = whole.past_key_values

    def logprobs(self, end: int, following: Sequence[int]) -> torch.Tensor:
        """At the end of a part of the prompt, and at each of the tokens that follow but the last: [T, V]."""
        cache, rows = self._between(0, end), [self._first[end]]
        for place, token in enumerate(following[:-1]):
            rows.append(self._step(token, end + place, cache))
        return torch.stack(rows)

    def without_first_half(self, end: int) -> torch.Tensor:
        """At the end of a part of the prompt, had its last token not seen the first half of those before: [V]."""
        return self._step(self._prompt[end - 1], end - 1, self._between(end // 2, end - 1))

    def _between(self, begin: int, end: int) -> DynamicCache:
        cache, layer = DynamicCache(), self._cache.layers[0]
        cache.update(layer.keys[:, :, begin:end], layer.values[:, :, begin:end], 0)
        return cache

    def _step(self, token: int, position: int, cache: DynamicCache) -> torch.Tensor:
        with torch.inference_mode():
            out = self._model(torch.tensor([[token]]), position_ids=torch.tensor([[position]]), past_key_values=cache)
        row: torch.Tensor = out.logits[0, -1].log_softmax(-1)
        return row


def compare(ours: Generated, theirs_TV: torch.Tensor) -> dict[str, Any]:
    differences = [
        abs(value - float(theirs_V[token]))
        for best, theirs_V in zip(ours.top, theirs_TV, strict=True)
        for token, value in best.items()
    ]
    return {
        "tokens": ours.tokens, "theirs": theirs_TV.argmax(-1).tolist(), "logprobs": len(differences),
        "largest_difference": max(differences),
    }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """positions: each cut's. life: of the whole prompt, from the server's event log."""

    positions: list[dict[str, Any]]
    life: LongLife


def measure(model: LongModel, options: Sequence[str], tokens: int, ends: Sequence[int]) -> Comparison:
    """ends: lengths of the prompt's parts; the last one is all of it."""
    prompt = random_ids(tokens, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, events = model.write(folder / "model"), folder / "events.jsonl"
        command = [sys.executable, "-m", "longspan", "serve", str(weights), *options, "--event-log", str(events)]
        with serving(command, folder / "server.log") as server:
            ours = {}
            for end in ends:
                begin = time.monotonic()
                ours[end] = ask(server.url, prompt[:end])
                say(f"{end} tokens: {time.monotonic() - begin:.1f} s")
        life = read_life(read_event_log(events), tokens)
        say("transformers ...")
        theirs = Theirs(weights, prompt, ends)
    positions = []
    for end in ends:
        logprobs_TV = theirs.logprobs(end, ours[end].tokens)
        half = float((theirs.without_first_half(end) - logprobs_TV[0]).abs().max())
        positions.append({"end": end, **compare(ours[end], logprobs_TV), "without_first_half": half})
    return Comparison(positions, life)


def main() -> None:
    end_cleanly_on_sigterm()
    options = arguments(
        (__doc__ or "").partition("\n")[0],
        [("tokens", 131_072, "length of the prompt"), ("positions", 5, "where it is cut, beside its end"),
         ("heads", 2, "query heads"), ("head-dim", 32, "their dimension"), ("name", "million_exact", "of the result")],
    )  # fmt: skip
    model = LongModel(heads=options.heads, head_dim=options.head_dim)
    cuts = np.random.default_rng(7).choice(np.arange(2, options.tokens), size=options.positions, replace=False)
    serve = ["--instances", str(INSTANCES), "--dtype", "float32"]
    found = measure(model, serve, options.tokens, sorted({*cuts.tolist(), options.tokens}))
    for position in found.positions:
        say(f"{position}")
    save(options.name, {
        "tokens": options.tokens, "options": serve, "model": model.facts(), "generated": GENERATED, "top": TOP,
        "positions": found.positions, "life": found.life.facts(),
        "largest_difference": max(each["largest_difference"] for each in found.positions),
    })  # fmt: skip
    if any(each["tokens"] != each["theirs"] or each["largest_difference"] > TOLERANCE for each in found.positions):
        raise SystemExit("the server is not exact")


if __name__ == "__main__":
    main()
