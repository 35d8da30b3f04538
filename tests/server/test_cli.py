from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from longspan import __version__
from longspan.config import EngineConfig
from longspan.core.policies import POLICIES
from longspan.entrypoints import cli, serve
from longspan.entrypoints.bench import serve as bench_serve
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.toml_config import TABLES
from longspan.errors import LongspanError

Started = list[tuple[EngineConfig, ServerConfig]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """Instead of serving: what would have been served. In a folder of its own."""
    calls: Started = []

    def record(engine: EngineConfig, server: ServerConfig, **_: object) -> int:
        calls.append((engine, server))
        return 0

    monkeypatch.setattr(serve, "serve", record)
    monkeypatch.chdir(tmp_path)
    return calls


def test_defaults(started: Started) -> None:
    assert cli.run(["serve"]) == 0
    assert started == [(EngineConfig(), ServerConfig())]


def test_options_reach_the_two_configs(started: Started) -> None:
    options = (
        "--instances 4 --tp 2 --dtype float32 --max-model-len 9 --kv-tokens 77 --policy p --no-lookahead"
    )
    more = "--served-model-name m --event-log e.jsonl --host 0.0.0.0 --port 0 --max-body-mb 1.5"
    assert cli.run(["serve", "some/model", *options.split(), *more.split()]) == 0
    assert started == [
        (
            EngineConfig(
                model="some/model",
                served_model_name="m",
                instances=4,
                tp=2,
                dtype="float32",
                max_model_len=9,
                kv_tokens=77,
                policy="p",
                lookahead=False,
                event_log=Path("e.jsonl"),
            ),
            ServerConfig(host="0.0.0.0", port=0, max_body_mb=1.5),
        )
    ]


def test_command_line_beats_environment_beats_file(
    started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "longspan.toml").write_text(
        '[serve]\nmodel = "from-file"\ninstances = 5\nkv-tokens = 500\n'
        "max_model_len = 50\nlookahead = false\n"
    )
    monkeypatch.setenv("LONGSPAN_SERVE_INSTANCES", "6")
    monkeypatch.setenv("LONGSPAN_SERVE_KV_TOKENS", "600")
    assert cli.run(["serve", "--kv-tokens", "700"]) == 0
    ((engine, server),) = started
    assert (engine.kv_tokens, engine.instances, engine.max_model_len) == (700, 6, 50)
    assert (engine.model, engine.lookahead, engine.tp, server) == ("from-file", False, 1, ServerConfig())


def test_the_model_by_argument_environment_or_file(
    started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "longspan.toml").write_text('[serve]\nmodel = "from-file"\n')
    cli.run(["serve"])
    monkeypatch.setenv("LONGSPAN_SERVE_MODEL", "from-environment")
    cli.run(["serve"])
    cli.run(["serve", "--model", "from-option"])
    cli.run(["serve", "from-argument"])
    assert [engine.model for engine, _ in started] == [
        "from-file", "from-environment", "from-option", "from-argument",
    ]  # fmt: skip


def test_rope_scaling_in_every_place(started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    yarn = '{"rope_type": "yarn", "factor": 4.0}'
    cli.run(["serve", "--rope-scaling", yarn])
    monkeypatch.setenv("LONGSPAN_SERVE_ROPE_SCALING", yarn)
    cli.run(["serve"])
    monkeypatch.delenv("LONGSPAN_SERVE_ROPE_SCALING")
    for text in (f"rope_scaling = '{yarn}'", '[serve.rope_scaling]\nrope_type = "yarn"\nfactor = 4.0'):
        (tmp_path / "longspan.toml").write_text(f"[serve]\n{text}\n")
        cli.run(["serve"])
    assert [engine.rope_scaling for engine, _ in started] == 4 * [yarn]


def test_another_file(started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "longspan.toml").write_text("[serve]\nport = 1\n")
    (tmp_path / "other.toml").write_text("[serve]\nport = 2\n")
    cli.run(["serve", "--config", "other.toml"])
    monkeypatch.setenv("LONGSPAN_SERVE_CONFIG", "other.toml")
    cli.run(["serve"])
    assert [server.port for _, server in started] == [2, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[serve]\ninstnaces = 2", "unknown setting instnaces; these are known: "),
        ("[serve]\nno_lookahead = true", "unknown setting no_lookahead"),
        ("[serve.policy]\nmargin = 2", "[serve.policy] needs a name, such as \"medha\", beside the options"),
        ("[serve.policy]\nname = 2", "[serve.policy] needs a name"),
        ("[serve.policy]\nname = 'medha'\nx = [1]", "[serve.policy]: option x is [1], but must be a number, true"),
        ("[serve.policy]\nname = 'medha'\nx = 'a:b'", "a text without a colon"),
        ("[serve]\nchunk_size = 9", "chunk_size is an option of the policy now, as in policy sarathi:chunk_size=512"),
        ("[serve]\nconfig = 'x'", "unknown setting config"),
        ("[server]\nport = 2", "unknown server; each command's settings go into its table: [serve], "),
        ("[bench]\nrate = 2", "unknown bench.rate"),
        ("serve = 2", "unknown serve"),
        ("port = 2", "unknown port"),
        ("[serve]\nport = [2]", "port"),
        ("[serve]\nkv_tokens = nan", "kv_tokens"),
        ("[serve]\npp = 2\npp_layers = [1, 'x']", "pp_layers"),
        ("x = " + "[" * 5000, "not valid TOML"),
        ("[serve]\nport = 'x'", "port"),
        ("[serve\n", "not valid TOML: Expected ']'"),
    ],
)
def test_a_bad_file(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    (tmp_path / "longspan.toml").write_text(text)
    assert cli.run(["serve"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("longspan: ") and error.count("\n") == 1
    assert not started


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("[serve]\npolicy = 'medha'", "medha"),
        ("[serve]\npolicy = 'medha:max_space_share=0.3'", "medha:max_space_share=0.3"),
        ("[serve.policy]\nname = 'medha'", "medha"),
        ("[serve.policy]\nname = 'medha'\nmax_space_share = 0.3\nkvp_tokens_per_shard = 4096",
         "medha:max_space_share=0.3:kvp_tokens_per_shard=4096"),
        ("[serve.policy]\nname = 'loongserve'\nscale_up = false", "loongserve:scale_up=false"),
        ("[serve.policy]\nname = 'loongserve:scale_up=false'\nmax_masters = 1",
         "loongserve:scale_up=false:max_masters=1"),
    ],
)
def test_a_policy_in_a_file(started: Started, tmp_path: Path, text: str, policy: str) -> None:
    (tmp_path / "longspan.toml").write_text(text)
    assert cli.run(["serve"]) == 0
    assert cli.run(["serve", "--policy", "vllm"]) == 0
    assert [engine.policy for engine, _ in started] == [policy, "vllm"]


@pytest.mark.parametrize("setting", ["chunk_size", "kvp_tokens_per_shard"])
@pytest.mark.parametrize("command", ["serve", "simulate", "bench latency"])
def test_settings_that_are_options_of_policies_now_are_told(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, command: str
) -> None:
    option = f"--{setting.replace('_', '-')}"
    assert cli.run([*command.split(), option, "9"]) == 2
    assert cli.run([*command.split(), f"{option}=9"]) == 2
    monkeypatch.setenv(f"LONGSPAN_{command.replace(' ', '_')}_{setting}".upper(), "9")
    assert cli.run(command.split()) == 2
    told = f"longspan: {setting} is an option of the policy now, as in policy "
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith(told) for line in lines)
    assert not started


@pytest.mark.parametrize("command", ["serve no-such-model", "simulate", "bench latency no-such-model", "plan"])
@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("medha:max_share=0.3", r"policy medha: there is no option max_share; its options, and their defaults, are .*"
         r"max_space_share \(0.4\)"),
        ("medha:max_space_share=2", r"policy medha: max_space_share is 2.0, but must be at least 0 and below 1; its"),
        ("sarathi:chunk_size=many", r"policy sarathi: chunk_size is 'many', but must be a whole number; its options"),
        ("magic", "there is no policy 'magic'; there are: alise, "),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, policy: str,
    told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    more = ["--port", "0"] if command.startswith("serve") else []
    option = "--policies" if command == "plan" else "--policy"
    assert cli.run([*command.split(), *more, option, policy]) == 2
    assert re.search(f"^longspan: {told}", capsys.readouterr().err, re.MULTILINE)


def test_an_old_name_of_a_policy_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["simulate", "--num-requests", "2", "--policy", "loongserve_reactive"]) == 0
    told = "longspan: the policy loongserve_reactive is written loongserve:scale_down=reactive now\n"
    assert capsys.readouterr().err.count(told) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("serve --instances 0", "instances is 0, but must be at least 1"),
        ("serve --instances many", "many"),
        ("serve --instances 1.5", "instances is 1.5, but must be a whole number"),
        ("serve --kv-tokens 1e.0", "kv_tokens is 1e.0, but must be a whole number"),
        ("serve --pp 2 --pp-layers 3 --pp-layers 2.5", "pp_layers is 2.5, but must be a whole number"),
        ("bench latency --batch-size 0.5", "batch_size is 0.5, but must be a whole number"),
        ("simulate --seed 1.5", "seed is 1.5, but must be a whole number"),
        ("serve --event-log-max-bytes 4096", "event_log_max_bytes needs event_log"),
        ("serve --event-log e.jsonl --event-log-keep 2", "event_log_keep needs event_log_max_bytes"),
        ("serve --dtype float8", "float32"),
        ("serve --quantization int3", "int8"),
        ("serve --port 70000", "port is 70000"),
        ("serve --max-body-mb nan", "max_body_mb"),
        ("serve --prot 80", "--port"),
        ("serve one two", "two"),
        ("serve --config nowhere.toml", "nowhere.toml cannot be read"),
        ("serve --config .", "it is a folder"),
        ("bench serve --config nowhere.toml", "nowhere.toml cannot be read"),
        ("sreve", "serve"),
        ("replay", "file"),
        ("replay --frob x", "--frob"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    started: Started, capsys: pytest.CaptureFixture[str], arguments: str, says: str
) -> None:
    assert cli.run(arguments.split()) == 2
    error = capsys.readouterr().err
    assert says.lower() in error.lower() and error.startswith("longspan: ") and error.count("\n") == 1
    assert not started


