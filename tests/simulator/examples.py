"""Small machines, models and workloads."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from longspan.config import SchedulerConfig
from longspan.core.costs.analytic import ModelShape
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet, SimulatedModel
from longspan.simulator.hardware import A800_80G
from longspan.simulator.machine import DataSheet, Efficiency, Machine, Overheads
from longspan.simulator.models import MODELS
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

ENDLESS = 1e30
NOTHING = Overheads(
    iteration_s=0.0, prompts_s=0.0, request_s=0.0, instance_s=0.0, layer_s=0.0, allreduce_s=0.0, exchange_s=0.0,
    round_s=0.0, network_s=0.0, migration_s=0.0, origin="none",
)  # fmt: skip
IDEAL = Machine(
    name="ideal",
    sheet=DataSheet(
        flops=ENDLESS, memory_bytes=None, memory_bandwidth=ENDLESS, devices_per_node=8, link_bandwidth=ENDLESS,
        network_bandwidth=ENDLESS, origin="none",
    ),
    efficiency=Efficiency(matmul=1.0, attention=1.0, memory=1.0, link=1.0, origin="none"),
    overheads=NOTHING,
)  # fmt: skip
TINY = SimulatedModel(
    name="tiny",
    shape=ModelShape(
        num_layers=2, hidden_size=8, intermediate_size=16, num_heads=4, num_kv_heads=2, head_dim=2, vocab_size=32,
        weight_bytes=2.0, kv_bytes=2.0,
    ),
    max_model_len=1_000_000,
)  # fmt: skip


def machine(sheet: dict[str, float] | None = None, overheads: dict[str, float] | None = None) -> Machine:
    """An ideal machine but for these figures."""
    return replace(
        IDEAL, sheet=replace(IDEAL.sheet, **(sheet or {})), overheads=replace(NOTHING, **(overheads or {}))
    )


def cost_of(machine: Machine, instances: int = 1, tp: int = 1) -> IterationCost:
    return IterationCost(Fleet(machine=machine, model=TINY, instances=instances, tp=tp))


def small_world(policy: str, instances: int = 4, kv_tokens: int = 4000) -> tuple[SchedulerConfig, IterationCost]:
    """Real devices, with so few KV slots that requests preempt each other."""
    config = SchedulerConfig(
        num_instances=instances, kv_tokens=kv_tokens, policy=policy, decode_headroom=16, max_requests_per_master=4,
        max_batch_tokens=2048,
    )  # fmt: skip
    return config, IterationCost(Fleet(machine=A800_80G, model=MODELS["lwm-1m"], instances=instances))


def workload(seed: int, number: int = 60, longest: int = 3000, rate: float = 40.0) -> list[TraceRequest]:
    draw = random.Random(seed)
    now, requests = 0.0, []
    for _ in range(number):
        now += draw.expovariate(rate)
        prompt = draw.choice((draw.randint(1, 100), draw.randint(100, longest)))
        requests.append(TraceRequest(now, prompt, draw.choice((1, 2, draw.randint(1, 200)))))
    return requests


TALKS, TURNS, TALK_TOKENS = 8, 4, 10 * BLOCK_TOKENS


def talks_in_turn(path: Path) -> Path:
    """Write a trace in Mooncake's format: so many talks, one after the other, each asked the same in every turn."""
    blocks = TALK_TOKENS // BLOCK_TOKENS
    rows = [
        {"timestamp": 20_000 * (TALKS * turn + talk), "input_length": TALK_TOKENS, "output_length": 5,
         "hash_ids": [blocks * talk + place for place in range(blocks)]}
        for turn in range(TURNS)
        for talk in range(TALKS)
    ]  # fmt: skip
    path.write_text("".join([json.dumps(row) + "\n" for row in rows]))
    return path
