"""In bfloat16 the same token is the best one nearly everywhere, under teacher forcing on real text."""

from __future__ import annotations

import pytest
import torch

from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import plan_layout, positions_of
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.tensor_parallel import SingleDevice
from longspan.models.catalog import ResolvedModel
from longspan.worker.messages import AllocateKV, WorkerSpec
from longspan.worker.worker import Worker
from tests.threads import in_threads

pytestmark = pytest.mark.heavy
LENGTH = 1500


@torch.inference_mode()
def best_tokens(model: ResolvedModel, prompt: list[int], dop: int) -> torch.Tensor:
    """The best next token after each position, by a prefill in bfloat16 on `dop` instances."""
    batch = RunBatch(0, tuple(range(dop)), (Segment("r", 0, len(prompt), tuple(range(dop)),
                                                    (KVRange(dop - 1, 0, len(prompt)),)),))  # fmt: skip
    world = LocalWorld(dop, tp_size=1)
    best = torch.zeros(len(prompt), dtype=torch.int64)

    @torch.inference_mode()
    def run(instance: int) -> None:
        spec = WorkerSpec(
            model_path=str(model.path), instance=instance, tp_rank=0, num_instances=dop, tp=1,
            dtype="bfloat16", device="cpu", threads=1,
        )  # fmt: skip
        transport = LocalTransport(world, instance)
        worker = Worker(spec, transport)
        worker.execute(AllocateKV(len(prompt)))
        runner = worker.runner
        assert runner is not None
        layout = plan_layout(batch, instance, runner.pool, worker.device)
        attention = ElasticAttention(
            layout, runner.pool, runner.backend, transport, lambda i: i, worker.config.head_dim**-0.5
        )
        positions = torch.from_numpy(positions_of(layout))
        logits = worker.model.forward(
            torch.tensor(prompt)[positions], positions, attention, SingleDevice(), torch.arange(len(positions))
        )
        best[positions] = logits.argmax(dim=-1)

    in_threads(run, range(dop), world.give_up)
    return best


@pytest.mark.parametrize("dop", [1, 2])
def test_same_top_token(model: ResolvedModel, hf_model, prompts: list[list[int]], dop: int) -> None:
    prompt = prompts[-1][:LENGTH]
    with torch.inference_mode():
        theirs = hf_model(torch.tensor([prompt])).logits[0].argmax(dim=-1)
    agreement = (best_tokens(model, prompt, dop) == theirs).float().mean().item()
    print(f"\nDoP {dop}: the same top token as fp32 transformers in {100 * agreement:.2f} % of {LENGTH} positions")
    assert agreement >= 0.98
