"""What lost workers cost: a server whose workers are killed, and a large fleet in simulation."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, load, origin, table

_OTHERS = ("killed_workers_medha", "killed_workers_elastic_fcfs", "killed_workers_real")


def killed_workers(record: Record) -> str:
    others = [found for name in _OTHERS if (found := load(name)) is not None]
    commands = ", ".join([f"`{found['command']}`" for found in others])
    return "\n".join([
        "## Lost workers\n",
        origin(record, f"The others: {commands}." if others else ""),
        "Random workers of a server are killed (`kill -9`) or stopped while streams are open, in fp32; each asks "
        "for one answer after the other, and every answer must be the one that the server gave before. Computed again "
        "at most: what the lost instances held, and what void batches were to compute. " + _bars([record, *others]),
        table(
            ["model, policy", "instances", "streams", "killed", "stopped", "answers", "lost", "with other tokens",
             "lost beside those hit", "tokens computed again", "at most", "till all move, killed, s (longest)",
             "stopped, s (longest)", "till it is back, s"],
            [_row(found["results"]) for found in (record, *others)], text=1,
        ),
        *_calm(), *_rolling(),
    ])  # fmt: skip


def _bars(records: list[Record]) -> str:
    """What else must hold, and where it does not."""
    told = "/health is 200 all the while, the event logs replay, and no process is left"
    results = [found["results"] for found in records]
    hit = sum(sum(r["blows"].values()) for r in results)
    missed = [f"{r['options']['policy']}: {', '.join(r['bars_missed'])}" for r in results if r["bars_missed"]]
    return f"{hit} in all; {told}" + (f", but for {'; '.join(missed)}.\n" if missed else ".\n")


def losses(record: Record) -> str:
    r = record["results"]
    return "\n".join([
        "## A large fleet that loses instances\n",
        origin(record, "In simulation."),
        f"{r['instances']} instances (LWM-7B, one A800 each), policy `longspan`, {r['hours']:g} h of arrivals at "
        f"a load of {r['load']:g}. An instance is lost every {r['every_s'] / 60:g} minutes, and is back after five. "
        "*In time*: the first token comes within 25 times what the prompt takes alone, or a second, and tokens come at "
        "the policy's pace, or a fifth slower. *Hit* are requests of which something was computed again.\n",
        table(
            ["", "requests", "refused", "goodput, requests/s", "in time, %", "TTFT p50, s", "p99, s", "hit",
             "of these in time", "longest pause, s", "tokens computed again"],
            [_simulated(name, found) for name, found in r["runs"].items()], text=1,
        ),
    ])  # fmt: skip


def _calm() -> list[str]:
    if (record := load("killed_workers_calm")) is None:
        return []
    r, options = record["results"], record["results"]["options"]
    return [
        f"Nobody is hit, and {options['load']} other processes compute all the while (`{record['command']}`): in "
        f"{options['calm_s']:.0f} s and {r['answers']} answers {r['instances_lost']:.0f} instances are taken for lost, "
        f"and {len(r['requests_lost'])} requests are.\n"
    ]  # fmt: skip


def _rolling() -> list[str]:
    if (record := load("killed_workers_rolling")) is None:
        return []
    r, options, rolled = record["results"], record["results"]["options"], record["results"]["rolling_restart"]
    sides = (("before", rolled["ttft_before_s"]), ("meanwhile", rolled["ttft_during_s"]))
    return [
        f"`longspan fleet restart` of {options['instances']} instances one by one, with {options['streams']} streams "
        f"open, takes {rolled['seconds']:.0f} s (`{record['command']}`); {len(r['requests_lost'])} of {r['answers']} "
        "requests are lost. Seconds to the first token:\n",
        table(
            ["", "requests", "median", "95 %", "longest"],
            [[name, spread["requests"], *[f"{spread[key]:.2f}" for key in ("p50", "p95", "max")]]
             for name, spread in sides], text=1,
        ),
    ]  # fmt: skip


def _row(r: dict[str, Any]) -> list[object]:
    options, moved = r["options"], r["seconds_till_all_streams_move"]
    waits = [moved.get(kind) for kind in ("kill", "stop")]
    return [
        f"{options['model']}, `{options['policy']}`", options["instances"], options["streams"], r["blows"]["kill"],
        r["blows"]["stop"], r["answers"], len(r["requests_lost"]), r["answers_that_differ"],
        f"{r['instances_lost'] - sum(r['blows'].values()):.0f}", f"{r['recomputed_tokens']:.0f}",
        f"{r['recomputed_at_most']:.0f}", *["-" if w is None else f"{w['median']:.1f} ({w['max']:.1f})" for w in waits],
        f"{r['seconds_till_back']['median']:.1f}",
    ]  # fmt: skip


def _simulated(name: str, r: dict[str, Any]) -> list[object]:
    return [
        name, r["requests"], r["refused"], f"{r['goodput']:.3f}", f"{100 * r['slo_attainment']:.1f}",
        f"{r['ttft_p50_s']:.2f}", f"{r['ttft_p99_s']:.1f}", r["hit"], r["hit_in_time"],
        "-" if r["longest_pause_s"] is None else f"{r['longest_pause_s']:.1f}", f"{r['recomputed_tokens']:,}",
    ]  # fmt: skip
