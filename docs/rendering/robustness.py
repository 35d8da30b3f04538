"""What hostile clients can do to a server: at random, case by case, and over half an hour."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, ms, origin, signed_percent, table

BARS = {
    "no_5xx": "answers of status 5xx: none",
    "no_hangs": "hangs: none",
    "no_other_failure": "every answer can be read by OpenAI's clients",
    "good_client_undisturbed": "good client's p99 gap: at most 3 times the undisturbed one",
    "loop_below_50_ms": "longest callback on the event loop: at most 50 ms of CPU time",
    "memory_flat": "resident memory after all: within 10 % of that after the first tenth",
    "no_traceback": "no traceback in the server's log",
    "ends_well": "a good answer at the end, nothing left, exit code 0, the event log replays",
}


def met(verdict: bool) -> str:
    return "met" if verdict else "**missed**"


def fuzz(record: Record) -> str:
    r = record["results"]
    attacks, good, loop = r["attacks"], r["good_client"], r["event_loop"]
    statuses = ", ".join(f"{n} of {status}" for status, n in attacks["statuses"].items())
    endings = ", ".join(f"{n} {ending}" for ending, n in sorted(attacks["endings"].items()))
    longest = "none above 10" if loop["longest_ms"] is None else f"{loop['longest_ms']:.0f}"
    return "\n".join([
        "## Hostile requests\n",
        origin(record, ""),
        f"{r['count']} requests from a grammar (every field, bodies, headers, targets, connections) in "
        f"{r['seconds'] / 60:.1f} minutes, at most {r['at_once']} at a time, against `{' '.join(r['server'])}`, while "
        f"a good client streams. Answers: {statuses}. Connections: {endings}.\n",
        table(
            ["", "undisturbed", "under attack"],
            [
                ["gap between tokens, median, ms", *(ms(good["gap_s"][side]["median"]) for side in ("quiet",
                                                                                                    "hostile"))],
                ["gap between tokens, p99, ms", *(ms(good["gap_s"][side]["p99"]) for side in ("quiet", "hostile"))],
                ["/health, p99, ms", *(ms(good["health_s"][side]["p99"]) for side in ("quiet", "hostile"))],
            ],
            text=1,
        ),
        f"Ratio of the p99 gaps, median of the rounds: {good['p99_ratio']:.2f}. Longest callback, ms: {longest}, of "
        f"{loop['callbacks']}. Resident memory: {signed_percent(r['memory']['growth'])}.\n",
        table(["bar", ""], [[BARS[name], met(verdict)] for name, verdict in r["verdicts"].items()], text=2),
    ])  # fmt: skip


def costly(record: Record) -> str:
    r = record["results"]

    def row(case: str, side: str, v: dict[str, Any]) -> list[str]:
        memory, callback = v["memory_mib"], v["longest_callback_ms"]
        token = v["innocent_token_s"]
        return [
            case.replace("_", " "), side, "/".join(v["statuses"] or v["endings"]), f"{v['seconds']:.1f}",
            f"{memory['peak'] - memory['before']:+.0f}", f"{memory['after'] - memory['before']:+.0f}",
            "< 10" if callback is None else f"{callback:.0f}", f"{v['health_longest_s']:.2f}",
            "never" if token is None else f"{token:.2f}", "yes" if v["still_answers"] else "**no**",
        ]  # fmt: skip

    return "\n".join([
        "## What single clients could make the server spend\n",
        origin(record, ""),
        f"Each case against a fresh `{' '.join(r['server'])}`, before and now, cut off after {r['cut_off_s']:.0f} s. "
        "The longest callback on the event loop is processor time of its thread; /health and one token of an innocent "
        "prompt are what others waited for meanwhile.\n",
        table(
            ["case", "", "answer", "s", "peak, MiB", "for good, MiB", "callback, ms", "/health, s", "token, s",
             "lives on"],
            [row(case, side, v) for case, sides in r["cases"].items() for side, v in sides.items()],
            text=3,
        ),
    ])  # fmt: skip


def soak(record: Record) -> str:
    r = record["results"]
    rows = [
        [
            name, f"{v['minutes']:.1f}", v["requests"], f"{v['fixed_prompts_asked'] - len(v['inexact'])} of "
            f"{v['fixed_prompts_asked']}", f"{v['preemptions'] or 0:.0f}", v["event_log_pieces"],
            signed_percent(v["memory_growth"]), f"{v['longest_callback_ms']:.0f}",
            met(all(v["verdicts"].values())) + ("" if all(v["verdicts"].values()) else ": " + ", ".join(
                bar for bar, well in v["verdicts"].items() if not well)),
        ]
        for name, v in r["stages"].items()
    ]  # fmt: skip
    return "\n".join([
        "## A soak\n",
        origin(record, ""),
        f"{r['model']} in fp32, {r['at_once']} requests at a time: ordinary ones, clients that leave, hostile "
        "requests, and fixed prompts, the tokens of which must be transformers'. The bars: every request ends, nothing "
        "is stuck, memory, threads and files stay, fixed prompts are exact, the event log replays (or is switched off "
        "and counted, where its disk becomes full), no traceback, exit code 0.\n",
        table(
            ["server", "minutes", "requests", "exact", "preemptions", "pieces of log", "memory", "callback, ms",
             "bars"],
            rows, text=1,
        ),
    ])  # fmt: skip
