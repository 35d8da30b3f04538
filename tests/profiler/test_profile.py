"""A real profile of a tiny model, from the command line to the engine that uses it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longspan import LLM, SamplingParams
from longspan.core.costs.cost_model import Chunk, CostModel
from longspan.core.news import News
from longspan.core.policies.elastic_fcfs import ElasticFcfs
from longspan.core.state import SchedulerState
from longspan.entrypoints import cli
from longspan.entrypoints.profile import parse_seconds
from longspan.errors import ConfigError, EngineDeadError
from longspan.metrics.event_log import read_event_log
from longspan.sib import read_sib
from longspan.worker.messages import BatchDone, Run
from longspan.worker.model_runner import ModelRunner
from tests.models.tiny import write_tiny_model

# Budgets are generous where everything must be measured: a profile of this model ends by itself, after five rounds.
SETTINGS = ["--executor", "inproc", "--dtype", "float32", "--threads-per-device", "1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=400)


@pytest.fixture(scope="module")
def sib_file(tiny: Path) -> Path:
    path = tiny.parent / "sib.json"
    assert cli.run(["profile", str(tiny), *SETTINGS, "--instances", "2", "--out", str(path), "--budget", "4m"]) == 0
    return path


class Predicting(ElasticFcfs):
    """Needs a cost model, and keeps the one that it gets."""

    name = "predicting"
    needs_cost_model = True
    keeps_on_one_instance = False
    seen: CostModel | None = None

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        self.seen = state.cost_model
        super().schedule(state, news, now)


def start(tiny: Path, policy: ElasticFcfs | None = None, **settings) -> LLM:
    chosen = {"instances": 2, "executor": "inproc", "dtype": "float32", "threads_per_device": 1, **settings}
    return LLM(str(tiny), policy=policy, **chosen)


def ask(llm: LLM) -> None:
    llm.generate([[5] * 20], SamplingParams(max_tokens=3, ignore_eos=True))
    llm.wait_idle()


def test_what_a_profile_holds(sib_file: Path) -> None:
    sib = read_sib(sib_file)
    assert (sib.deployment.model, sib.deployment.instances, sib.deployment.dtype) == ("tiny", 2, "float32")
    assert sib.deployment.processor and sib.deployment.kernels and sib.deployment.threads_per_device == 1
    shapes = [point.shape for point in sib.measurements.iterations]
    assert {shape.num_instances for shape in shapes} == {1, 2}
    assert {(s.num_instances, s.num_masters) for s in shapes if s.kind == "decode"} == {(1, 1), (2, 1), (2, 2)}
    assert any(context for shape in shapes for _, context in shape.chunks), "chunks that meet context"
    assert {shape.kind for shape in shapes} == {"prefill", "decode", "mixed"}
    assert sib.measurements.unqueued_s >= 0
    assert sib.measurements.migrations
    assert all(point.seconds > 0 for point in (*sib.measurements.iterations, *sib.measurements.migrations))
    kinds = ("decode", "prefill")
    found = sib.measurements.interference
    assert [(one.kind, one.beside) for one in found] == [(kind, other) for kind in kinds for other in kinds]
    assert all(one.factor > 0 and one.samples for one in found)
    assert sib.cost_model.prefill([Chunk(300)], 1) > sib.cost_model.prefill([Chunk(1)], 1) > 0


def test_the_check_compares_other_points(sib_file: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", str(tiny), "--check", str(sib_file), "--budget", "4m", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    measured = json.loads(sib_file.read_text())["measurements"]
    seen = [point["shape"] for point in measured["iterations"]] + [p["num_tokens"] for p in measured["migrations"]]
    assert result["points"] and all(point["work"] not in seen for point in result["points"])
    assert {"prefill", "decode", "mixed", "migration", "all"} == result["errors"].keys()
    everything = result["errors"]["all"]
    errors = [abs(point["relative_error"]) for point in result["points"]]
    assert everything["count"] == len(errors)
    assert (everything["mean"], everything["largest"]) == pytest.approx((sum(errors) / len(errors), max(errors)))
    for point in result["points"]:
        assert point["relative_error"] == pytest.approx(point["predicted"] / point["measured"] - 1)


def test_tables(sib_file: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", str(tiny), "--check", str(sib_file), "--budget", "1s"]) == 0
    shown = capsys.readouterr()
    assert "measured, ms  predicted, ms" in shown.out and "relative errors at points that it has not seen" in shown.out
    assert shown.err.count(" s  ") >= 2, "plain lines of progress, as this is no terminal"


def test_a_file_that_does_not_fit_is_refused(sib_file: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="instances is 2 in the file, but 1 here"):
        start(tiny, sib=sib_file, instances=1)
    assert cli.run(["profile", str(tiny), "--check", str(sib_file), "--dtype", "bfloat16"]) == cli.BAD_USAGE
    assert "dtype is 'float32' in the file, but 'bfloat16' here" in capsys.readouterr().err


def test_serving_with_it(sib_file: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy, log = Predicting(), tmp_path / "events.jsonl"
    with caplog.at_level(logging.INFO), start(tiny, policy, sib=sib_file, event_log=log) as llm:
        ask(llm)
    assert policy.seen == read_event_log(log).cost_model == read_sib(sib_file).cost_model
    assert "estimated" not in caplog.text


def test_serving_without_it(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Estimated at the start, said in one line, and nothing of it is left."""
    policy, log = Predicting(), tmp_path / "events.jsonl"
    with caplog.at_level(logging.INFO), start(tiny, policy, event_log=log) as llm:
        assert llm.stats().num_batches == 0 and llm.stats().kv_tokens_used == 0
        ask(llm)
    assert caplog.text.count("estimated from a few batches") == 1
    assert policy.seen is not None and policy.seen == read_event_log(log).cost_model
    assert policy.seen.prefill([Chunk(300)], 1) > policy.seen.prefill([Chunk(30)], 1) > 0
    assert policy.seen.migration(100) > 0


