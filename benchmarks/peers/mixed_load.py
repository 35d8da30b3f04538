"""Short requests beside long ones, over HTTP: Longspan and vLLM's CPU build in turns on the same cores.

Shorts (128 to 384 prompt tokens, 32 output tokens) come as a Poisson stream of 0.5 a second, and a prompt of 7,500
tokens every 30 seconds, or both at another rate: `longspan bench serve --workload mixed`, which sends each request when
it is due. All servers run throughout; in every round each has its turn, with the same requests, while the others are
idle (how much of a core they take nevertheless is noted). A turn that is not through in time is cut off, and what has
not finished is counted. One turn before the first round does not count.

Of ours: the policy `medha`; the same tuned for shorts, on one instance of two pipeline stages; `longspan serve` without
any flag; the policy `loongserve`. Of vLLM: without any flag, and tuned for shorts. Weights are bf16, save that ours
without flags keeps the GGUF's own 4 bits.

    benchmarks/peers/setup_vllm_cpu.sh VLLM
    python -m benchmarks.peers.export_safetensors MODEL_DIR
    python -m benchmarks.peers.mixed_load --vllm VLLM/bin/python --model-dir MODEL_DIR [--rounds 3] [--seconds 120]
"""

from __future__ import annotations

import json
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.common import arguments, save, say
from benchmarks.http_server import HttpServer, serving
from longspan.entrypoints.bench.open_loop import SentRequest
from longspan.metrics.request_metrics import RequestRecord, measure

PEERS = Path(__file__).parent
BF16 = ["--dtype", "bfloat16", "--quantization", "none", "--kv-tokens", "16384"]
OURS: dict[str, list[str]] = {
    "medha": ["--policy", "medha", *BF16],
    "medha_tuned": ["--policy", "medha", "--instances", "1", "--pp", "2", "--tpot-slo-s", "0.2",
                    "--ttft-slo-floor-s", "0.1", *BF16],
    "defaults": [],
    "loongserve": ["--policy", "loongserve", *BF16],
}  # fmt: skip
THEIRS: dict[str, list[str]] = {
    "vllm": [],
    "vllm_tuned": ["--max-num-batched-tokens", "512", "--long-prefill-token-threshold", "256"],
}
# 2 GiB of KV are 90,000 tokens; two servers and ours have to fit. The engine has its own process, as by default.
VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
LONG_FROM = 4096
RATE = 0.5  # of shorts, a second
FIRST_LONG_AFTER = 7.5  # of them
WARM_UP_S, WARM_UP_SEED = 20.0, 10_000
GRACE_S = 60.0


def flags_of(options: Any) -> dict[str, list[str]]:
    """Of each side that takes part; files are left out."""
    chosen = {name: [*(OURS | THEIRS)[name]] for name in options.sides.split(",") if name in OURS or options.vllm}
    if "medha" in chosen:
        chosen["medha"] += shlex.split(options.medha_flags)
    return chosen


def command_of(name: str, flags: list[str], options: Any) -> list[str]:
    if name in THEIRS:
        return [options.vllm, str(PEERS / "vllm_server.py"), options.model_dir, *flags]
    sib = ["--sib", options.sib] if options.sib and "--policy" in flags else []
    return [sys.executable, "-m", "longspan", "serve", options.model, *flags, *sib]


@contextmanager
def all_serving(sides: dict[str, list[str]], options: Any) -> Iterator[dict[str, HttpServer]]:
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for number, (name, flags) in enumerate(sides.items()):
            say(f"starting {name}")
            environment = VLLM_ENVIRONMENT if name in THEIRS else None
            command = command_of(name, flags, options)
            servers[name] = stack.enter_context(serving(command, logs / f"{number}.log", environment))
        yield servers