def test_lists_come_from_every_source(
    started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "longspan.toml").write_text("[serve]\npp = 2\npp_layers = [1, 2]\n")
    assert cli.run(["serve"]) == 0
    monkeypatch.setenv("LONGSPAN_SERVE_PP_LAYERS", "3 4")
    assert cli.run(["serve"]) == 0
    assert cli.run(["serve", "--pp-layers", "5", "--pp-layers", "6"]) == 0
    assert [engine.pp_layers for engine, _ in started] == [(1, 2), (3, 4), (5, 6)]


@pytest.mark.parametrize("value", ["1.5", "'1.5'", "2.0"])
def test_counts_of_a_file_are_whole_numbers(
    started: Started, capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str
) -> None:
    (tmp_path / "longspan.toml").write_text(f"[serve]\nmax_waiting = {value}\n")
    assert cli.run(["serve"]) == 2
    assert "max_waiting is" in capsys.readouterr().err and not started


def test_fractions_of_what_is_not_counted(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may look like a number, and seconds have fractions."""
    monkeypatch.setenv("LONGSPAN_SERVE_TPOT_SLO_S", "0.25")
    assert cli.run(["serve", "v1.5", "--served-model-name", "1.5", "--max-body-mb", "1.5", "--host", "127.0.0.1"]) == 0
    ((engine, server),) = started
    assert (engine.model, engine.served_model_name, engine.tpot_slo_s, server.max_body_mb) == ("v1.5", "1.5", 0.25, 1.5)


def test_every_command_with_settings_has_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for table in TABLES:
        (tmp_path / "longspan.toml").write_text(f"[{table}]\nnonsense = 1\n")
        assert cli.run(table.split(".")) == 2
    commands = [name for name in cli.app if not name.startswith("-")]
    without = {"models", "policies", "replay", "explain", "export-trace", "dashboard", "version"}
    assert {table.partition(".")[0] for table in TABLES} == {*commands} - without


def test_tables_of_other_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One file for all commands: each reads its own table, lists included."""
    taken: list[tuple[LengthOptions, ArrivalOptions]] = []

    def record(lengths: LengthOptions, arrivals: ArrivalOptions, options: object) -> int:
        taken.append((lengths, arrivals))
        return 0

    monkeypatch.setattr(bench_serve, "serve", record)
    text = "[serve]\nport = 1\n[bench.serve]\ntrace = ['a.csv', 'b.csv']\nrate = 3\n[bench.latency]\ninput_len = 9\n"
    (tmp_path / "all.toml").write_text(text)
    assert cli.run(["bench", "serve", "--config", str(tmp_path / "all.toml"), "--seed", "4"]) == 0
    ((lengths, arrivals),) = taken
    assert (lengths.trace, lengths.seed, arrivals.rate) == ((Path("a.csv"), Path("b.csv")), 4, 3.0)


def test_a_bad_environment(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGSPAN_SERVE_TP", "two")
    assert cli.run(["serve"]) == 2
    assert "two" in capsys.readouterr().err


def test_a_server_that_fails_to_start(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise LongspanError("port 8000 is in use already")

    monkeypatch.setattr(serve, "serve", fail)
    assert cli.run(["serve"]) == 1
    assert capsys.readouterr().err == "longspan: port 8000 is in use already\n"


def test_help_explains_every_option_and_loads_no_model_code() -> None:
    check = (
        "import sys; from longspan.entrypoints import cli\n"
        "cli.run(['serve', '--help']); cli.run(['--help'])\n"
        "sys.exit(bool({'torch', 'transformers', 'openai', 'numpy', 'fastapi'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    explained = {
        argument.name: argument.parameter.help
        for argument in cli.app["serve"].assemble_argument_collection(parse_docstring=True)
    }
    for field in (*fields(EngineConfig), *fields(ServerConfig)):
        option = f"--{field.name.replace('_', '-')}"
        assert option in shown.stdout
        assert explained[option]
    assert set(re.findall(r"\w+", explained["--policy"] or "")) >= POLICIES.keys()


def test_policies_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["policies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in lines if line and line[0].islower()} == set(POLICIES)
    (medha,) = (line for line in lines if line.startswith("medha:"))
    assert {"kvp_tokens_per_shard=none", "max_fixed_share=0.8", "max_space_share=0.4"} <= set(medha.split(":"))
    assert lines[lines.index(medha) + 1].startswith("    Medha's: adaptive chunks")
    assert any(line.startswith("    max_space_share: of an iteration") for line in lines)
    assert "    loongserve_no_scale_up: loongserve:scale_up=false" in lines


@pytest.mark.parametrize("asked", ["version", "--version", "-V"])
def test_version(capsys: pytest.CaptureFixture[str], asked: str) -> None:
    assert cli.run([asked]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models"]) == 0
    shown = capsys.readouterr().out
    assert "smollm2-135m" in shown and "LlamaForCausalLM" in shown