def test_policies_that_do_not_predict_cost_nothing(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), start(tiny, ElasticFcfs()) as llm:
        ask(llm)
    assert "estimated" not in caplog.text


@pytest.mark.parametrize("settings", [{"max_model_len": 4}, {"max_model_len": 9}, {"kv_tokens": 9, "instances": 4}])
def test_requests_too_short_to_measure_with_are_told(tiny: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="predicts times, and to measure them takes 10"):
        start(tiny, Predicting(), **settings)
    with start(tiny, Predicting(), max_model_len=10, instances=2) as llm:
        assert llm.generate([[5] * 2], SamplingParams(max_tokens=2, ignore_eos=True))


def test_a_worker_that_fails_while_the_speed_is_measured_is_told(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ModelRunner.run

    def fails(self: ModelRunner, command: Run, **hooks: Callable[[], None]) -> BatchDone:
        if sum(segment.length for segment in command.batch.segments) > 200:
            raise MemoryError("out of memory")
        return run(self, command, **hooks)

    monkeypatch.setattr(ModelRunner, "run", fails)
    with pytest.raises(EngineDeadError, match="out of memory"):
        start(tiny, Predicting(), instances=1)


def test_one_instance_alone(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.json"
    assert cli.run(["profile", str(tiny), *SETTINGS, "--instances", "1", "--out", str(out), "--budget", "4m"]) == 0
    sib = read_sib(out)
    assert sib.cost_model.max_instances == 1 and not sib.measurements.migrations


@pytest.mark.parametrize(
    ("text", "seconds"), [("120s", 120), ("2m", 120), ("1.5h", 5400), ("7", 7), (" 3 s ", 3)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0s", "3 days", "1s2"])
def test_bad_budgets(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", "--budget", text]) == cli.BAD_USAGE
    assert "must be a time like 120s or 5m" in capsys.readouterr().err


def test_places_that_cannot_be(sib_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["profile", "--out", str(tmp_path / "no folder" / "sib.json")]) == cli.BAD_USAGE
    assert "there is no folder" in capsys.readouterr().err
    assert cli.run(["profile", "--check", str(tmp_path / "nowhere.json")]) == cli.BAD_USAGE
    assert "nowhere.json cannot be read" in capsys.readouterr().err


def test_a_picture(sib_file: Path, tiny: Path, tmp_path: Path) -> None:
    picture = tmp_path / "errors.png"
    arguments = ["profile", str(tiny), "--check", str(sib_file), "--budget", "1s", "--plot", str(picture)]
    assert cli.run(arguments) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_is_refused_before_anything_is_measured(sib_file: Path) -> None:
    check = (
        "import sys; sys.modules['matplotlib'] = None; from longspan.entrypoints import cli\n"
        f"sys.exit(cli.run(['profile', '--check', {str(sib_file)!r}, '--plot', 'x.png']))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == cli.BAD_USAGE
    assert done.stderr == "longspan: --plot needs matplotlib; install it with: pip install matplotlib\n"
