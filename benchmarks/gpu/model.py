"""A model, its KV pool and its runner as a worker has them, with random weights on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from case import NotHereError
from longspan.attention.backend import AttentionBackend
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.tensor_parallel import SingleDevice
from longspan.distributed.transport import SoleDevice
from longspan.models.llama import LlamaModel
from longspan.models.sharding import TensorParallelShard
from longspan.sampling_params import SamplingParams
from longspan.worker.kv_pool import KVPool
from longspan.worker.messages import Run
from longspan.worker.model_runner import ModelRunner
from longspan.worker.sampling_state import SamplingState
from shapes import ModelShape, RandomWeights

_DTYPE = torch.bfloat16
_SPARE = 0.08  # of the device's memory, for activations


def load(shape: ModelShape, device: torch.device) -> LlamaModel:
    source = RandomWeights(shape, device, _DTYPE)
    return LlamaModel.load(shape.config, source, TensorParallelShard.of(shape.config), _DTYPE, device)


def require_memory(shape: ModelShape, tokens: int, device: torch.device) -> None:
    """Raises NotHereError where a KV pool of so many tokens does not fit beside what is there."""
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    need = tokens * shape.kv_elements_per_token * _DTYPE.itemsize
    if need > free - _SPARE * total:
        raise NotHereError(f"{need / 2**30:.0f} GiB of KV, {free / 2**30:.0f} GiB free", passing=True)


@dataclass
class Runner:
    """Batches of requests on one instance; each request's tokens lie in shuffled slots of the pool."""

    shape: ModelShape
    runner: ModelRunner
    vocab: int
    num_batches: int = 0

    @classmethod
    def of(cls, shape: ModelShape, model: LlamaModel, backend: AttentionBackend, tokens: int) -> Runner:
        """tokens: slots of the pool."""
        device = model.like.device
        require_memory(shape, tokens, device)
        pool = KVPool(shape.layers, shape.kv_heads, tokens, shape.head_dim, _DTYPE, device)
        runner = ModelRunner(
            model, pool, backend, SoleDevice(), SingleDevice(), 0, rank_of=lambda i: i, on_progress=lambda: None
        )
        return cls(shape, runner, shape.vocab)

    def fill(self, batch: int, context: int) -> None:
        """So many requests with random KV of so many tokens, whose slots lie anywhere in the pool."""
        pool = self.runner.pool
        for layer in range(self.shape.layers):
            for cache in pool.layer(layer):
                cache.normal_()
        size = pool.free_slots.size
        pool.free_slots.stack[:size] = np.random.default_rng(0).permutation(pool.free_slots.stack[:size])
        for number in range(batch):
            pool.allocate(number, 0, context)
            self.runner.last_token[f"r{number}"] = number % self.vocab
            self.runner.sampling[f"r{number}"] = SamplingState.start(SamplingParams(temperature=0.0), seed=0)

    def batch(self, segments: Sequence[Segment]) -> RunBatch:
        self.num_batches += 1
        return RunBatch(self.num_batches, (0,), tuple(segments))

    def decode(self, batch: int, context: int) -> Run:
        """One token for each request, which has so many."""
        return Run(
            self.batch(
                [
                    Segment(f"r{i}", context, 1, (0,), (KVRange(0, context, context + 1),), ((0, context),), True, i)
                    for i in range(batch)
                ]
            ),
            {},
            {},
        )

    def chunk(self, request_id: str, start: int, end: int, *, last: bool) -> Run:
        ids = torch.randint(0, self.vocab, (end - start,), dtype=torch.int32)
        context = ((0, start),) if start else ()
        segment = Segment(request_id, start, end - start, (0,), (KVRange(0, start, end),), context, emits=last)
        state = SamplingState.start(SamplingParams(temperature=0.0), seed=0)
        sampling = {request_id: state} if last else {}
        return Run(self.batch([segment]), {request_id: ids.numpy().tobytes()}, sampling)
