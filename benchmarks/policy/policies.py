"""Policies on the engine with the real model: two traces, open loop, one policy after the other.

The first 120 s of mooncake_conversation with its own arrivals, and loongserve_mixed with Poisson arrivals. Lengths are
multiplied by one factor for each trace, so that its longest request has --mooncake-longest and --mixed-longest tokens;
prompts are random tokens, and outputs have their lengths exactly.

    python -m benchmarks.policy.policies --traces DIR --sib sib.json [--policies loongserve,static_sp] [--seconds 120]
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.engine.open_loop import serve, shape
from longspan.config import EngineConfig
from longspan.core.actions import MigrateKV, RunBatch
from longspan.metrics.event_log import read_event_log
from longspan.metrics.request_metrics import measure
from longspan.workload.arrivals import poisson
from longspan.workload.traces import TraceRequest, read_trace
from longspan.workload.transforms import first_seconds, scaled_to, with_arrivals

POLICIES = "loongserve,static_sp,replicated,loongserve_no_scale_up,loongserve_reactive"
LONG = 1024


def workloads(options: Any) -> dict[str, list[TraceRequest]]:
    folder = Path(options.traces)
    mooncake = first_seconds(read_trace(folder / "mooncake_conversation.csv.gz"), options.seconds)
    mixed = with_arrivals(read_trace(folder / "loongserve_mixed.csv.gz"), poisson(options.mixed_rate, seed=0))
    return {
        "mooncake_conversation": scaled_to(list(mooncake), options.mooncake_longest),
        "loongserve_mixed": scaled_to(list(first_seconds(mixed, options.seconds)), options.mixed_longest),
    }


def decisions(log: Path) -> dict[str, Any]:
    """What the scheduler did: prefill tokens and decode iterations by DoP, migrations."""
    prefill, decode, migrated = Counter[int](), Counter[int](), 0
    for record in read_event_log(log):
        for action in record.actions:
            if isinstance(action, RunBatch):
                tokens = sum(s.length for s in action.segments if s.length > 1)
                prefill[len(action.group)] += tokens
                decode[len(action.group)] += not tokens
            elif isinstance(action, MigrateKV):
                migrated += action.num_tokens
    return {"prefill_tokens_by_dop": dict(prefill), "decode_iterations_by_dop": dict(decode),
            "migrated_tokens": migrated}  # fmt: skip


async def run(policy: str, loads: dict[str, list[TraceRequest]], options: Any) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, requests in loads.items():
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "events.jsonl")
            config = EngineConfig(
                policy=policy, instances=options.instances, threads_per_device=options.threads, dtype="bfloat16",
                kv_tokens=16_384, prefix_cache=False, event_log=log, sib=Path(options.sib) if options.sib else None,
            )  # fmt: skip
            records = await serve(config, requests)
            metrics = asdict(measure(records, long_threshold=LONG))
            results[name] = {"metrics": metrics, **decisions(log)}
        every = metrics["classes"]["all"]
        say(f"{policy:24s} {name}: {every['num_finished']} of {every['num_requests']}, per token "
            f"{1e3 * every['per_token_s']:.2f} ms, input {1e3 * every['input_s']:.2f} ms, output "
            f"{1e3 * (every['output_s'] or 0):.1f} ms, TTFT p50 {every['ttft_s']['p50']:.2f} p90 "
            f"{every['ttft_s']['p90']:.2f} s")  # fmt: skip
    return results


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("sib", "", "SIB file"), ("policies", POLICIES, "with commas"),
         ("seconds", 120.0, "of each trace"), ("mixed-rate", 1.0, "requests/s"), ("instances", 2, "instances"),
         ("threads", 1, "of each instance"), ("mooncake-longest", 3000, "tokens"), ("mixed-longest", 8000, "tokens"),
         ("name", "policies", "result")],
    )  # fmt: skip
    loads = workloads(options)
    results = {policy: asyncio.run(run(policy, loads, options)) for policy in options.policies.split(",")}
    shapes = {name: shape(requests) for name, requests in loads.items()}
    save(options.name, {"workloads": shapes, "long_from": LONG, "policies": results})


if __name__ == "__main__":
    main()
