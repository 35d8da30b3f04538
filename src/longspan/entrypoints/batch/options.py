"""`longspan run-batch` and its options. Imports here stay light, as in `longspan.entrypoints.cli`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from longspan.config import EngineConfig, Objective, Overload
from longspan.entrypoints.toml_config import ConfigFile

EngineOptions = Parameter(name="*", group="Engine, as for `longspan serve`")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEngineConfig(EngineConfig):
    """What serves a batch: nobody waits for a first token, so none is too late, and many tokens a second count."""

    objective: Objective = "throughput"
    """What the start chooses for, where instances, pp, threads_per_device or tpot_slo_s are left out: latency, short
    waits and an even pace; throughput, many tokens a second; balanced, both."""
    overload: Overload = "off"
    """What becomes of a request whose first token would come later than its policy promises: off serves it; warn too,
    and tells how many; enforce makes it come again later."""


def run_batch(
    model_or_path: str | None = None,
    /,
    *,
    input_file: Annotated[Path, Parameter(alias="-i")],
    output_file: Annotated[Path, Parameter(alias="-o")],
    max_concurrency: int = 256,
    engine: Annotated[BatchEngineConfig, EngineOptions] = BatchEngineConfig(),
    config: ConfigFile = None,
) -> int:
    """Answer a file of requests, an OpenAI batch file, without a server.

    Each line is {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}, and gets a line in
    the output, as it is answered; what is wrong with a request is its line's answer. Stopped, the same command goes on.

    Args:
        model_or_path: As for `longspan serve`.
        input_file: The requests, JSONL.
        output_file: The answers, JSONL; what it has of this input already is not asked again.
        max_concurrency: Requests at once.
    """
    from longspan.entrypoints.batch.command import run_batch as answer

    if model_or_path is not None:
        engine = replace(engine, model=model_or_path)
    return answer(engine, input_file, output_file, max_concurrency)
