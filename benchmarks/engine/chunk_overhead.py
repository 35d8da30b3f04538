"""What small chunks cost, behind contexts of any length: one instance of one thread, beside chunks of 2,048 tokens.

The claim to be tested is Medha's: that reading a long context again for every small chunk costs little, because a chunk
of c tokens does c query heads / KV heads operations for each number that it reads, however long the context is.

The model has SmolLM2's layers, four of them, with random weights. A worker of ours runs real batches, each a chunk of
one request behind KV that was never computed, only drawn; the engine around it is left out. Chunks of all sizes take
turns behind the same context, each where it attends to as much on average as a token of the largest does. Overhead is
seconds a token, over those of the largest chunks there.

    python -m benchmarks.engine.chunk_overhead [--rounds 3]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import arguments, interleaved, paired_ratio, save, say, timed
from benchmarks.engine.random_model import RandomModel
from longspan.core.actions import OWN, KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.worker.messages import AllocateKV, Run
from longspan.worker.model_runner import ModelRunner
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker

CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048)
CONTEXTS = (0, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
TOKENS = 512  # of small chunks together, so that one figure is no single short moment's
MODEL = RandomModel()
REQUEST = "r"


@torch.inference_mode()
def start_worker(folder: Path, threads: int, kv_tokens: int) -> tuple[Worker, ModelRunner]:
    spec = WorkerSpec(
        model_path=str(folder), instance=0, tp_rank=0, num_instances=1, tp=1, dtype="bfloat16", device="cpu",
        threads=threads, quantization="none",
    )  # fmt: skip
    worker = Worker(spec, LocalTransport(LocalWorld(1, tp_size=1), 0))
    worker.execute(AllocateKV(kv_tokens))
    runner = worker.runner
    assert runner is not None
    runner.pool.k_LGNK.normal_()
    runner.pool.v_LGNK.normal_()
    return worker, runner


def chunk_command(context: int, length: int) -> Run:
    """A chunk in the middle of a prompt: nothing is sampled after it."""
    segment = Segment(
        REQUEST, context, length, (0,), (KVRange(0, context, context + length),),
        context=((0, context),) if context else (), emits=False,
    )  # fmt: skip
    tokens = torch.tensor(MODEL.prompt(length, seed=length), dtype=torch.int32)
    return Run(RunBatch(0, (0,), (segment,)), {REQUEST: tokens.numpy().tobytes()}, {})


def seconds_a_token(worker: Worker, runner: ModelRunner, context: int, length: int) -> Callable[[int], float]:
    """The chunk in the middle of the next `CHUNKS[-1]` tokens: so those of any size attend to as much on average."""
    begin = context + (CHUNKS[-1] - length) // 2
    command = chunk_command(begin, length)

    def run() -> None:
        worker.execute(command)
        runner.pool.release(OWN, [(begin, begin + length)])

    def side(_: int) -> float:
        runner.pool.allocate(OWN, context, begin)
        seconds = timed(run, max(1, TOKENS // length)) / length
        if begin > context:
            runner.pool.release(OWN, [(context, begin)])
        return seconds

    return side


def behind(worker: Worker, runner: ModelRunner, context: int, rounds: int) -> dict[str, Any]:
    """Seconds a token for each size of chunks, and their overhead."""
    if context:
        runner.pool.allocate(OWN, 0, context)
    sides = {str(length): seconds_a_token(worker, runner, context, length) for length in CHUNKS}
    seconds = interleaved(sides, rounds)
    runner.pool.free(OWN)
    largest = seconds[str(CHUNKS[-1])]
    return {
        "overhead": {length: paired_ratio(times, largest) - 1.0 for length, times in seconds.items()},
        "microseconds_per_token": {length: 1e6 * median(times) for length, times in seconds.items()},
    }


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("rounds", 3, "rounds"), ("longest", CONTEXTS[-1], "longest context"), ("threads", 1, "of the instance"),
         ("name", "chunk_overhead", "name of the result")],
    )  # fmt: skip
    contexts = [context for context in CONTEXTS if context <= options.longest]
    results: dict[str, Any] = {"model": MODEL.facts(), "threads": options.threads, "contexts": {}}
    with tempfile.TemporaryDirectory() as folder:
        kv_tokens = contexts[-1] + CHUNKS[-1]
        MODEL.write(Path(folder), kv_tokens)
        worker, runner = start_worker(Path(folder), options.threads, kv_tokens)
        for context in contexts:
            results["contexts"][str(context)] = found = behind(worker, runner, context, options.rounds)
            said = ", ".join(f"{length}: {100 * share:.0f} %" for length, share in found["overhead"].items())
            largest = found["microseconds_per_token"][str(CHUNKS[-1])]
            say(f"{context:6d} tokens of context: {largest:.0f} us a token in the largest chunks; overhead {said}")
    save(options.name, results)


if __name__ == "__main__":
    main()
