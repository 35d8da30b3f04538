"""Machines fitted to timings: known figures come back, and published timings are met as closely as we say."""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from longspan.config import SchedulerConfig
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.errors import ConfigError
from longspan.profiler.fit import fit_cost_model
from longspan.profiler.simulated import measure_simulated
from longspan.sib import Deployment, Measurements, ScalingInformationBase, package_versions
from longspan.simulator.calibration import Timing, calibrate
from longspan.simulator.cost import IterationCost
from longspan.simulator.fleet import Fleet
from longspan.simulator.hardware import A40, A800_80G, FIGURES
from longspan.simulator.machine import Machine
from longspan.simulator.measured import measured_machine, measured_model, sib_timings
from longspan.simulator.models import MODELS
from longspan.simulator.published import a40_prefills, loongserve_figure_3, without_overlap
from longspan.simulator.spread import evenly_spread


def errors(machine: Machine, timings: list[Timing], kind: str) -> list[float]:
    return [abs(timing.error(machine)) for timing in timings if kind in timing.label]


def test_known_figures_come_back() -> None:
    truth = without_overlap(A800_80G)
    timings = [replace(timing, seconds=timing.predict(truth)) for timing in loongserve_figure_3(truth)]
    distorted = replace(
        truth,
        efficiency=replace(truth.efficiency, matmul=0.4, memory=0.5, attention=0.9),
        overheads=replace(truth.overheads, iteration_s=1e-2, layer_s=1e-5),
    )
    fitted = calibrate(distorted, FIGURES, timings)
    assert max(abs(timing.error(fitted)) for timing in timings) < 1e-3
    assert fitted.efficiency.matmul == pytest.approx(truth.efficiency.matmul, rel=0.02)
    assert fitted.efficiency.memory == pytest.approx(truth.efficiency.memory, rel=0.02)


def test_an_a800_takes_as_long_as_loongserve_measured() -> None:
    """Worst: decodes of one request with 500,000 tokens, which too few heads share among too many cores."""
    machine, timings = without_overlap(A800_80G), loongserve_figure_3(A800_80G)
    prefills, decodes = errors(machine, timings, "prefill"), errors(machine, timings, "decode")
    assert (len(prefills), len(decodes)) == (21, 21)
    assert statistics.mean(prefills) < 0.02 and max(prefills) < 0.07
    assert statistics.mean(decodes) < 0.07 and max(decodes) < 0.19


def test_an_a40_takes_as_long_as_was_published() -> None:
    machine, timings = without_overlap(A40), a40_prefills(A40)
    assert statistics.mean(errors(machine, timings, "prefill")) < 0.08


def test_the_figures_in_use_are_the_fitted_ones() -> None:
    machine, timings = without_overlap(A800_80G), loongserve_figure_3(A800_80G)
    fitted = calibrate(machine, FIGURES, timings)
    assert fitted.efficiency.matmul == pytest.approx(machine.efficiency.matmul, rel=0.01)
    assert fitted.efficiency.attention == pytest.approx(machine.efficiency.attention, rel=0.01)


DEPLOYMENT = Deployment(
    model="smollm2-135m", architecture="LlamaForCausalLM", num_layers=30, hidden_size=576, intermediate_size=1536,
    num_heads=9, num_kv_heads=3, head_dim=64, vocab_size=49152, quantization="none", dtype="bfloat16", instances=2,
    tp=1, executor="multiproc", device="cpu", processor="some", cores=2, kernels="some", threads_per_device=1,
)  # fmt: skip


def profiled(machine: Machine, name: str = "smollm2-135m") -> ScalingInformationBase:
    """What `longspan profile` would write there."""
    config = SchedulerConfig(num_instances=2, kv_tokens=16384)
    cost = IterationCost(Fleet(machine=machine, model=MODELS[name], instances=2))
    measurements = measure_simulated(cost, config, 8192)
    sizes = {field: size for field, size in asdict(MODELS[name].shape).items() if not field.endswith("_bytes")}
    return ScalingInformationBase(
        deployment=replace(DEPLOYMENT, model=name, **sizes), versions=package_versions(), date="today",
        measurements=measurements, cost_model=fit_cost_model(measurements, 2),
    )  # fmt: skip


SMALL_CPU = replace(
    A800_80G,
    sheet=replace(
        A800_80G.sheet, flops=A800_80G.sheet.flops / 1000, link_bandwidth=A800_80G.sheet.link_bandwidth / 1000,
        memory_bandwidth=A800_80G.sheet.memory_bandwidth / 1000,
    ),
    overheads=replace(A800_80G.overheads, contention=0.5),
)  # fmt: skip
"""A core of one; cores share their memory."""


@pytest.mark.parametrize(
    ("truth", "model"), [(A800_80G, "smollm2-135m"), (A800_80G, "llama-3-8b"), (SMALL_CPU, "smollm2-135m")]
)
def test_a_machine_from_its_profile(truth: Machine, model: str) -> None:
    sib = profiled(truth, model)
    machine = measured_machine(sib, Path("sib.json"))
    queued = replace(machine, overheads=replace(machine.overheads, unqueued_s=0.0))  # as decodes of a profile are
    assert statistics.mean(abs(timing.error(queued)) for timing in sib_timings(sib, machine)) < 0.03


@pytest.mark.parametrize(("truth", "model"), [(A800_80G, "llama-3-8b"), (SMALL_CPU, "smollm2-135m")])
def test_a_profile_tells_what_was_never_measured(truth: Machine, model: str) -> None:
    """Another model, with longer prompts; if decodes of the one that was profiled do not wait for the host."""
    machine = measured_machine(profiled(truth, model), Path("sib.json"))
    costs = [IterationCost(Fleet(machine=m, model=MODELS["qwen2.5-7b"], instances=2)) for m in (truth, machine)]
    real, predicted = (cost.decode_alike(8, 20_000, 2) for cost in costs)
    assert predicted == pytest.approx(real, rel=0.25)


def test_what_queueing_saves_is_known_from_the_profile() -> None:
    """Its decodes are queued, its prefills are not."""
    no_host = replace(A800_80G.overheads, iteration_s=0.0, prompts_s=0.0, request_s=0.0, instance_s=0.0)
    sib, plain = (profiled(replace(A800_80G, overheads=replace(no_host, unqueued_s=s))) for s in (0.0005, 0.0))
    for point, other in zip(sib.measurements.iterations, plain.measurements.iterations, strict=True):
        assert point.seconds == pytest.approx(other.seconds)
    machine = measured_machine(sib, Path("sib.json"))
    cost = IterationCost(Fleet(machine=machine, model=MODELS["smollm2-135m"], instances=1))
    decode = BatchShape(num_instances=1, num_requests=2, context_tokens=200, num_masters=1)
    prefill = BatchShape(num_instances=1, chunks=(Chunk(100),))
    assert [cost.batch(evenly_spread(work)).host for work in (decode, prefill)] == [pytest.approx(0.0005), 0.0]


def test_the_profiled_model_is_the_one_in_the_file() -> None:
    assert measured_model(DEPLOYMENT).shape == MODELS["smollm2-135m"].shape


def test_a_profile_without_decodes_is_refused() -> None:
    sib = profiled(A800_80G)
    prefills = tuple(m for m in sib.measurements.iterations if m.shape.kind == "prefill")
    broken = replace(sib, measurements=Measurements(iterations=prefills, migrations=()))
    with pytest.raises(ConfigError, match=r"sib\.json holds no prefill or no decode"):
        measured_machine(broken, Path("sib.json"))
