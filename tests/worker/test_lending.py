"""Two workers compute a prompt's rest together, all of whose context lies on one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from longspan import SamplingParams
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.transport import Exchange
from longspan.worker.messages import AllocateKV, BatchDone, Run
from longspan.worker.sampling_state import SampledToken, SamplingState
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker
from tests.models.tiny import heads, write_tiny_engine_model
from tests.threads import in_threads

LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 32
CONTEXT, NEW = 200, 81
GREEDY = SamplingParams(temperature=0.0, logprobs=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS}
    write_tiny_engine_model(path, LlamaConfig(**sizes, **heads(4, KV_HEADS, HEAD_DIM)))
    return path


class Watched(LocalTransport):
    """A transport that keeps the shapes of what is sent; between two hosts, if so it is told."""

    def __init__(self, world: LocalWorld, rank: int, near: bool) -> None:
        super().__init__(world, rank)
        self.near = near
        self.sent: list[tuple[int, ...]] = []

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> Exchange:
        self.sent += [tuple(tensor.shape) for tensor, _ in sends]
        return super().exchange(sends, receives)

    def shares_memory(self, other: int) -> bool:
        return self.near


def token_after(folder: Path, near: bool, compute: tuple[int, ...]) -> tuple[SampledToken, list[Watched]]:
    """Sample after a prompt whose last tokens these instances compute; the first ones are computed, and stay, on 0."""
    world = LocalWorld(2, tp_size=1)
    transports = [Watched(world, rank, near) for rank in range(2)]
    ids = torch.arange(CONTEXT + NEW, dtype=torch.int32) % 97 + 3
    first = Segment("r", 0, CONTEXT, (0,), (KVRange(0, 0, CONTEXT),), emits=False, residence=0)
    end = CONTEXT + NEW
    rest = Segment("r", CONTEXT, NEW, compute, (KVRange(compute[-1], CONTEXT, end),), ((0, CONTEXT),), residence=0)
    tokens: dict[str, SampledToken] = {}

    def work(rank: int) -> None:
        spec = WorkerSpec(
            model_path=str(folder), instance=rank, tp_rank=0, num_instances=2, tp=1, dtype="float32", device="cpu",
            threads=1,
        )  # fmt: skip
        worker = Worker(spec, transports[rank])
        worker.execute(AllocateKV(CONTEXT + NEW))
        for number, segment in enumerate((first, rest)):
            batch = RunBatch(number, tuple(sorted({0, *segment.compute})), (segment,))
            sampling = {"r": SamplingState.start(GREEDY, seed=0)} if rank == segment.emitter else {}
            if rank in batch.group:
                part = ids[segment.start : segment.end].numpy().tobytes()
                done = worker.execute(Run(batch, {"r": part}, sampling, number=number))
                assert isinstance(done, BatchDone)
                tokens.update(done.tokens)

    in_threads(work, range(2), world.give_up)
    return tokens["r"], transports


@pytest.mark.parametrize("compute", [(0, 1), (1, 0)])
@pytest.mark.parametrize("near", [True, False])
def test_the_holder_lends_where_memory_is_shared(folder: Path, near: bool, compute: tuple[int, ...]) -> None:
    alone, _ = token_after(folder, near, (0,))
    together, (holder, other) = token_after(folder, near, compute)
    assert together.token_id == alone.token_id
    lent, query_rows = (2, KV_HEADS, CONTEXT, HEAD_DIM), NEW // 2 + (compute[0] == 1)
    asked = (query_rows, 4, HEAD_DIM)
    assert holder.sent.count(lent) == (LAYERS if near else 0)
    assert other.sent.count(asked) == (0 if near else LAYERS)
