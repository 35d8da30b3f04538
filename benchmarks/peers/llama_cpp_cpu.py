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

import llama_cpp  # type: ignore[import-not-found]
import numpy as np
from protocol import VOCABULARY, Generate, Prompt, serve

BATCH_TOKENS = 2048
MAX_SEQUENCES = 32


def load(path: str, context: int, threads: int) -> tuple[Generate, dict[str, Any]]:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"{path} cannot be loaded")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = context, BATCH_TOKENS, MAX_SEQUENCES
    settings.n_threads = settings.n_threads_batch = threads
    settings.kv_unified = True  # any sequence may use the whole context
    state = llama_cpp.llama_init_from_model(model, settings)
    if not state:
        raise RuntimeError("no context")
    batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def run(rows: list[tuple[int, int, int, bool]]) -> None:
        """rows: (token, position, sequence, whether its logits are wanted)."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := llama_cpp.llama_decode(state, batch):
            raise RuntimeError(f"llama_decode failed with {code}")

    def best(row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(state, row)
        return int(np.ctypeslib.as_array(logits, (VOCABULARY,)).argmax())

    def generate(prompts: list[Prompt], tokens: int) -> tuple[float, float]:
        begin = time.perf_counter()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        last: dict[int, int] = {}
        waiting = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        while waiting:
            rows, waiting = waiting[:BATCH_TOKENS], waiting[BATCH_TOKENS:]
            run(rows)
            last |= {sequence: best(i) for i, (_, _, sequence, wanted) in enumerate(rows) if wanted}
        first = time.perf_counter() - begin
        for step in range(tokens - 1):
            run([(last[i], len(prompt) + step, i, True) for i, prompt in enumerate(prompts)])
            last = {i: best(i) for i in range(len(prompts))}
        return time.perf_counter() - begin, first

    return generate, {"version": f"llama-cpp-python {llama_cpp.__version__}", "threads": threads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--context", type=int, default=8448, help="tokens of all sequences together")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    serve(lambda: load(arguments.model, arguments.context, arguments.threads))


if __name__ == "__main__":
    main()
