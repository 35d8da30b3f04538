"""Nothing to tune: `longspan serve` without a flag beside vLLM's CPU build, as it comes and tuned for shorts.

Three loads, in turns, on servers that all run throughout (how much of a core the idle ones take is noted):

- mixed: shorts (128 to 384 prompt tokens, 32 output tokens) as a Poisson stream of 0.5 a second, and a prompt of 4,000
  tokens every 25 s. Requests leave when they are due.
- closed: 16 requests in flight (128 prompt, 64 output tokens), the next when one has ended.
- lone: one prompt of 7,500 tokens on an idle server, also on ours in every shape that the cores can be cut up into.

One turn of each before the first round does not count. Weights are bf16 for vLLM; ours keeps the GGUF's own 4 bits, as
it does without flags. Percentiles are over the requests of all rounds.

    benchmarks/peers/setup_vllm_cpu.sh VLLM
    python -m benchmarks.peers.export_safetensors MODEL_DIR
    python -m benchmarks.peers.untuned --vllm VLLM/bin/python --model-dir MODEL_DIR [--rounds 6] [--seconds 75]
"""

from __future__ import annotations

import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.http_server import HttpServer, serving
from benchmarks.peers.mixed_load import PEERS, THEIRS, VLLM_ENVIRONMENT, records
from longspan.tuning.shapes import Shape, possible_shapes

OURS = "ours"
SHORTS, SHORT_OUTPUT, RATE = (128, 384), 32, 0.5
LONG, LONG_EVERY_S, FIRST_LONG_S = 4000, 25.0, 5.0
IN_FLIGHT, CLOSED, CLOSED_PROMPT, CLOSED_OUTPUT = 16, 64, 128, 64
LONE = 7500
WARM_UP_S = 20.0
GRACE_S = 120.0
LAYERS = 30  # of the default model


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("vllm", "", "Python of vLLM"), ("model-dir", "", "bf16 safetensors, for vLLM"),
         ("rounds", 6, "rounds"), ("seconds", 75.0, "of each turn of the mixed load"), ("flags", "", "of ours"),
         ("name", "untuned", "name of the result")],
    )  # fmt: skip
    with all_serving(options) as (servers, shapes, log):
        chosen = told(log.read_text())
        say("\n".join(chosen))
        mixed_turns(servers, WARM_UP_S, -1)
        other_turns(servers, shapes)
        rounds = []
        for number in range(options.rounds):
            rounds.append(mixed_turns(servers, options.seconds, number) | other_turns(servers, shapes))
            say(f"round {number + 1} of {options.rounds}")
            say_all(summed_up(rounds[-1:]))
        results = summed_up(rounds)
    say("all rounds")
    say_all(results)
    save(options.name, {
        "rounds": options.rounds, "seconds": options.seconds, "flags": options.flags, "log": chosen,
        "vllm_environment": VLLM_ENVIRONMENT, "vllm_tuned": shlex.join(THEIRS["vllm_tuned"]), **results,
    })  # fmt: skip


def told(log: str) -> list[str]:
    """What our server says of its choices."""
    signs = ("for latency", "for balanced", "for throughput", "that name none", "ready in")
    return [line.strip() for line in log.splitlines() if any(sign in line for sign in signs)]


@contextmanager
def all_serving(options: Any) -> Iterator[tuple[dict[str, HttpServer], dict[str, HttpServer], Path]]:
    """Servers that take part in everything; ours in each shape; the log of ours without flags."""
    ours = [sys.executable, "-m", "longspan", "serve"]
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> HttpServer:
            say(f"starting {name}")
            return stack.enter_context(serving(command, logs / name, environment))

        servers = {OURS: start(OURS, [*ours, *shlex.split(options.flags)])}
        if options.vllm:
            for name, flags in THEIRS.items():
                command = [options.vllm, str(PEERS / "vllm_server.py"), options.model_dir, *flags]
                servers[name] = start(name, command, VLLM_ENVIRONMENT)
        shapes = {}
        for shape in possible_shapes(len(os.sched_getaffinity(0)), LAYERS, 1 << 10):
            flags = ["--instances", str(shape.instances), "--pp", str(shape.pp), "--threads-per-device",
                     str(shape.threads)]  # fmt: skip
            shapes[str(shape)] = start(_file(shape), [*ours, *flags])
        yield servers, shapes, logs / OURS


def _file(shape: Shape) -> str:
    return f"{shape.instances}x{shape.pp}x{shape.threads}"


def turn(server: HttpServer, *flags: str, grace_s: float = GRACE_S) -> dict[str, Any]:
    """What `bench serve` wrote."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "turn.json")
        subprocess.run(
            [sys.executable, "-m", "longspan", "bench", "serve", "--url", server.url, *flags, "--json", str(written)],
            stdout=subprocess.DEVNULL, check=True, timeout=600 + grace_s,
        )  # fmt: skip
        report: dict[str, Any] = json.loads(written.read_text())
    return report


def mixed_turns(servers: dict[str, HttpServer], seconds: float, seed: int) -> dict[str, Any]:
    """Each side's turn with the same requests, beginning with another side each time."""
    reports, names = {}, list(servers)
    first = max(0, seed) % len(names)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.csv")
        trace.write_text(mixed_trace(seconds, seed))
        for name in names[first:] + names[:first]:
            others = [server for other, server in servers.items() if other != name]
            before = sum(server.cpu_seconds() for server in others)
            reports[name] = turn(servers[name], "--trace", str(trace))
            reports[name]["others_cpu_s"] = sum(server.cpu_seconds() for server in others) - before
    return {"mixed": reports}


