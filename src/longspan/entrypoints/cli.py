"""The `longspan` command. Imports here stay light: --help answers without loading torch."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env

from longspan import __version__
from longspan.config import EngineConfig
from longspan.core.policies import told_of_moved
from longspan.entrypoints.batch.options import run_batch
from longspan.entrypoints.bench.commands import bench
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions
from longspan.entrypoints.dashboard.options import dashboard
from longspan.entrypoints.fleet_commands import fleet
from longspan.entrypoints.help import KnobsLast
from longspan.entrypoints.plan.options import PlanOptions
from longspan.entrypoints.profile_options import ProfileSettings, given
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.simulate.options import SimulateOptions
from longspan.entrypoints.toml_config import ConfigFile, read_toml_config
from longspan.entrypoints.whole_numbers import check_whole_numbers
from longspan.errors import ConfigError, LongspanError

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130
CLOSED_PIPE = 141

app = App(
    name="longspan",
    help="Serve long-context language models with elastic sequence parallelism.",
    version=__version__,
    version_flags=("--version", "-V"),
    default_parameter=Parameter(negative_iterable=()),  # no --empty-api-key: to leave it out is enough
    help_formatter=KnobsLast(),
    config=(Env("LONGSPAN_", show=False), read_toml_config, check_whole_numbers),
)

app.command(bench)
app.command(run_batch)
app.command(dashboard)
app.command(fleet)

Flat = Parameter(name="*")
EngineOptions = Parameter(name="*", group="Engine: what is served, and how")
ServerOptions = Parameter(name="*", group="Server: who may ask, and what they may cost")


@app.command
def serve(
    model_or_path: str | None = None,
    /,
    *,
    engine: Annotated[EngineConfig, EngineOptions] = EngineConfig(),  # noqa: B008  (frozen)
    server: Annotated[ServerConfig, ServerOptions] = ServerConfig(),  # noqa: B008
    config: ConfigFile = None,
) -> int:
    """Serve a model over an OpenAI-compatible HTTP API.

    A setting comes from the command line (--kv-tokens 65536), else from the environment
    (LONGSPAN_SERVE_KV_TOKENS=65536), else from the [serve] table of a TOML file (kv_tokens = 65536), else it
    has its default.

    Args:
        model_or_path: What to serve: a name that `longspan models` lists, a folder in Hugging Face layout, or
            a .gguf file. The same as --model.
    """
    from longspan.entrypoints.serve import serve
    from longspan.entrypoints.welcome import print_welcome

    if model_or_path is not None:
        engine = replace(engine, model=model_or_path)
    if engine.node_rank > 0:
        from longspan.entrypoints.node import serve_node

        return serve_node(engine, server)
    return serve(engine, server, announce=partial(print_welcome, asks_for_key=server.has_keys))


@app.command
def chat(
    *,
    url: str = "http://127.0.0.1:8000",
    model: str | None = None,
    system: str | None = None,
    temperature: float = 0.7,
    api_key: str | None = None,
    config: ConfigFile = None,
) -> int:
    """Talk to a running server. From a pipe, each line is one message.

    Args:
        url: Where the server is.
        model: Which of its models; by default the first.
        system: A system message.
        temperature: 0 always takes the likeliest token; higher is more varied.
        api_key: Sent as a bearer token; better given as LONGSPAN_CHAT_API_KEY or OPENAI_API_KEY.
    """
    from longspan.entrypoints.terminal_chat import chat

    return chat(url, model, system, temperature, api_key)


@app.command
def models() -> int:
    """List the models known by name, and the architectures that run from a folder or file."""
    from longspan.entrypoints.models_table import print_models

    print_models()
    return 0


@app.command
def policies() -> int:
    """List the policies, each as `--policy` takes it with its options, and what these mean."""
    from longspan.entrypoints.policies_list import print_policies

    print_policies()
    return 0


@app.command
def profile(
    model_or_path: str | None = None,
    /,
    *,
    out: Path = Path("sib.json"),
    check: Path | None = None,
    budget: str = "120s",
    plot: Path | None = None,
    json: bool = False,
    engine: Annotated[ProfileSettings, Flat] = ProfileSettings(),  # noqa: B008  (frozen)
    config: ConfigFile = None,
) -> int:
    """Measure this machine with a model, so that policies can predict how long their plans would take.

    Give the settings that you will serve with; the file is refused where they differ.

    Args:
        model_or_path: As for `longspan serve`.
        out: The file to write, for `longspan serve --sib`.
        check: Instead, read this file, measure points that it was not fitted to, and print predicted against
            measured. Settings are the file's, where none are given.
        budget: How long it may take, such as 90s or 5m. What is cheap is measured first.
        plot: Draw predicted over measured into this picture, such as errors.png.
        json: Print JSON instead of tables.
    """
    from longspan.entrypoints.profile import Output, check_profile, write_profile

    settings = given(engine) | ({} if model_or_path is None else {"model": model_or_path})
    output = Output(plot, json)
    if check is not None:
        return check_profile(settings, check, budget, output)
    return write_profile(settings, out, budget, output)


@app.command
def simulate(
    *,
    simulated: Annotated[SimulateOptions, Flat] = SimulateOptions(),  # noqa: B008  (frozen)
    lengths: Annotated[LengthOptions, Flat] = LengthOptions(),  # noqa: B008
    arrivals: Annotated[ArrivalOptions, Flat] = ArrivalOptions(),  # noqa: B008
    config: ConfigFile = None,
) -> int:
    """Run the real scheduler on hardware that is not there: a virtual clock, and a model of how long things take.

    The same arguments give the same result, to the byte.

    Args:
        lengths.trace: As for `longspan bench serve`, like all that follow.
    """
    from longspan.entrypoints.simulate.command import simulate

    return simulate(lengths, arrivals, simulated)


@app.command
def plan(
    *,
    planned: Annotated[PlanOptions, Flat] = PlanOptions(),  # noqa: B008  (frozen)
    lengths: Annotated[LengthOptions, Flat] = LengthOptions(),  # noqa: B008
    arrivals: Annotated[ArrivalOptions, Flat] = ArrivalOptions(),  # noqa: B008
    config: ConfigFile = None,
) -> int:
    """Find what bears most, or what is enough, by simulating policies and ways to cut up devices into instances.

    Every simulation has the same requests, faster or slower. More of them judge overload more strictly.

    Args:
        lengths.trace: As for `longspan bench serve`, like all that follow.
    """
    from longspan.entrypoints.plan.command import plan

    return plan(lengths, arrivals, planned)


@app.command
def replay(file: Path, /, *, policy: str | None = None) -> int:
    """Feed an event log to the scheduler again, and tell whether every decision comes out the same.

    Args:
        file: An event log, written with `longspan serve --event-log`; any piece of one that was rotated.
        policy: For a log of a policy of your own: MODULE:CLASS. Its options are the log's.
    """
    from longspan.entrypoints.event_logs import replay

    return replay(file, policy)


@app.command
def export_trace(file: Path, /, *, out: Annotated[Path, Parameter(alias="-o")]) -> int:
    """Write an event log as a trace for Perfetto or Chrome: a track for each instance and each request.

    Args:
        file: An event log, written with `longspan serve --event-log`; any piece of one that was rotated.
        out: The JSON file to write, such as trace.json; open it at https://ui.perfetto.dev.
    """
    from longspan.entrypoints.event_logs import export

    return export(file, out)


@app.command
def explain(
    file: Path | None = None, request: str | None = None, /, *, all: bool = False, url: str | None = None,
    api_key: str | None = None,
) -> int:  # fmt: skip
    """Tell the story of one request: what ran where, who ran while it waited, and why, as far as the policy says.

    Without a request, list those that waited longest. With --url, ask a running server, and give the request alone.

    Args:
        file: An event log, written with `longspan serve --event-log`; any piece of one that was rotated.
        request: The id that the client got (chatcmpl-..., resp_..., or the X-Request-Id), or the log's own, or how one
            of them begins.
        all: List every request, in the order in which they ended; or tell all stories, where many ids begin so.
        url: Of a server, such as http://127.0.0.1:8000, that remembers the request.
        api_key: Sent to it as a bearer token; better given as LONGSPAN_EXPLAIN_API_KEY or OPENAI_API_KEY.
    """
    if url is not None:
        from longspan.entrypoints.story_client import explain_from

        if file is None or request is not None or all:
            raise ConfigError("with --url give the request, and nothing else")
        return explain_from(url, str(file), api_key)
    if file is None:
        raise ConfigError("give the event log, or --url of a server and the request")
    from longspan.entrypoints.event_logs import explain

    return explain(file, request, all)


@app.command
def version() -> int:
    """Print the version."""
    print(__version__)
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run a command; returns 0; 1 if it failed; 2 for a bad option or setting. Errors get one line, no traceback.

    BrokenPipeError, of a reader that has seen enough, is the caller's.
    """
    try:
        _refuse_moved(arguments)
        code: object = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, ConfigError) as error:
        return _fail(error, BAD_USAGE)
    except LongspanError as error:
        return _fail(error, FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that went away: the system's word is all that there is to say
        return _fail(error, FAILED)
    except MemoryError:
        return _fail(LongspanError("there is not enough memory for this"), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _refuse_moved(arguments: Sequence[str]) -> None:
    """Options and variables of former times, which nobody would read. Raises ConfigError."""
    commands = [argument for argument in arguments[:2] if not argument.startswith("-")]
    if not commands or commands[0] not in ("serve", "run-batch", "simulate", "bench"):
        return
    given = [argument.partition("=")[0].removeprefix("--") for argument in arguments if argument.startswith("--")]
    prefix = "_".join(["LONGSPAN", *commands[: 1 + (commands[0] == "bench")], ""]).upper().replace("-", "_")
    given += [name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)]
    for name in given:
        if told := told_of_moved(name.replace("-", "_")):
            raise ConfigError(told)


def _fail(error: Exception, code: int) -> int:
    """In one line, whatever characters a user's value brings into the message."""
    line = " ".join(str(error).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    from longspan.entrypoints.logs import logs_are_json

    if logs_are_json():
        logging.getLogger("longspan").critical("%s", shown)
    else:
        print(f"longspan: {shown}", file=sys.stderr)
    return code


def main() -> None:
    """Run the whole process: what is printed is flushed, and a reader that closes its pipe ends it quietly."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for the process's life)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an odd file name, or a terminal without UTF-8, is no error
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        code = CLOSED_PIPE
        # What is left in the buffer would raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:  # standard output is on a full disk
        code = _fail(error, FAILED)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


if __name__ == "__main__":
    main()
