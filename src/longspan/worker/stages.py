"""How an instance's layers are shared out over its pipeline stages: by what a layer and the head really take here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import plan_layout, positions_of
from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.distributed.stream import Stream
from longspan.distributed.transport import SoleDevice, Transport
from longspan.pipeline import balanced_stages
from longspan.worker.device import resolve_device
from longspan.worker.messages import AllocateKV
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker

_CHUNK = 512  # tokens: stages are for chunks of long prompts, and such a chunk needs the head for one token at most
_ROUNDS = 3


def agree_on_stages(spec: WorkerSpec, transport: Transport) -> WorkerSpec:
    """Return the spec with `pp_layers` set. All workers call it; the first measures, unless the layers are given."""
    if spec.pp == 1 or spec.pp_layers is not None:
        return spec
    if spec.rank == 0:
        return _tell_others(measured_stages(spec), transport)
    sizes_S = torch.empty(spec.pp, dtype=torch.int64, device=resolve_device(spec))
    transport.exchange([], [(sizes_S, 0)]).wait()
    return replace(spec, pp_layers=tuple(sizes_S.tolist()))


def _tell_others(spec: WorkerSpec, transport: Transport) -> WorkerSpec:
    sizes_S = torch.tensor(spec.pp_layers, dtype=torch.int64, device=resolve_device(spec))
    transport.exchange([(sizes_S, rank) for rank in range(1, spec.world_size)], []).wait()
    return spec


@torch.inference_mode()
def measured_stages(spec: WorkerSpec) -> WorkerSpec:
    """Return the spec with layers balanced by times taken on this device, with a model of one layer."""
    worker = Worker(spec, SoleDevice(), only_layers=range(1))
    model, num_layers = worker.model, worker.config.num_layers
    worker.execute(AllocateKV(_CHUNK))
    runner = worker.runner
    assert runner is not None
    segment = Segment("balance", 0, _CHUNK, (spec.instance,), (KVRange(spec.instance, 0, _CHUNK),))
    layout = plan_layout(RunBatch(0, (spec.instance,), (segment,)), spec.instance, runner.pool, worker.device)
    attention = ElasticAttention(
        layout, runner.pool, runner.backend, runner.transport, runner.rank_of, worker.config.head_dim**-0.5
    )
    positions_T = torch.from_numpy(positions_of(layout)).to(worker.device)
    token_ids_T = torch.zeros(_CHUNK, dtype=torch.int64, device=worker.device)
    x_TD = model.embed(token_ids_T, worker.tp)
    stream = worker.stream
    sizes = balanced_stages(
        num_layers,
        spec.pp,
        layer_s=_seconds(stream, lambda: model.run_layers(x_TD.clone(), positions_T, attention, worker.tp)),
        first_s=_seconds(stream, lambda: model.embed(token_ids_T, worker.tp)),
        last_s=_seconds(stream, lambda: model.logits(x_TD[-1:], worker.tp)),
    )
    return replace(spec, pp_layers=sizes)


def _seconds(stream: Stream, run: Callable[[], torch.Tensor]) -> float:
    """The least of a few times, after one that does not count."""
    times = []
    for _ in range(1 + _ROUNDS):
        begin = stream.record()
        run()
        end = stream.record()
        end.wait()
        times.append(end.seconds_since(begin))
    return min(times[1:])