def mixed_trace(seconds: float, seed: int) -> str:
    draw = random.Random(seed)
    rows, at = [], 0.0
    while (at := at + draw.expovariate(RATE)) < seconds:
        rows.append((at, draw.randint(*SHORTS)))
    at = FIRST_LONG_S
    while at < seconds:
        rows.append((at, LONG))
        at += LONG_EVERY_S
    lines = [f"{at:.4f},{tokens},{SHORT_OUTPUT}" for at, tokens in sorted(rows)]
    return "\n".join(["arrived_at_s,num_prefill_tokens,num_decode_tokens", *lines, ""])


def other_turns(servers: dict[str, HttpServer], shapes: dict[str, HttpServer]) -> dict[str, Any]:
    closed = {}
    for name, server in servers.items():
        report = turn(
            server, "--num-requests", str(CLOSED), "--rate", "1000", "--max-concurrency", str(IN_FLIGHT), "--input-len",
            str(CLOSED_PROMPT), "--output-len", str(CLOSED_OUTPUT),
        )  # fmt: skip
        done = records([report])
        closed[name] = CLOSED * CLOSED_OUTPUT / (max(r.ended_s for r in done) - min(r.arrived_s for r in done))
    lone = {}
    for name, server in {**servers, **shapes}.items():
        (alone,) = records([turn(server, "--num-requests", "1", "--input-len", str(LONE), "--output-len", "2")])
        assert alone.ttft_s is not None, f"{name} did not answer a lone prompt of {LONE} tokens"
        lone[name] = alone.ttft_s
    return {"closed": closed, "lone": lone}


def summed_up(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = list(rounds[0]["mixed"])
    mixed = {name: mixed_figures([each["mixed"][name] for each in rounds]) for name in names}
    results: dict[str, Any] = {"mixed": mixed}
    for part, unit in (("closed", "tokens_per_s"), ("lone", "ttft_s")):
        results[part] = {
            name: {f"{unit}_median": statistics.median(each[part][name] for each in rounds),
                   unit: [each[part][name] for each in rounds]}
            for name in rounds[0][part]
        }  # fmt: skip
    if "vllm" in names:
        results["compared"] = compared(results)
    return results


def mixed_figures(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = records(reports)
    shorts = [record for record in found if record.num_prompt_tokens < LONG]
    longs = [record for record in found if record.num_prompt_tokens >= LONG]
    return {
        "num_shorts": len(shorts), "num_longs": len(longs),
        "num_not_finished": sum(record.outcome != "finished" for record in found),
        "short_ttft_s": percentiles([record.ttft_s for record in shorts]),
        "short_tpot_s": percentiles([record.tpot_s for record in shorts]),
        "long_ttft_s": percentiles([record.ttft_s for record in longs]),
        "others_cpu_s": sum(report["others_cpu_s"] for report in reports),
    }  # fmt: skip


def percentiles(values: Sequence[float | None]) -> dict[str, float]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return {}
    cuts = statistics.quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
    return {f"p{at}": cuts[at - 1] for at in (50, 90, 95, 99)} | {"max": known[-1]}


def compared(results: dict[str, Any]) -> dict[str, float]:
    """Ours over theirs, and over our own best."""
    mixed, closed, lone = results["mixed"], results["closed"], results["lone"]
    ours = mixed[OURS]
    shapes = [figure["ttft_s_median"] for name, figure in lone.items() if name not in (OURS, *THEIRS)]
    better_long_s = min(mixed[name]["long_ttft_s"]["p50"] for name in THEIRS)
    return {
        "short TTFT p95 over the tuned vLLM's": (
            ours["short_ttft_s"]["p95"] / mixed["vllm_tuned"]["short_ttft_s"]["p95"]
        ),
        "short TPOT p90 over the default vLLM's": ours["short_tpot_s"]["p90"] / mixed["vllm"]["short_tpot_s"]["p90"],
        "long TTFT p50 over the better vLLM's": ours["long_ttft_s"]["p50"] / better_long_s,
        "closed loop tokens/s over the better vLLM's": (
            closed[OURS]["tokens_per_s_median"] / max(closed[name]["tokens_per_s_median"] for name in THEIRS)
        ),
        "lone TTFT over our best shape's": lone[OURS]["ttft_s_median"] / min(shapes),
    }


def say_all(results: dict[str, Any]) -> None:
    for name, side in results["mixed"].items():
        figures = {key: side[key] for key in ("short_ttft_s", "short_tpot_s", "long_ttft_s")}
        told = "; ".join(
            f"{key} " + " ".join(f"{at} {value:.3f}" for at, value in of.items()) for key, of in figures.items()
        )
        say(f"{name}: {told}; {side['num_not_finished']} of {side['num_shorts'] + side['num_longs']} not finished")
    for part in ("closed", "lone"):
        figures = {name: next(iter(side.values())) for name, side in results[part].items()}
        say(f"{part}: " + ", ".join(f"{name} {figure:.2f}" for name, figure in figures.items()))
    for what, ratio in results.get("compared", {}).items():
        say(f"{what}: {ratio:.2f}")


if __name__ == "__main__":
    main()
