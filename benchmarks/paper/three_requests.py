"""Three requests on one instance: which deadlines does each priority rule meet?

The example is the Medha paper's own: a long request with 10 s of work, due after 16 s, and two short ones with 0.5 s of
work each that arrive after 5 s and are due 1 s later. It is played to the real scheduler, on a virtual clock, with
durations from a synthetic cost model:

- "linear": a token takes 1 ms wherever it stands.
- "attention": the same amounts of work, but most of the long request's is attention, so that it shares its iterations
  where a policy does that (`medha`).

And a "stream": the long request, and a short one each second, due after 2 s: 1.1 times what the instance can do until
the long one is due, so that somebody must be late. What differs is who, and by how much.

An iteration may take 5 ms, and the short ones arrive in the middle of one; so a deadline counts as met within 5 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.common import save, say
from longspan.config import SchedulerConfig
from longspan.core.costs.cost_model import Chunk, DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.core.costs.load import batch_seconds
from longspan.core.events import RequestArrived
from longspan.core.scheduler import Scheduler
from longspan.service_level import ServiceLevel
from longspan.simulator.playback import Played, play

POLICIES = ("medha", "least_slack", "edf", "srpt", "fcfs", "sarathi")
LONG, SHORTS = "long", ("short 1", "short 2")
LONG_WORK_S, LONG_DUE_S, SHORT_WORK_S, SHORT_DUE_S, SHORTS_ARRIVE_S = 10.0, 16.0, 0.5, 1.0, 5.0
QUANTUM_S = 0.005
STREAM, STREAM_DUE_S = 30, 2.0


def cost_model(per_token: float, per_pair: float) -> FittedCostModel:
    return FittedCostModel(
        prefill_coefficients=(
            PrefillCoefficients(num_instances=1, fixed=0.0, per_token=per_token, per_pair=per_pair),
        ),
        decode_coefficients=(
            DecodeCoefficients(
                num_instances=1, num_masters=1, fixed=0.0, per_request=per_token, per_context_token=2 * per_pair
            ),
        ),
        migration_fixed=0.0,
        migration_per_token=0.0,
    )


LINEAR = cost_model(1e-3, 0.0)
ATTENTION = cost_model(2e-5, 6e-10)


def tokens(model: FittedCostModel, work_s: float) -> int:
    """The longest prompt with no more than so much work."""
    low, high = 0, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if model.prefill((Chunk(middle),), 1) <= work_s + 1e-9 else (low, middle)
    return low


def run(policy: str, model: FittedCostModel) -> dict[str, Any]:
    played = _play(policy, model, [(SHORTS_ARRIVE_S, name) for name in SHORTS], SHORT_DUE_S)
    due = {LONG: LONG_DUE_S} | dict.fromkeys(SHORTS, SHORT_DUE_S)
    first = {name: round(request.token_times[0], 4) for name, request in played.items()}
    met = [name for name, request in played.items() if request.ttft_s <= due[name] + QUANTUM_S + 1e-6]
    return {"first_token_at_s": first, "deadlines_met": met}


def run_stream(policy: str) -> dict[str, Any]:
    played = _play(policy, LINEAR, [(0.3 + number, f"short {number}") for number in range(STREAM)], STREAM_DUE_S)
    shorts = [request.ttft_s for name, request in played.items() if name != LONG]
    return {
        "long_ttft_s": round(played[LONG].ttft_s, 3),
        "short_deadlines_met": sum(ttft <= STREAM_DUE_S + QUANTUM_S for ttft in shorts),
        "short_ttft_s": {"median": round(median(shorts), 3), "max": round(max(shorts), 3)},
    }


def _play(
    policy: str, model: FittedCostModel, shorts: Sequence[tuple[float, str]], due_s: float
) -> dict[str, Played]:
    config = SchedulerConfig(num_instances=1, kv_tokens=200_000, policy=policy, tpot_slo_s=QUANTUM_S)
    arrivals = [(0.0, RequestArrived(LONG, tokens(model, LONG_WORK_S), 1, ServiceLevel(ttft_s=LONG_DUE_S)))]
    for at, name in shorts:
        arrivals.append((at, RequestArrived(name, tokens(model, SHORT_WORK_S), 1, ServiceLevel(ttft_s=due_s))))
    return play(Scheduler(config, cost_model=model), arrivals, lambda batch: batch_seconds(batch, model))


def table() -> dict[str, dict[str, Any]]:
    models = {"linear": LINEAR, "attention": ATTENTION}
    return {name: {policy: run(policy, model) for policy in POLICIES} for name, model in models.items()}


def main() -> None:
    results = table()
    for name, rows in results.items():
        say(f"\n{name:<12}" + "".join(f"{who:>10}" for who in (LONG, *SHORTS)) + "   deadlines met (due: 16, 6, 6)")
        for policy, row in rows.items():
            times = "".join(f"{row['first_token_at_s'][who]:>10.3f}" for who in (LONG, *SHORTS))
            say(f"{policy:<12}{times}   {', '.join(row['deadlines_met'])}")
    stream = {policy: run_stream(policy) for policy in POLICIES}
    say(f"\n{'stream':<12}{LONG:>10}   short: deadlines met of {STREAM}, median, worst (due: 16; 2 each)")
    for policy, row in stream.items():
        short = row["short_ttft_s"]
        say(
            f"{policy:<12}{row['long_ttft_s']:>10.3f}   "
            f"{row['short_deadlines_met']:>3}{short['median']:>10.3f}{short['max']:>10.3f}"
        )
    save("three_requests", results | {"stream": stream})


if __name__ == "__main__":
    main()