def turn(server: HttpServer, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """What `bench serve` wrote about one turn."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "turn.json")
        client = subprocess.Popen(
            [sys.executable, "-m", "longspan", "bench", "serve", "--url", server.url, "--workload", "mixed",
             "--rate", str(rate), "--duration", str(seconds), "--seed", str(seed), "--long-threshold", str(LONG_FROM),
             "--json", str(written)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            _, errors = client.communicate(timeout=seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            client.send_signal(signal.SIGINT)
            _, errors = client.communicate()
        if not written.exists():
            raise RuntimeError(f"the client failed:\n{errors.decode()[-4000:]}")
        report: dict[str, Any] = json.loads(written.read_text())
    return report


def one_round(
    servers: dict[str, HttpServer], rate: float, seconds: float, seed: int, first: int
) -> dict[str, dict[str, Any]]:
    """Each side's turn, beginning with another one each time."""
    names = list(servers)
    reports = {}
    for name in names[first % len(names) :] + names[: first % len(names)]:
        others = [server for other, server in servers.items() if other != name]
        before = sum(server.cpu_seconds() for server in others)
        reports[name] = turn(servers[name], rate, seconds, seed)
        idle_cpu = sum(server.cpu_seconds() for server in others) - before
        reports[name]["others_cpu_share"] = idle_cpu / reports[name]["from_schedule"]["span_s"]
    return reports


def records(reports: Sequence[dict[str, Any]]) -> list[RequestRecord]:
    return [msgspec.convert(row, SentRequest).record() for report in reports for row in report["requests"]]


def sum_up(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Latencies of all rounds' requests together; tokens a second round by round."""
    classes = measure(records(reports), long_threshold=LONG_FROM).classes
    rates = [r["from_schedule"]["prompt_tokens_per_s"] + r["from_schedule"]["output_tokens_per_s"] for r in reports]
    return {
        "short": asdict(classes["short"]),
        "long": asdict(classes["long"]),
        "tokens_per_s": {"median": statistics.median(rates), "all": rates},
        "others_cpu_share": max(report["others_cpu_share"] for report in reports),
        "client_lateness_p99_s": max(report["client"]["lateness_s"]["p99"] for report in reports),
        "failures": [failure for report in reports for failure in report["failures"]],
    }


def figures(side: dict[str, Any]) -> dict[str, float | None]:
    """What is compared. None: nothing of the kind has finished."""
    short, long = side["short"], side["long"]
    return {
        "short TTFT p50": short["ttft_s"] and short["ttft_s"]["p50"],
        "short TTFT p99": short["ttft_s"] and short["ttft_s"]["p99"],
        "short TPOT p50": short["tpot_s"] and short["tpot_s"]["p50"],
        "short TPOT p99": short["tpot_s"] and short["tpot_s"]["p99"],
        "long TTFT p50": long["ttft_s"] and long["ttft_s"]["p50"],
        "tokens/s": side["tokens_per_s"]["median"],
    }


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """vLLM's figure over ours, for each of both; tokens/s: ours over vLLM's. So above 1 is always in our favour."""

    def better(name: str, theirs: float | None, ours: float | None) -> float | None:
        if not theirs or not ours:
            return None
        return ours / theirs if name == "tokens/s" else theirs / ours

    compared = {name: figures(side) for name, side in sides.items()}
    return {
        peer: {
            side: {name: better(name, compared[peer][name], figure) for name, figure in compared[side].items()}
            for side in OURS
            if side in sides
        }
        for peer in THEIRS
        if peer in sides
    }


def say_sides(sides: dict[str, dict[str, Any]]) -> None:
    for name, side in sides.items():
        said = ", ".join(f"{what} {figure:.3f}" for what, figure in figures(side).items() if figure is not None)
        missing = sum(side[kind]["num_requests"] - side[kind]["num_finished"] for kind in ("short", "long"))
        say(f"{name}: {said}; {missing} not finished; the others took {100 * side['others_cpu_share']:.1f} % of a core")


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("vllm", "", "Python of vLLM"), ("model-dir", "", "bf16 safetensors, for vLLM"),
         ("model", "smollm2-135m", "ours"), ("sides", ",".join((*OURS, *THEIRS)), "with commas"),
         ("rate", RATE, "of shorts, a second"), ("rounds", 3, "rounds"), ("seconds", 120.0, "of each turn"),
         ("warm-up", WARM_UP_S, "seconds"),
         ("sib", "", "SIB file, for our policies that predict"), ("medha-flags", "", "of `longspan serve`"),
         ("name", "mixed_load", "name of the result")],
    )  # fmt: skip
    first_long_s = FIRST_LONG_AFTER / options.rate
    if options.seconds <= first_long_s:
        raise SystemExit(f"a turn has to take more than {first_long_s:.0f} s: that is when the first long prompt comes")
    flags = flags_of(options)
    with all_serving(flags, options) as servers:
        one_round(servers, RATE, options.warm_up, WARM_UP_SEED, 0)
        rounds = []
        for number in range(options.rounds):
            rounds.append(one_round(servers, options.rate, options.seconds, number, number))
            say(f"round {number + 1} of {options.rounds}")
            say_sides({name: sum_up([report]) for name, report in rounds[-1].items()})
    sides = {name: sum_up([reports[name] for reports in rounds]) for name in servers}
    say("all rounds")
    say_sides(sides)
    save(options.name, {
        "rate": options.rate, "seconds": options.seconds, "rounds": options.rounds, "model": Path(options.model).name,
        "sib": bool(options.sib), "vllm_environment": VLLM_ENVIRONMENT,
        "sides": {name: {"flags": shlex.join(flags[name]), **side} for name, side in sides.items()},
        "times_as_good_as": ratios(sides),
    })  # fmt: skip


if __name__ == "__main__":
    main()
