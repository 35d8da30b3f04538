"""llama.cpp as a peer, through llama-cpp-python's bindings of its C interface (setup_llama_cpp.sh builds it):

    PEER/bin/python llama_cpp_cpu.py --model FILE.gguf

Several requests are sequences of one context, which llama.cpp decodes in one batch. What is asked and answered,
protocol.py says.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import llama_cpp  # type: ignore[import-not-found]  # installed beside, not in this environment
import numpy as np
from protocol import VOCABULARY, Generate, Prompt, serve

BATCH_TOKENS = 2048
MAX_SEQUENCES = 32


class Context:
    """Sequences of one model, which share the room for `tokens` of them. memory: what holds their KV."""

    def __init__(self, path: str, tokens: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise RuntimeError(f"{path} cannot be loaded")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_seq_max = tokens, BATCH_TOKENS, MAX_SEQUENCES
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True  # any sequence may use the whole context
        self._state = llama_cpp.llama_init_from_model(model, settings)
        if not self._state:
            raise RuntimeError("no context")
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.memory = llama_cpp.llama_get_memory(self._state)
        self.facts = {"version": f"llama-cpp-python {llama_cpp.__version__}", "threads": threads}

    def run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := llama_cpp.llama_decode(self._state, batch):
            raise RuntimeError(f"llama_decode failed with {code}")

    def best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._state, row)
        return int(np.ctypeslib.as_array(logits, (VOCABULARY,)).argmax())


def load(path: str, tokens: int, threads: int) -> tuple[Generate, dict[str, Any]]:
    context = Context(path, tokens, threads)

    def generate(prompts: list[Prompt], tokens: int) -> tuple[float, float]:
        begin = time.perf_counter()
        llama_cpp.llama_memory_clear(context.memory, True)
        last: dict[int, int] = {}
        waiting = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        while waiting:
            rows, waiting = waiting[:BATCH_TOKENS], waiting[BATCH_TOKENS:]
            context.run(rows)
            last |= {sequence: context.best(i) for i, (_, _, sequence, wanted) in enumerate(rows) if wanted}
        first = time.perf_counter() - begin
        for step in range(tokens - 1):
            context.run([(last[i], len(prompt) + step, i, True) for i, prompt in enumerate(prompts)])
            last = {i: context.best(i) for i in range(len(prompts))}
        return time.perf_counter() - begin, first

    return generate, context.facts


def options(about: str | None, context: int) -> argparse.Namespace:
    """Return what the command line says. context: the default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--context", type=int, default=context, help="tokens of all sequences together")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def main() -> None:
    arguments = options(__doc__, 8448)
    serve(lambda: load(arguments.model, arguments.context, arguments.threads))


if __name__ == "__main__":
    main()
