"""Write docs/results.md out of benchmarks/results/*.json: `python docs/render_results.py`. Nothing is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---:"] * len(head), *[[str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def origin(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"*benchmarks/results/{record['benchmark']}.json, {record['date']}: `{record['command']}` on "
        f"{machine['cores']} cores of {machine['cpu']} ({', '.join(machine['isa'])}), {versions}. "
        f"Medians; ratios are medians of the rounds' ratios.*\n"
    )


def seconds(summary: dict[str, Any]) -> str:
    return f"{summary['median']:.3f}"


def milliseconds(summary: dict[str, Any]) -> str:
    return f"{1000 * summary['median']:.1f}"


def elastic() -> str:
    record = load("elastic")
    r = record["results"]
    return "\n".join([
        "## Elasticity: two instances of one thread each\n",
        origin(record),
        f"Model {r['model']}, {r['dtype']}.\n",
        "Prefill on two instances (DoP 2) against one (DoP 1):\n",
        table(
            ["tokens", "DoP 1, s", "DoP 2, s", "times as fast"],
            [[n, seconds(v["dop1"]), seconds(v["dop2"]), f"{v['speedup']:.2f}"]
             for n, v in r["prefill_dop2_over_dop1"].items()],
        ),
        "Scale-down: prefill on two instances with the KV kept by one of them, against both:\n",
        table(
            ["tokens", "onto one, s", "onto both, s", "time, onto one over both"],
            [[n, seconds(v["onto_one"]), seconds(v["onto_both"]), f"{v['ratio']:.3f}"]
             for n, v in r["retention_onto_one_over_both"].items()],
        ),
        "Decode with two masters against one, the KV on both instances, 256 tokens of context:\n",
        table(
            ["batch", "one master, ms a step", "two masters, ms a step", "times as fast"],
            [[n, milliseconds(v["one_master"]), milliseconds(v["two_masters"]), f"{v['speedup']:.2f}"]
             for n, v in r["two_masters_over_one"].items()],
        ),
        "Time outside the model, one instance, from the first batch to the last token:\n",
        table(
            ["batch", "share"],
            [[n, f"{100 * v['outside_model_share']['median']:.1f} %"] for n, v in r["outside_the_model"].items()],
        ),
    ])  # fmt: skip


def against_vllm() -> str:
    record = load("against_vllm")
    r = record["results"]
    names = {"two_instances": "2 instances x 1 thread", "one_instance": "1 instance x 2 threads"}

    def rows(part: str, show: Any) -> list[list[str]]:
        return [
            [n, show(v["vllm"]), *(f"{show(v[s])} ({v['times_as_fast_as_vllm'][s]:.2f})" for s in names)]
            for n, v in r[part].items()
        ]

    return "\n".join([
        f"## Beside vLLM {r['vllm']['version']} (CPU build), both cores for either side\n",
        origin(record),
        "SmolLM2-135M in bf16. In brackets: times as fast as vLLM in the same rounds. vLLM runs in one process with "
        "Intel's OpenMP, which suits it best here (benchmarks/peers/vllm_cpu.py).\n",
        "Prefill of one prompt, seconds:\n",
        table(["tokens", "vLLM", *names.values()], rows("prefill", seconds)),
        "Decode, milliseconds a step, 128 tokens of context:\n",
        table(["batch", "vLLM", *names.values()], rows("decode", milliseconds)),
    ])  # fmt: skip


def main() -> None:
    parts = [
        "# Results\n",
        "Written by `python docs/render_results.py` out of the files under benchmarks/results/. Machines are shared "
        "and noisy: ratios count, not single times.\n",
        elastic(),
        against_vllm(),
    ]
    (ROOT / "docs" / "results.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
