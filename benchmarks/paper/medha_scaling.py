"""One very long prompt on many devices, Llama-3-8B on H100, instances or stages of eight: SPP, a ring, and KVP.

SPP: the prompt alone in the simulator, in chunks of a fixed size (`sarathi`) or of at most 50 ms (`medha`; only the
shorter one, for there would be a quarter of a million), on 1 to 16 pipeline stages. Ring: striped over as many
instances, in one batch, as the cost model says (the paper's context parallelism). KVP: one decode iteration behind the
prompt, on 1 to 4 instances that hold equal shares of its KV, each of four stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.paper.simulated import Deployed, System
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.errors import ConfigError
from longspan.simulator.cost import IterationCost
from longspan.simulator.spread import evenly_spread
from longspan.workload.traces import TraceRequest

HARDWARE, MODEL, TP = "h100", "llama-3-8b", 8
LENGTHS = (1_000_000, 10_000_000)
STAGES = (1, 2, 4, 8, 16)
CHUNK = 4096
KVP_LENGTHS, KVP_INSTANCES, KVP_STAGES = (2_000_000, 10_000_000), (1, 2, 4), 4
CHUNKED = {
    f"sarathi {CHUNK}": {"policy": f"sarathi:chunk_size={CHUNK}"},
    "medha": {"policy": "medha"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt of so many tokens, alone on so many stages."""

    tokens: int
    stages: int
    way: str

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, {self.stages} stages of {TP}: {self.way}"


def prompts() -> list[Prompt]:
    ways = [(LENGTHS[1], f"sarathi {CHUNK}"), (LENGTHS[0], f"sarathi {CHUNK}"), (LENGTHS[0], "medha")]
    return [Prompt(tokens=tokens, stages=stages, way=way) for tokens, way in ways for stages in STAGES]


def time_prompt(prompt: Prompt) -> dict[str, Any]:
    """ttft_s: None if the devices' memory does not hold it."""
    deployed = Deployed(System(instances=1, tp=TP, pp=prompt.stages, **CHUNKED[prompt.way]), HARDWARE, MODEL)
    found: dict[str, Any] = {
        "tokens": prompt.tokens, "devices": TP * prompt.stages, "way": prompt.way, "ttft_s": None, "iterations": 0
    }  # fmt: skip
    if prompt.tokens < deployed.config.kv_tokens:
        simulation = deployed.run([TraceRequest(0.0, prompt.tokens, 1)])
        (request,) = simulation.requests
        found |= {"ttft_s": request.record.ttft_s, "iterations": simulation.num_batches}
    return found


def ring() -> list[dict[str, Any]]:
    """The same as one batch, on as many instances as there are stages; those whose memory holds it."""
    found = []
    for tokens in LENGTHS:
        for instances in STAGES:
            cost = IterationCost(System(policy="static_sp", instances=instances, tp=TP).fleet(HARDWARE, MODEL))
            fits = tokens < instances * cost.fleet.kv_tokens_that_fit()
            shape = BatchShape(num_instances=instances, chunks=(Chunk(tokens),))
            seconds = cost.batch(evenly_spread(shape)).total if fits else None
            found.append({"tokens": tokens, "devices": TP * instances, "way": "ring", "ttft_s": seconds})
    return found


def kvp() -> list[dict[str, Any]]:
    """Seconds from one token to the next."""
    found = []
    for tokens in KVP_LENGTHS:
        for instances in KVP_INSTANCES:
            system = System(policy="medha", instances=instances, tp=TP, pp=KVP_STAGES)
            try:
                cost = IterationCost(system.fleet(HARDWARE, MODEL))
            except ConfigError:
                continue
            shape = BatchShape(num_instances=instances, num_requests=1, context_tokens=tokens, num_masters=1)
            seconds = cost.batch(evenly_spread(shape))
            found.append({
                "tokens": tokens, "instances": instances, "devices": cost.fleet.num_devices, "tpot_s": seconds.total
            })  # fmt: skip
    return found
