"""`longspan profile`: what the terminal shows of it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from longspan.config import EngineConfig
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.engine.phase_display import shown_phases
from longspan.errors import ConfigError
from longspan.files import check_writable
from longspan.phases import OnPhase
from longspan.profiler.check import Check, check_predictions
from longspan.profiler.measure import Measured, Report
from longspan.profiler.profile import check, profile
from longspan.sib import Deployment, ScalingInformationBase, read_sib, write_sib

PIPE_WIDTH = 160
_BUSY = 0.5  # of the cores
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Output:
    """Beside the tables: a picture, or JSON in their place."""

    plot: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.plot is not None:
            from longspan.profiler.plot import require_matplotlib

            require_matplotlib()  # before minutes of measuring, not after
            check_writable(self.plot)


def write_profile(settings: dict[str, Any], out: Path, budget: str, output: Output) -> int:
    """Measure, fit, and write the file. settings: fields of `EngineConfig`."""
    seconds = parse_seconds(budget)
    _warn_if_busy()
    check_writable(out)
    config = EngineConfig(**settings)
    with _progress(seconds) as (report, on_phase):
        sib = asyncio.run(profile(config, seconds, report, on_phase))
    write_sib(sib, out)
    fitted = check_predictions(sib.cost_model, sib.measurements)
    if output.json:
        _print_json({"file": str(out), "cost_model": sib.cost_model, **_as_json(sib, fitted)})
    else:
        _print_coefficients(sib)
        _print_summary("the points that it was fitted to", fitted)
        print(f"wrote {out}; use it with `longspan serve --sib {out}`, check it with `longspan profile --check {out}`")
    _plot(fitted, output)
    return 0


def check_profile(settings: dict[str, Any], path: Path, budget: str, output: Output) -> int:
    """Measure other points than the file has, and print them beside what it predicts.

    settings: fields of `EngineConfig` that shall not be as in the file.
    """
    seconds = parse_seconds(budget)
    sib = read_sib(path)
    config = EngineConfig(**{**_settings_of(sib.deployment), **settings})
    _warn_if_busy()
    with _progress(seconds) as (report, on_phase):
        result = asyncio.run(check(config, sib, path, seconds, report, on_phase))
    if output.json:
        _print_json({"file": str(path), **_as_json(sib, result)})
    else:
        _print_comparisons(result)
        _print_summary("points that it has not seen", result)
    _plot(result, output)
    return 0


def parse_seconds(text: str) -> float:
    """Parse "120s", "2m", "1h" or "120"."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds > 0:
        raise ConfigError(f"budget is {text!r}, but must be a time like 120s or 5m")
    return seconds


def _settings_of(deployment: Deployment) -> dict[str, Any]:
    """How to start the engine that a file was measured on."""
    names = ("model", "instances", "tp", "pp", "dtype", "quantization", "device", "executor", "threads_per_device")
    return {name: getattr(deployment, name) for name in names}


