"""Every knob of scheduling reaches the scheduler, served or simulated, whichever way it is set; defaults are alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from longspan import LLM
from longspan.config import EngineConfig, SchedulerConfig, SchedulingConfig, SchedulingKnobs
from longspan.core.policies import create_policy
from longspan.core.policies.options import options_of
from longspan.entrypoints import cli, serve
from longspan.entrypoints.bench import offline
from longspan.entrypoints.plan import command as plan
from longspan.entrypoints.plan.options import PlanOptions
from longspan.entrypoints.simulate import command as simulate
from longspan.entrypoints.simulate.fleet import make_fleet
from longspan.entrypoints.simulate.options import SimulateOptions
from tests.models.tiny import CONFIGS, write_tiny_engine_model

KNOBS = fields(SchedulingConfig)
DEFAULTS = {knob.name: getattr(SchedulerConfig(), knob.name) for knob in KNOBS}
"""What the scheduler goes by where nothing is said, and no machine was measured."""
COMMANDS = ["serve", "simulate", "plan", "bench latency", "bench throughput"]


def other(knob: Field[Any]) -> Any:
    """A value that is not the default."""
    default = DEFAULTS[knob.name]
    choices = [choice for choice in get_args(knob.type) if choice is not type(None)]
    if choices and not isinstance(choices[0], type):
        return choices[0]
    match default:
        case None:
            return choices[0](3)
        case bool():
            return not default
        case int():
            return default + 3
        case float():
            return default * 2
        case str():
            return "medha:max_space_share=0.25"
    raise AssertionError(f"what else could {knob.name} be?")


def as_option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no{option[1:]}"]
    return [option, str(value)]


def as_toml(value: Any) -> str:
    return json.dumps(value)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SchedulerConfig]:
    """What schedulers would get, instead of running anything. In a folder of its own."""
    configs: list[SchedulerConfig] = []

    def of_engine(engine: EngineConfig, *_: object, **__: object) -> int:
        configs.append(SchedulerConfig.of(engine, num_instances=1, pp=1, kv_tokens=1000))
        return 0

    def of_options(lengths: object, arrivals: object, options: SimulateOptions | PlanOptions) -> int:
        configs.append(simulate.scheduler_config(options, make_fleet("a800-80g", "llama-2-7b", 1, 1)))
        return 0

    monkeypatch.setattr(serve, "serve", of_engine)
    monkeypatch.setattr(offline, "latency", of_engine)
    monkeypatch.setattr(offline, "throughput", of_engine)
    monkeypatch.setattr(simulate, "simulate", of_options)
    monkeypatch.setattr(plan, "plan", of_options)
    monkeypatch.chdir(tmp_path)
    return configs


Source = Callable[[pytest.MonkeyPatch, str, str, Any], int]


def by_command_line(monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: Any) -> int:
    return cli.run([*command.split(), *as_option(name, value)])


def by_file(monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: Any) -> int:
    Path("longspan.toml").write_text(f"[{command.replace(' ', '.')}]\n{name} = {as_toml(value)}\n")
    return cli.run(command.split())


def by_environment(monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: Any) -> int:
    monkeypatch.setenv(f"LONGSPAN_{command.replace(' ', '_')}_{name}".upper(), str(value))
    return cli.run(command.split())


@pytest.mark.parametrize("source", [by_command_line, by_file, by_environment])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_a_knob_reaches_the_scheduler(
    reached: list[SchedulerConfig], monkeypatch: pytest.MonkeyPatch, knob: Field[Any], command: str, source: Source
) -> None:
    if command == "plan" and knob.name == "policy":
        return  # it tries several, which are given as --policies
    assert source(monkeypatch, command, knob.name, other(knob)) == 0
    (config,) = reached
    assert getattr(config, knob.name) == other(knob)
    assert [each.name for each in KNOBS if getattr(config, each.name) != DEFAULTS[each.name]] == [knob.name]


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_the_same_everywhere(reached: list[SchedulerConfig], command: str) -> None:
    assert cli.run(command.split()) == 0
    (config,) = reached
    assert [getattr(config, knob.name) for knob in KNOBS] == [*DEFAULTS.values()]


def test_nobody_else_writes_a_knob_down() -> None:
    """They are inherited: with their defaults, their help and their checks."""
    names = {field.name for field in fields(SchedulingKnobs)}
    for kind in (SchedulingConfig, SchedulerConfig, EngineConfig, SimulateOptions, PlanOptions):
        assert issubclass(kind, SchedulingKnobs)
        assert not names & set(kind.__annotations__)
    for command in COMMANDS:
        app = cli.app
        for word in command.split():
            app = app[word]
        arguments = app.assemble_argument_collection(parse_docstring=True)
        explained = {argument.name: argument.parameter.help for argument in arguments}
        assert all(explained[f"--{name.replace('_', '-')}"] for name in names)


def test_all_at_once_reach_the_schedulers_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real engine in Python, and a real simulation with a file: what the headers of their logs say."""
    chosen = {knob.name: other(knob) for knob in KNOBS}
    monkeypatch.chdir(tmp_path)
    write_tiny_engine_model(tmp_path / "model", CONFIGS["llama"])
    with LLM("model", executor="inproc", dtype="float32", kv_tokens=100, threads_per_device=1,
             event_log=Path("served"), **chosen) as llm:  # fmt: skip
        served = llm.engine.core.scheduler.config
    table = "".join(f"{name} = {as_toml(value)}\n" for name, value in chosen.items())
    Path("longspan.toml").write_text(f"[simulate]\n{table}")
    assert cli.run(["simulate", "--num-requests", "3", "--event-log", "simulated"]) == 0
    for name in ("served", "simulated"):
        header = json.loads(Path(name).read_text().partition("\n")[0])
        config = {knob: header["config"][knob] for knob in chosen}
        assert config == {knob: getattr(served, knob) for knob in chosen} == chosen | {"policy": "medha"}
        assert header["options"] == options_of(create_policy("medha")) | {"max_space_share": 0.25}
