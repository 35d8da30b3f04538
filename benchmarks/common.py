"""What every benchmark needs: what ran where, medians of interleaved runs, and a JSON file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from longspan import LLM, SamplingParams, __version__

RESULTS = Path(__file__).resolve().parent / "results"
VOCAB = 49_000


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    cpu = {name.strip(): value.strip() for name, value in facts.items()}
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "isa": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {"longspan": __version__} | {name: version(name) for name in ("torch", "numpy")},
    }


def command_line() -> str:
    """How this program was called from the repository's root, without the machine's paths."""
    script, root = Path(sys.argv[0]).resolve(), RESULTS.parents[1]
    module = sys.modules["__main__"].__spec__
    if module is not None:
        name = f"-m {module.name}"
    else:
        name = str(script.relative_to(root)) if script.is_relative_to(root) else script.name
    words = [f".../{Path(word).name}" if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join(["python", name, *words])


def save(name: str, results: dict[str, Any]) -> None:
    """benchmarks/results/NAME.json, with machine and command."""
    RESULTS.mkdir(exist_ok=True)
    record = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "command": command_line(),
        "machine": machine(),
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path.name}")


def interleaved(sides: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Each side's figure in each round; the sides take turns, each round beginning with another one.

    A side is called with the number of the round; one call before the first is not counted.
    """
    names = list(sides)
    for side in sides.values():
        side(-1)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            figures[name].append(sides[name](number))
    return figures


def summary(seconds: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "all": seconds}


def paired_ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios round by round: drifting machines cancel out."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def timed(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one of the calls."""
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


def random_prompt(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCAB) for _ in range(length)]


def fixed_output(tokens: int) -> SamplingParams:
    """Greedy, and exactly so many tokens."""
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def time_prefill(llm: LLM, tokens: int, seed: int) -> float:
    """Seconds until the first token of one prompt, on the engine's own clock."""
    (completion,) = llm.generate([random_prompt(tokens, seed)], fixed_output(1))
    times = completion.times
    assert times.first_token is not None
    return times.first_token - times.arrived


def time_decode(llm: LLM, batch: int, context: int, steps: int, seed: int) -> float:
    """Seconds of one decode step of so many requests together."""
    return time_steps(llm, [random_prompt(context, seed * 1000 + i) for i in range(batch)], steps)


def time_steps(llm: LLM, prompts: Sequence[list[int]], steps: int) -> float:
    """Return the seconds of one of so many decode steps: the last first token to the first last one.

    Several go behind another one: so they have all come when the first of them could begin.

    Raises RuntimeError: they were not together for nearly all of their steps.
    """
    ahead = [random_prompt(512, sum(prompts[0]))] if len(prompts) > 1 else []
    settings = [*(fixed_output(1) for _ in ahead), *(fixed_output(steps + 1) for _ in prompts)]
    times = [output.times for output in llm.generate([*ahead, *prompts], settings)[len(ahead) :]]
    begins = [each.first_token or 0.0 for each in times]
    end = min(each.last_token or 0.0 for each in times)
    if max(begins) - min(begins) > 0.05 * (end - min(begins)):
        raise RuntimeError("the requests do not decode together: choose a policy that begins them in one iteration")
    return (end - max(begins)) / steps


def say(line: str) -> None:
    print(line, flush=True)


def arguments(description: str, defaults: Iterable[tuple[str, Any, str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    for name, default, text in defaults:
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
            continue
        kind = type(default) if default is not None else str
        parser.add_argument(f"--{name}", default=default, type=kind, help=f"{text} (default: {default})")
    return parser.parse_args()
