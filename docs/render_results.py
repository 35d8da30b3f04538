"""Write docs/results.md, and its plots, out of benchmarks/results/*.json: `make results`. No figure is typed by hand.

A section is a function in docs/rendering/, named after its file. One whose file is not there is left out. A table of
docs/policy.md and figures of docs/vllm.md are drawn, too.
"""

from __future__ import annotations

from collections.abc import Callable

from rendering import (
    cpu,
    grid,
    longspan_policy,
    loongserve_paper,
    losses,
    medha,
    medha_paper,
    million,
    policies,
    prefixes,
    rerun,
    robustness,
    scale,
    simulator,
    structured,
    untuned,
    watched,
)
from rendering.record import DOCS, Record, filled, load

Section = Callable[[Record], str]
SECTIONS: tuple[Section, ...] = (
    cpu.against_peers,
    untuned.untuned,
    untuned.in_vllm,
    cpu.kernel,
    cpu.elastic,
    cpu.overhead,
    cpu.long_prompt,
    million.million_tokens,
    million.million_exact,
    cpu.quantization,
    cpu.quality,
    structured.structured,
    structured.structured_schemas,
    robustness.fuzz,
    robustness.costly,
    robustness.soak,
    losses.killed_workers,
    losses.losses,
    watched.watching,
    watched.progress_quotes,
    policies.profile_check,
    policies.policies,
    grid.grid,
    longspan_policy.calibration,
    longspan_policy.robustness,
    longspan_policy.ablation,
    policies.scaling,
    policies.deciding,
    policies.deciding_cached,
    prefixes.prefix_reuse,
    prefixes.prefix_reuse_agents,
    prefixes.prefix_decode_cost,
    prefixes.eviction,
    prefixes.eviction_mooncake,
    prefixes.eviction_bound,
    scale.scale,
    scale.scale_attained,
    policies.against_version,
    simulator.simulator_against_engine,
    simulator.simulator_against_engine_longspan,
    simulator.simulator_speed,
    simulator.simulator_speed_large,
    loongserve_paper.paper_loongserve,
    medha_paper.paper_medha,
    medha.mixed_load,
    medha.mixed_load_half,
    medha.kvp,
    medha.spp,
    medha.chunk_overhead,
)


def main() -> None:
    parts = [
        "# Results\n",
        "Written by `make results` out of the files under benchmarks/results/. Machines are shared and noisy: ratios "
        "count, not single times. docs/performance.md says what limits each.\n",
    ]
    for section in SECTIONS:
        record = load(section.__name__)
        if record is not None:
            parts.append(section(record))
    parts.append(rerun.commands())
    (DOCS / "results.md").write_text("\n".join(parts))
    if (record := load("in_vllm")) is not None:
        vllm = DOCS / "vllm.md"
        vllm.write_text(filled(vllm.read_text(), "in_vllm", untuned.in_vllm_told(record)))
    if (record := load("ablation")) is not None:
        policy = DOCS / "policy.md"
        policy.write_text(filled(policy.read_text(), "ablation", longspan_policy.parts_worth(record)))


if __name__ == "__main__":
    main()
