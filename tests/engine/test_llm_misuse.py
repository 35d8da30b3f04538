"""What programs do to `LLM` beside what it is for: values of other types, many threads, Ctrl-C, use after the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longspan import LLM, SamplingParams
from longspan.core.policies.elastic_fcfs import ElasticFcfs
from longspan.errors import ConfigError, EngineDeadError, RequestError
from longspan.metrics.event_log import replay
from longspan.service_level import ServiceLevel
from tests.models.tiny import write_tiny_model

MAX_WAITING = 4
ENDLESS = SamplingParams(max_tokens=1000, ignore_eos=True)
SHORT = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1024)


def start(folder: Path, **settings: Any) -> LLM:
    return LLM(
        folder, instances=1, kv_tokens=2048, dtype="float32", threads_per_device=1, executor="inproc",
        max_waiting=MAX_WAITING, **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with start(tiny) as llm:
        yield llm


def running(llm: LLM, count: int) -> None:
    """Waits until so many requests run."""
    while llm.stats().num_running != count:
        pass


@pytest.mark.parametrize("policy", [5, ElasticFcfs, object()])
def test_what_is_no_policy_is_refused_before_anything_starts(policy: Any) -> None:
    with pytest.raises(ConfigError, match="must be a name, or an object of a class that extends"):
        LLM("no-such-model", policy=policy)


def test_a_setting_that_is_an_option_of_a_policy_is_told() -> None:
    with pytest.raises(ConfigError, match="chunk_size is an option of the policy now, as in policy sarathi:chunk_size"):
        LLM("no-such-model", chunk_size=16)
    with pytest.raises(ConfigError, match="policy sarathi: chunk_size is 0, but must be at least 1; its options"):
        LLM("no-such-model", policy="sarathi:chunk_size=0")


def test_an_old_name_of_a_policy_is_told_once(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(tiny, policy="loongserve_no_scale_up") as llm:
        assert llm.engine.core.scheduler.policy.options.scale_up is False
    told = "the policy loongserve_no_scale_up is written loongserve:scale_up=false now"
    assert [record.getMessage() for record in caplog.records].count(told) == 1


class Duck:
    """A policy that extends nothing."""

    name, needs_cost_model, keeps_on_one_instance = "duck", False, False

    def __init__(self) -> None:
        policy = ElasticFcfs()
        self.schedule, self.looks_ahead = policy.schedule, policy.looks_ahead


def test_a_policy_that_extends_nothing_serves_and_its_log_replays(tiny: Path, tmp_path: Path) -> None:
    with start(tiny, policy=Duck(), event_log=tmp_path / "log") as llm:
        assert len(llm.generate([[5] * 9], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3
    assert replay(tmp_path / "log", Duck()) is None


@pytest.mark.parametrize(
    ("field", "value", "settled"),
    [
        ("stop", "end", ("end",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop_token_ids", [3, np.int64(4)], (3, 4)),
        ("max_tokens", np.int32(3), 3),
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", 0, 0),
    ],
)
def test_values_that_say_the_same_are_taken(llm: LLM, field: str, value: Any, settled: Any) -> None:
    params = SamplingParams(**{"max_tokens": 2, field: value})
    assert getattr(params, field) == settled
    assert llm.generate("one two", params)[0].finish_reason is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", None), ("stop", b"ab"), ("stop", (1,)), ("stop_token_ids", "12"), ("stop_token_ids", 5.0),
        ("max_tokens", True), ("max_tokens", 2.5), ("max_tokens", "3"), ("max_tokens", float("inf")), ("top_k", None),
        ("top_k", 1.5), ("seed", "1"), ("logprobs", True), ("temperature", "hot"), ("temperature", None),
        ("temperature", 1j), ("ignore_eos", "no"), ("service", None), ("service", {}),
    ],
)  # fmt: skip
def test_params_of_another_type_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field} is .* must be") as error:
        SamplingParams(**{field: value})
    assert (error.value.param, error.value.code) == (field, "invalid_type")


@pytest.mark.parametrize("level", [{"ttft_s": "1"}, {"tpot_s": 1j}, {"priority": 0.5}, {"priority": True}])
def test_service_levels_of_another_type_are_refused(level: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(level))} is .* must be"):
        ServiceLevel(**level)


@pytest.mark.parametrize(
    ("prompts", "lengths"),
    [
        (np.arange(1, 6), [5]),
        (np.arange(1, 7).reshape(2, 3), [3, 3]),
        ((ids for ids in ([1, 2], [3])), [2, 1]),
        (range(1, 4), [3]),
        ([], []),
    ],
)
def test_prompts_come_from_whatever_has_an_order(llm: LLM, prompts: Any, lengths: list[int]) -> None:
    assert [len(one.prompt_token_ids) for one in llm.generate(prompts, SHORT)] == lengths


@pytest.mark.parametrize(
    "prompts", [None, 5, b"abc", {"prompt": "x"}, {"a"}, [None], ["a", 5], [[1.5]], [True, False], [[[1]]], "\ud800"]
)
def test_other_prompts_are_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError) as error:
        llm.generate(prompts, SHORT)
    assert error.value.param == "prompt"


@pytest.mark.parametrize("params", [{"max_tokens": 3}, "x", 7, [None], [], [SHORT, SHORT]])
def test_other_params_are_refused(llm: LLM, params: Any) -> None:
    with pytest.raises(ConfigError, match="param"):
        llm.generate("a", params)


def test_threads_share_the_room_for_waiting_requests(llm: LLM) -> None:
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(llm.generate, ["a b"] * (2 * MAX_WAITING), SHORT) for _ in range(6)]
    assert [len(call.result()) for call in calls] == [2 * MAX_WAITING] * 6


def test_an_interrupted_call_takes_its_requests_with_it(llm: LLM) -> None:
    def interrupt() -> None:
        running(llm, 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = llm.stats().num_batches
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], ENDLESS)
    watcher.join()
    llm.wait_idle()
    assert llm.stats().num_batches - before < ENDLESS.max_tokens
    assert len(llm.generate("a", SHORT)) == 1


def test_closing_fails_the_calls_of_other_threads_and_all_later_ones(tiny: Path) -> None:
    llm = start(tiny)
    with ThreadPoolExecutor(4) as pool:
        call: Future[Any] = pool.submit(llm.generate, ["a", "b"], ENDLESS)
        running(llm, 2)
        for closing in [pool.submit(llm.close) for _ in range(3)]:
            closing.result()
        assert isinstance(call.exception(), EngineDeadError)
    llm.close()
    for use in (lambda: llm.generate("a"), llm.stats, llm.wait_idle):
        with pytest.raises(EngineDeadError, match="the engine was closed"):
            use()