def _warn_if_busy() -> None:
    """Times measured beside other work hold only beside such work."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > _BUSY * cores:
        print(
            f"longspan: the machine is busy (load {load:.1f} on {cores} cores): what is measured may not hold later",
            file=sys.stderr,
        )


@contextmanager
def _progress(budget_s: float) -> Iterator[tuple[Report, OnPhase]]:
    """A bar on a terminal; elsewhere a line for each phase of the engine's start and each group of measurements.

    Both on standard error: standard output is the result's.
    """
    if not sys.stderr.isatty():
        with shown_phases() as on_phase:
            yield (
                lambda measured: print(f"{measured.seconds:6.1f} s  {measured.text}", file=sys.stderr, flush=True),
                on_phase,
            )
        return
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=budget_s)

        def show(measured: Measured) -> None:
            bar.update(task, completed=min(measured.seconds, budget_s), description=measured.text)

        yield show, lambda phase: bar.update(task, description=phase.text)


def _print_coefficients(sib: ScalingInformationBase) -> None:
    model = sib.cost_model
    prefills = Table("prefill: DoP", "fixed, ms", "per token, us", "per pair of tokens, ns", box=None)
    for row in model.prefill_coefficients:
        prefills.add_row(
            str(row.num_instances), f"{1e3 * row.fixed:.2f}", f"{1e6 * row.per_token:.2f}", f"{1e9 * row.per_pair:.4f}"
        )
    decodes = Table(
        "decode: DoP", "masters", "fixed, ms", "requests for free", "per further request, ms",
        "per context token, us", box=None,
    )  # fmt: skip
    for decode in model.decode_coefficients:
        decodes.add_row(
            str(decode.num_instances), str(decode.num_masters), f"{1e3 * decode.fixed:.2f}",
            f"{decode.free_requests:.0f}", f"{1e3 * decode.per_request:.3f}", f"{1e6 * decode.per_context_token:.3f}",
        )  # fmt: skip
    console = _console()
    console.print(prefills, decodes, sep="\n")
    if sib.deployment.instances > 1:
        fixed, per_token = 1e3 * model.migration_fixed, 1e6 * model.migration_per_token
        console.print(f"migration: {fixed:.2f} ms, and {per_token:.2f} us per token")
        found = [f"{one.kind} beside {one.beside} {one.factor:.2f}" for one in sib.measurements.interference]
        console.print(f"two instances at once, times as long: {', '.join(found)}")


def _print_comparisons(result: Check) -> None:
    table = Table("", "DoP", "masters", "batch", box=None)
    for title in ("measured, ms", "predicted, ms", "error"):
        table.add_column(title, justify="right")
    for c in result.comparisons:
        times = f"{1e3 * c.measured:.2f}", f"{1e3 * c.predicted:.2f}", f"{100 * c.relative_error:+.1f} %"
        if isinstance(c.work, BatchShape):
            masters = str(c.work.num_masters or "")
            table.add_row(c.kind, str(c.work.num_instances), masters, _describe(c.work), *times)
        else:
            table.add_row(c.kind, "", "", f"{c.work} tokens", *times)
    _console().print(table)


def _print_summary(of: str, result: Check) -> None:
    table = Table("", "points", box=None)
    for title in ("mean", "largest"):
        table.add_column(title, justify="right")
    for kind in (*result.kinds(), None):
        summary = result.summary(kind)
        table.add_row(
            kind or "all", str(summary.count), f"{100 * summary.mean:.1f} %", f"{100 * summary.largest:.1f} %"
        )
    console = _console()
    console.print(f"relative errors at {of}:")
    console.print(table)


def _describe(shape: BatchShape) -> str:
    """8 x 64 tokens + 4 decodes of 1,024 tokens"""
    parts = [_describe_chunks(shape.chunks)] if shape.chunks else []
    if shape.num_requests:
        noun = "decode" if shape.num_requests == 1 else "decodes"
        parts.append(f"{shape.num_requests} {noun}, {shape.context_tokens} tokens of context")
    return " + ".join(parts)


def _describe_chunks(chunks: Sequence[Chunk]) -> str:
    length, context = chunks[0]
    count = f"{len(chunks)} x " if len(chunks) > 1 else ""
    return f"{count}{length} tokens" + (f" behind {context}" if context else "")


def _as_json(sib: ScalingInformationBase, result: Check) -> dict[str, Any]:
    return {
        "deployment": sib.deployment,
        "errors": {kind or "all": asdict(result.summary(kind)) for kind in (*result.kinds(), None)},
        "points": [{**asdict(c), "relative_error": c.relative_error} for c in result.comparisons],
    }


def _print_json(content: dict[str, Any]) -> None:
    print(msgspec.json.format(msgspec.json.encode(content), indent=1).decode())


def _plot(result: Check, output: Output) -> None:
    if output.plot is not None:
        from longspan.profiler.plot import plot_check

        plot_check(result, output.plot)
        print(f"wrote {output.plot}", file=sys.stderr)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
