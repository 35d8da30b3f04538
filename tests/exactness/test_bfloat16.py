"""In bfloat16 the next token's distribution is nearly the same everywhere, under teacher forcing on real text."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import plan_layout, positions_of
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.tensor_parallel import SingleDevice
from longspan.models.catalog import ResolvedModel
from longspan.worker.messages import AllocateKV
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker
from tests.threads import in_threads

pytestmark = pytest.mark.heavy
LENGTH = 400


@pytest.fixture(scope="module")
def prompt(prompts: list[list[int]]) -> list[int]:
    return prompts[-1][:LENGTH]


@pytest.fixture(scope="module")
def theirs_TV(hf_model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return hf_model(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)


@torch.inference_mode()
def logprobs(model: ResolvedModel, prompt: list[int], dop: int) -> torch.Tensor:
    """Of the whole vocabulary after each position, [T, V], by a prefill in bfloat16 on `dop` instances."""
    batch = RunBatch(0, tuple(range(dop)), (Segment("r", 0, len(prompt), tuple(range(dop)),
                                                    (KVRange(dop - 1, 0, len(prompt)),)),))  # fmt: skip
    world = LocalWorld(dop, tp_size=1)
    found_TV: dict[int, torch.Tensor] = {}

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
        found_TV.update(zip(positions.tolist(), logits.float().log_softmax(dim=-1), strict=True))

    in_threads(run, range(dop), world.give_up)
    return torch.stack([found_TV[position] for position in range(len(prompt))])


@pytest.mark.parametrize("dop", [1, 2])
def test_nearly_the_same_distribution(
    model: ResolvedModel, prompt: list[int], theirs_TV: torch.Tensor, dop: int
) -> None:
    ours_TV = logprobs(model, prompt, dop)
    agreement = (ours_TV.argmax(dim=-1) == theirs_TV.argmax(dim=-1)).float().mean().item()
    divergence = kl_div(ours_TV, theirs_TV, log_target=True, reduction="batchmean").item()
    print(f"\nDoP {dop}: the same top token as fp32 transformers in {100 * agreement:.2f} % of {LENGTH} positions; "
          f"Kullback-Leibler divergence {divergence:.2g}")  # fmt: skip
    assert agreement >= 0.98
    assert divergence < 0.02
