"""The engine through its public interface, on a tiny model with random weights; instances are threads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan import LLM, SamplingParams
from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.errors import ConfigError, EngineDeadError, EngineDrainingError, QueueFullError, RequestError
from longspan.metrics.event_log import replay
from tests.models.tiny import write_tiny_model

KV_TOKENS = 120


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512)


def config(folder: Path, **settings) -> EngineConfig:
    chosen = {"instances": 2, "kv_tokens": KV_TOKENS, "dtype": "float32", "threads_per_device": 1, **settings}
    return EngineConfig(model=str(folder), executor="inproc", **chosen)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(tiny: Path, runner: asyncio.Runner) -> Iterator[AsyncLLM]:
    engine = runner.run(start_engine(config(tiny)))
    yield engine
    runner.run(engine.close())


def greedy(max_tokens: int, **more) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **more)


LOADS = st.lists(
    st.tuples(st.integers(1, 150), st.integers(1, 40), st.one_of(st.none(), st.integers(0, 10))),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=20)
@given(load=LOADS)
def test_after_any_load_and_any_abort_all_slots_are_free(
    engine: AsyncLLM, runner: asyncio.Runner, load: list[tuple[int, int, int | None]]
) -> None:
    """Each request: (prompt tokens, max_tokens, tokens after which its client leaves)."""

    async def one(number: int, prompt: int, max_tokens: int, leaves_after: int | None) -> int:
        got = 0
        stream = engine.generate([5 + number] * prompt, greedy(max_tokens), f"r{number}")
        async for output in stream:
            got += len(output.token_ids)
            if got == leaves_after:
                break
        await stream.aclose()
        return got

    async def all_of_them() -> list[int]:
        counts = await asyncio.gather(*(one(n, *request) for n, request in enumerate(load)))
        await engine.idle()
        return counts

    counts = runner.run(all_of_them())
    for got, (_, max_tokens, leaves_after) in zip(counts, load, strict=True):
        assert got == min(max_tokens, leaves_after or max_tokens)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_tokens_used) == (0, 0, 0)
    engine.core.scheduler.check_invariants()
    assert not engine.core.in_flight and not engine.core.dispatch.emitters


def test_a_seed_gives_the_same_text_whatever_the_parallelism(tiny: Path) -> None:
    texts = set()
    for shape in ({"instances": 1}, {"instances": 3}, {"instances": 1, "tp": 2}, {"instances": 2, "tp": 2}):
        with LLM(str(tiny), executor="inproc", dtype="float32", kv_tokens=200, threads_per_device=1, **shape) as llm:
            params = SamplingParams(max_tokens=20, seed=7, top_p=0.9, repetition_penalty=1.2, ignore_eos=True)
            answers = llm.generate([list(range(10, 150)), "Hello there", [3, 4, 5]], params)
            texts.add(tuple(answer.token_ids for answer in answers))
    assert len(texts) == 1


def test_nodes_change_no_token_and_bound_a_request(tiny: Path, tmp_path: Path) -> None:
    """Each instance is a node of its own."""
    prompts, answers = [list(range(10, 10 + length)) for length in (100, 3, 50, 80)], []
    for nodes in ({}, {"node_instances": 1, "event_log": tmp_path / "log"}):
        with LLM(str(tiny), instances=2, executor="inproc", dtype="float32", kv_tokens=200, threads_per_device=1,
                 **nodes) as llm:  # fmt: skip
            answers.append([answer.token_ids for answer in llm.generate(prompts, greedy(20))])
            if nodes:
                with pytest.raises(RequestError, match="one node"):
                    llm.generate([[5] * 190], greedy(11))
    assert answers[0] == answers[1]
    assert replay(tmp_path / "log") is None


def test_preemption_changes_no_token(tiny: Path) -> None:
    """A pool too small for all at once: somebody is preempted and computed again."""
    prompts = [[10 + n] * 20 for n in range(4)]

    def run(kv_tokens: int) -> tuple[list[tuple[int, ...]], int]:
        with LLM(str(tiny), executor="inproc", dtype="float32", kv_tokens=kv_tokens, threads_per_device=1) as llm:
            return [c.token_ids for c in llm.generate(prompts, greedy(300))], llm.stats().num_preemptions

    roomy, none = run(2000)
    tight, some = run(220)
    assert none == 0 < some
    assert tight == roomy


def test_penalties_survive_a_change_of_master(tiny: Path) -> None:
    """The sampling state goes with the request: counts of earlier tokens are not forgotten."""
    from longspan.core.policies.fixed import FixedPolicy

    def run(policy: FixedPolicy) -> tuple[int, ...]:
        with LLM(str(tiny), instances=2, executor="inproc", dtype="float32", kv_tokens=200, threads_per_device=1,
                 lookahead=False, policy=policy) as llm:  # fmt: skip
            return llm.generate([[7, 8, 9]], greedy(30, frequency_penalty=2.0, repetition_penalty=1.5))[0].token_ids

    assert run(FixedPolicy([0])) == run(FixedPolicy([0, 1], masters=lambda i: [i % 2]))


async def test_a_full_queue(tiny: Path) -> None:
    engine = await start_engine(config(tiny, max_waiting=1, max_requests_per_master=1))
    streams = [engine.generate([5] * 100, greedy(100), f"r{n}") for n in range(4)]
    tasks = [asyncio.ensure_future(anext(stream)) for stream in streams]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(outcome, QueueFullError) and outcome.retry_after_s > 0 for outcome in done)
    assert not all(isinstance(outcome, QueueFullError) for outcome in done)
    for stream in streams:
        await stream.aclose()
    await engine.idle()
    await engine.close()


async def test_abort_drain_and_close(tiny: Path) -> None:
    engine = await start_engine(config(tiny))
    stream = engine.generate([5] * 10, greedy(100), "r")
    await anext(stream)
    engine.abort("r")
    rest = [output async for output in stream]
    assert rest[-1].finish_reason == "abort"
    await engine.drain(timeout_s=60)
    with pytest.raises(EngineDrainingError):
        await anext(engine.generate([5], greedy(1), "late"))
    await engine.close()
    with pytest.raises(EngineDeadError):
        await anext(engine.generate([5], greedy(1), "later"))


@pytest.mark.parametrize(("prompt", "params", "says"), [
    ([], greedy(1), "empty"),
    ([5, 10**6], greedy(1), "token id 1000000, but the model knows only those from 0 to 347"),
    ([10**30], greedy(1), f"token id {10**30}, but"),
    ([5, -1], greedy(1), "token id -1, but"),
    ([1.5], greedy(1), "no whole numbers"),
    ([5] * 240, greedy(1), "240 tokens.*240"),
    ([5] * 200, greedy(41), "241.*lower max_tokens to 40"),
])  # fmt: skip
def test_refused_requests(engine: AsyncLLM, prompt: list[int], params: SamplingParams, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        engine.validate(prompt, params)


def test_refused_settings(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown settings instancez; there are .*instances"):
        LLM(str(tiny), instancez=2)
    with pytest.raises(ConfigError, match=r"max_model_len is 1000, .* 512"):
        LLM(str(tiny), executor="inproc", max_model_len=1000)
    with pytest.raises(ConfigError, match="no policy 'nobody'"):
        LLM(str(tiny), executor="inproc", policy="nobody")


def test_one_failing_worker_fails_the_start(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be split"):
        LLM(str(tiny), instances=1, tp=3, executor="inproc")


@pytest.mark.parametrize("policy", ["medha", "sarathi:chunk_size=20"])
def test_chunks_in_mixed_batches_over_shards_change_no_token(tiny: Path, policy: str) -> None:
    """Short and long prompts together, in small chunks, the long ones' KV on all three instances."""
    prompts = [[10 + n] * length for n, length in enumerate((5, 300, 20, 250, 60, 1, 130, 40))]

    def run(instances: int, **settings) -> list[tuple[int, ...]]:
        with LLM(str(tiny), executor="inproc", dtype="float32", kv_tokens=500, threads_per_device=1,
                 instances=instances, **settings) as llm:  # fmt: skip
            answers = [c.token_ids for c in llm.generate(prompts, greedy(24))]
            llm.wait_idle()
            assert llm.stats().kv_tokens_used == 0
            return answers

    chunked = run(3, policy=f"{policy}:kvp_tokens_per_shard=64", max_batch_tokens=16)
    assert chunked == run(3)
