"""One decode step through the worker's own runner, with the kernels that a GPU would run, and what it asks of one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from longspan.attention.cuda import CudaBackend
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.tensor_parallel import SingleDevice
from longspan.models.llama import LlamaModel
from longspan.models.sharding import TensorParallelShard
from longspan.sampling_params import SamplingParams
from longspan.worker.kv_pool import KVPool
from longspan.worker.messages import BatchDone, Run
from longspan.worker.model_runner import ModelRunner
from longspan.worker.sampling_state import SamplingState
from tests.gpu.pretend_gpu import DEVICE, Counts, PretendGPU
from tests.threads import in_threads

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
from shapes import ModelShape, RandomWeights

LAYERS = 32  # as Llama-3-8B has them; sizes do not change what is counted
FEW, SOME = 1, 2  # layers of the models that run: all layers ask for the same
SMALL = ModelShape(
    "small layers", layers=FEW, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=101,
    contexts=(0, 0, 0), prompts=(0, 0, 0), chunk=0,
)  # fmt: skip
CONTEXT = 48
GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9)


def decode_counts(batch: int, instances: int, params: SamplingParams = GREEDY) -> list[Counts]:
    """Of each instance in a step of so many requests, each of which has its context spread over all instances.

    The requests' masters take turns, so that with two instances and one request the second only answers.
    """
    few, some = (counted(replace(SMALL, layers=layers), batch, instances, params) for layers in (FEW, SOME))
    return [a.extrapolated(b, (LAYERS - FEW) // (SOME - FEW)) for a, b in zip(few, some, strict=True)]


def counted(shape: ModelShape, batch: int, instances: int, params: SamplingParams) -> list[Counts]:
    world = LocalWorld(instances, tp_size=1)
    counts = [Counts() for _ in range(instances)]
    source = RandomWeights(shape, torch.device("cpu"), torch.bfloat16)

    @torch.inference_mode()
    def work(instance: int) -> None:
        with PretendGPU() as gpu:
            shard = TensorParallelShard.of(shape.config)
            model = LlamaModel.load(shape.config, source, shard, torch.bfloat16, DEVICE)
            pool = KVPool(shape.layers, shape.kv_heads, batch * (CONTEXT + 2), shape.head_dim, torch.bfloat16, DEVICE)
            pool.k_LGNK.normal_(), pool.v_LGNK.normal_()
            runner = ModelRunner(
                model, pool, CudaBackend(), LocalTransport(world, instance), SingleDevice(), instance,
                rank_of=lambda other: other, on_progress=lambda: None,
            )  # fmt: skip
            for number in range(batch):
                at = CONTEXT * instance // instances, CONTEXT * (instance + 1) // instances
                pool.allocate(number, *at)
                if number % instances == instance:
                    runner.last_token[f"r{number}"] = number
                    runner.sampling[f"r{number}"] = SamplingState.start(params, seed=number)
            runner.run(step(batch, instances, 0))  # what only the first one asks for does not count
            gpu.counts = counts[instance]
            done = runner.run(step(batch, instances, 1))
            assert isinstance(done, BatchDone) and len(done.tokens) == len(range(instance, batch, instances))

    in_threads(work, range(instances), world.give_up)
    return counts


def step(batch: int, instances: int, number: int) -> Run:
    """The step of that number; each leaves one token more at its request's master."""
    segments = []
    for request in range(batch):
        master, at = request % instances, CONTEXT + number
        held = [CONTEXT * (i + 1) // instances - CONTEXT * i // instances for i in range(instances)]
        held[master] += number
        context = tuple(enumerate(held))
        store = (KVRange(master, at, at + 1),)
        segments.append(Segment(f"r{request}", at, 1, (master,), store, context, residence=request))
    return Run(RunBatch(number, tuple(range(instances)), tuple(segments)), {}, {})


# (requests, instances, how they are sampled)
CASES = [(batch, instances, GREEDY) for batch in (1, 64) for instances in (1, 2)] + [(64, 1, SAMPLED)]


def case_name(batch: int, instances: int, params: SamplingParams) -> str:
    return f"batch {batch}, {instances} instances, {'greedy' if params.greedy else 'sampled'}"
