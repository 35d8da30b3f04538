"""The `longspan` command. Imports here stay light: --help answers without loading torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env

from longspan.config import EngineConfig
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.toml_config import read_toml_config
from longspan.errors import ConfigError, LongspanError

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130

app = App(
    name="longspan",
    help="Serve long-context language models with elastic sequence parallelism.",
    version_flags=(),
    config=(Env("LONGSPAN_", show=False), read_toml_config),
)

Flat = Parameter(name="*")


@app.command
def serve(
    model_or_path: str | None = None,
    /,
    *,
    engine: Annotated[EngineConfig, Flat] = EngineConfig(),  # noqa: B008  (frozen)
    server: Annotated[ServerConfig, Flat] = ServerConfig(),  # noqa: B008
    config: Path | None = None,
) -> int:
    """Serve a model over an OpenAI-compatible HTTP API.

    A setting comes from the command line (--kv-tokens 65536), else from the environment
    (LONGSPAN_SERVE_KV_TOKENS=65536), else from the [serve] table of a TOML file (kv_tokens = 65536), else it
    has its default.

    Args:
        model_or_path: What to serve: a name that `longspan models` lists, a folder in Hugging Face layout, or
            a .gguf file. The same as --model.
        engine.model: What to serve, where it is not the first argument.
        engine.served_model_name: The name that requests give; by default the model's own.
        engine.instances: Elastic instances: full copies of the model, among which the work of one request is
            spread as it needs.
        engine.tp: Tensor-parallel devices inside each instance.
        engine.dtype: Of weights, activations and KV; auto is bfloat16 where the device computes it natively.
        engine.device: Where to run; auto is CUDA if there is one.
        engine.executor: One process for each device, or all instances as threads of this one.
        engine.transport: How worker processes exchange; auto is NCCL between GPUs, shared memory between CPUs.
        engine.max_model_len: Longest prompt and output together, tokens; by default the model's own limit.
        engine.kv_tokens: KV slots of each instance, tokens; by default what fits.
        engine.policy: Who runs when, and on how many instances.
        engine.threads_per_device: CPU threads of each device; by default an even share of the cores.
        engine.max_waiting: Requests that may wait; more get status 429.
        engine.max_batch_tokens: Prefill tokens in one batch, for each instance that takes part.
        engine.max_requests_per_master: A decode group with more requests a master takes another instance.
        engine.lookahead: Queue the next decode step behind the running one.
        engine.event_log: Write every decision to this file; `longspan replay` checks it.
        engine.worker_timeout_s: A worker without a sign of life for so long is given up.
        server.host: Address to listen on; 0.0.0.0 is every one.
        server.port: Port to listen on; 0 takes a free one.
        server.max_body_mb: Largest request body, MiB; more gets status 413.
        server.drain_timeout_s: How long running requests may go on after SIGTERM or Ctrl-C.
        server.keep_alive_s: A silent stream gets a comment this often, so that proxies keep it; 0 is never.
        server.log_level: What to log, to standard error.
        config: TOML file with settings; by default longspan.toml in this folder, if there is one.
    """
    from longspan.entrypoints.serve import serve
    from longspan.entrypoints.welcome import print_welcome

    if model_or_path is not None:
        engine = replace(engine, model=model_or_path)
    return serve(engine, server, announce=print_welcome)


@app.command
def chat(
    *,
    url: str = "http://127.0.0.1:8000",
    model: str | None = None,
    system: str | None = None,
    temperature: float = 0.7,
) -> int:
    """Talk to a running server. From a pipe, each line is one message.

    Args:
        url: Where the server is.
        model: Which of its models; by default the first.
        system: A system message.
        temperature: 0 always takes the likeliest token; higher is more varied.
    """
    from longspan.entrypoints.terminal_chat import chat

    return chat(url, model, system, temperature)


@app.command
def models() -> int:
    """List the models known by name, and the architectures that run from a folder or file."""
    from longspan.entrypoints.models_table import print_models

    print_models()
    return 0


@app.command
def replay(file: Path, /) -> int:
    """Feed an event log to the scheduler again, and tell whether every decision comes out the same.

    Args:
        file: An event log, written with `longspan serve --event-log`.
    """
    from longspan.metrics.event_log import replay

    difference = replay(file)
    if difference is None:
        print(f"{file}: every decision is the same")
        return 0
    print(f"{file}: decisions differ\n{difference}")
    return FAILED


@app.command
def version() -> int:
    """Print the version."""
    from longspan.entrypoints.openai.health import longspan_version

    print(longspan_version())
    return 0


def run(arguments: Sequence[str]) -> int:
    """The exit code: 0; 1 if it failed; 2 for a bad option or setting. Errors get one line, no traceback."""
    try:
        code: object = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, ConfigError) as error:
        return _fail(error, BAD_USAGE)
    except LongspanError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _fail(error: Exception, code: int) -> int:
    print(f"longspan: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
