"""Hugging Face transformers as a peer: `python transformers_cpu.py --model MODEL_DIR`, under any Python that has it.

What is asked and answered, protocol.py says.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import torch
import transformers
from protocol import Generate, Prompt, serve
from transformers import AutoModelForCausalLM


def load(folder: str, threads: int) -> tuple[Generate, dict[str, Any]]:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(prompts: list[Prompt], tokens: int) -> tuple[float, None]:
        begin = time.perf_counter()
        ids = torch.tensor(prompts)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                             min_new_tokens=tokens, pad_token_id=0)  # fmt: skip
        seconds = time.perf_counter() - begin
        if out.shape[1] != ids.shape[1] + tokens:
            raise RuntimeError(f"asked for {tokens} tokens, got {out.shape[1] - ids.shape[1]}")
        return seconds, None

    return generate, {"version": transformers.__version__, "threads": threads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder of safetensors")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    serve(lambda: load(arguments.model, arguments.threads))


if __name__ == "__main__":
    main()
