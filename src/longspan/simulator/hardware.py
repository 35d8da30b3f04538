"""Machines by name."""

from __future__ import annotations

from dataclasses import replace

from longspan.errors import ConfigError
from longspan.simulator.calibration import Figure
from longspan.simulator.machine import GIB, DataSheet, Efficiency, Machine, Overheads

# What published timings can tell, and within what it must lie to be believed.
FIGURES = (
    Figure("efficiency", "matmul", 0.2, 0.95),
    Figure("efficiency", "attention", 0.2, 0.95),
    Figure("efficiency", "memory", 0.2, 0.95),
    Figure("efficiency", "link", 0.2, 0.95),
    *(
        Figure("overheads", name, 1e-7, 2e-2)
        for name in ("iteration_s", "prompts_s", "request_s", "instance_s", "layer_s", "allreduce_s", "exchange_s",
                     "round_s")
    ),
)  # fmt: skip

_FIGURE_3 = "fitted to the timings of LoongServe's figure 3, an engine that launches every kernel anew"
_A800_EFFICIENCY = Efficiency(matmul=0.735, attention=0.559, memory=0.803, link=0.722, origin=_FIGURE_3)
_A800_OVERHEADS = Overheads(
    iteration_s=2.41e-3, prompts_s=6.47e-3, request_s=7.22e-6, instance_s=6.29e-4, layer_s=4.36e-5,
    allreduce_s=3.47e-5, exchange_s=4.58e-5, round_s=1.20e-4, network_s=1e-5, migration_s=1e-3,
    origin=f"{_FIGURE_3}; network_s and migration_s assumed, and that the ring overlaps",
)  # fmt: skip
_AS_A800 = "assumed: as on A800"

A800_80G = Machine(
    name="a800-80g",
    sheet=DataSheet(
        flops=312e12, memory_bytes=80 * GIB, memory_bandwidth=2039e9, devices_per_node=8, link_bandwidth=200e9,
        network_bandwidth=12.5e9,
        origin="NVIDIA's, A800 80GB SXM; network of LoongServe's testbed, 4 x 200 Gb/s for 8 devices",
    ),
    efficiency=_A800_EFFICIENCY,
    overheads=_A800_OVERHEADS,
)  # fmt: skip
A100_80G = Machine(
    name="a100-80g",
    sheet=DataSheet(
        flops=312e12, memory_bytes=80 * GIB, memory_bandwidth=2039e9, devices_per_node=8, link_bandwidth=300e9,
        network_bandwidth=25e9,
        origin="NVIDIA's, A100 80GB SXM; network of a DGX A100, 200 Gb/s a device",
    ),
    efficiency=replace(_A800_EFFICIENCY, origin=_AS_A800),
    overheads=replace(_A800_OVERHEADS, origin=_AS_A800),
)  # fmt: skip
H100 = Machine(
    name="h100",
    sheet=DataSheet(
        flops=989e12, memory_bytes=80 * GIB, memory_bandwidth=3350e9, devices_per_node=8, link_bandwidth=450e9,
        network_bandwidth=50e9,
        origin="NVIDIA's, H100 SXM; network of a DGX H100, 400 Gb/s a device",
    ),
    efficiency=replace(_A800_EFFICIENCY, origin=_AS_A800),
    overheads=replace(_A800_OVERHEADS, origin=_AS_A800),
)  # fmt: skip
H200 = replace(
    H100,
    name="h200",
    sheet=replace(
        H100.sheet, memory_bytes=140 * GIB, memory_bandwidth=4800e9,
        origin="NVIDIA's, H200 SXM; network of a DGX H200, 400 Gb/s a device",
    ),
)  # fmt: skip
_A40_FIT = "fitted to a published profile of Llama-3.1-8B on A40, prefills alone"
A40 = Machine(
    name="a40",
    sheet=DataSheet(
        flops=149.7e12, memory_bytes=45 * GIB, memory_bandwidth=696e9, devices_per_node=8, link_bandwidth=32e9,
        network_bandwidth=12.5e9,
        origin="NVIDIA's, A40, linked by PCIe 4.0 x16; network assumed, 100 Gb/s a device",
    ),
    efficiency=Efficiency(matmul=0.658, attention=0.355, memory=0.95, link=0.783, origin=_A40_FIT),
    overheads=replace(
        _A800_OVERHEADS, iteration_s=5.63e-3, instance_s=2.11e-3, allreduce_s=7.6e-5, prompts_s=0.0, layer_s=0.0,
        round_s=0.0, origin=f"{_A40_FIT}, which shows no others; what decodes alone show is as on A800",
    ),
)  # fmt: skip

HARDWARE = {machine.name: machine for machine in (A100_80G, A800_80G, H100, H200, A40)}


def known_machine(name: str) -> Machine:
    """Raises ConfigError."""
    if name not in HARDWARE:
        raise ConfigError(f"there is no hardware {name!r}; there are: {', '.join(HARDWARE)}, and sib:FILE")
    return HARDWARE[name]
