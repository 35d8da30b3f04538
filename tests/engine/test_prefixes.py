"""What a request finds computed: its own conversation, others' prompts; and who finds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from longspan import SamplingParams
from longspan.config import EngineConfig
from longspan.engine.assembly import start_engine
from longspan.engine.async_llm import AsyncLLM
from longspan.engine.prefixes import PrefixKeys
from longspan.metrics.event_log import replay
from longspan.outputs import RequestOutput
from longspan.prefix_keys import PrefixHasher
from longspan.service_level import ServiceLevel
from tests.models.tiny import CONFIGS, write_tiny_engine_model

PROMPT = [token % 97 + 3 for token in range(7, 607, 7)]
BLOCK = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_engine_model(folder, CONFIGS["llama"])
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def config(folder: Path, **settings: object) -> EngineConfig:
    chosen = {"kv_tokens": 512, "policy": "elastic_fcfs", "instances": 2, **settings}
    return EngineConfig(
        model=str(folder), executor="inproc", dtype="float32", threads_per_device=1, prefix_block=BLOCK, **chosen
    )  # type: ignore[arg-type]


@pytest.fixture
def engine(folder: Path, runner: asyncio.Runner) -> Iterator[AsyncLLM]:
    engine = runner.run(start_engine(config(folder)))
    yield engine
    engine.core.scheduler.check_invariants()
    runner.run(engine.close())


def greedy(max_tokens: int = 12, **more: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **more)  # type: ignore[arg-type]


class Asker:
    def __init__(self, engine: AsyncLLM, runner: asyncio.Runner) -> None:
        self.engine, self.runner, self.count = engine, runner, 0

    def stream(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[RequestOutput]:
        self.count += 1
        return self.engine.generate(prompt, params, f"r{self.count}")

    def ask(self, prompt: list[int], params: SamplingParams | None = None) -> tuple[int, list[int]]:
        """How many tokens it found, and its answer."""

        async def collect() -> tuple[int, list[int]]:
            outputs = [output async for output in self.stream(prompt, params or greedy())]
            return outputs[0].num_cached_tokens, [token for output in outputs for token in output.token_ids]

        return self.runner.run(collect())


@pytest.fixture
def asker(engine: AsyncLLM, runner: asyncio.Runner) -> Asker:
    return Asker(engine, runner)


def below(tokens: int) -> int:
    """Whole blocks, without the last token."""
    return (tokens - 1) // BLOCK * BLOCK


def test_the_same_prompt_again_computes_its_last_tokens_only(asker: Asker) -> None:
    first = asker.ask(PROMPT)
    again = asker.ask(PROMPT)
    assert first[0] == 0
    assert again == (below(len(PROMPT)), first[1])
    stats = asker.engine.stats()
    assert (stats.num_looked_up, stats.num_found) == (2 * len(PROMPT), again[0])
    assert stats.kv_tokens_used == 0 < stats.kv_tokens_cached


def test_a_chat_finds_its_answers(asker: Asker) -> None:
    talk = list(PROMPT)
    for _ in range(4):
        found, answer = asker.ask(talk)
        _, alone = asker.ask(talk, greedy(cache=False))
        assert answer == alone
        talk += [*answer, 5, 6, 7]
    # The last token of an answer is never fed back, so its KV is not there.
    assert found == below(len(talk) - len(answer) - 2 * 3)


def test_whoever_asks_for_it_finds_and_leaves_nothing(asker: Asker) -> None:
    asker.ask(PROMPT, greedy(cache=False))
    assert asker.engine.stats().kv_tokens_cached == 0
    assert asker.ask(PROMPT)[0] == 0
    assert asker.ask(PROMPT, greedy(cache=False))[0] == 0


def test_salts_and_tenants_keep_requests_apart(asker: Asker) -> None:
    kinds = [
        greedy(), greedy(cache_salt="a"), greedy(cache_salt="b"), greedy(service=ServiceLevel(tenant="a")),
        greedy(service=ServiceLevel(tenant="a"), cache_salt="a"),
    ]  # fmt: skip
    assert [asker.ask(PROMPT, kind)[0] for kind in kinds] == [0] * len(kinds)
    assert [asker.ask(PROMPT, kind)[0] for kind in kinds] == [below(len(PROMPT))] * len(kinds)


def test_tenants_may_share(folder: Path, runner: asyncio.Runner) -> None:
    engine = runner.run(start_engine(config(folder, share_prefixes=True)))
    asker = Asker(engine, runner)
    asker.ask(PROMPT, greedy(service=ServiceLevel(tenant="a")))
    assert asker.ask(PROMPT, greedy(service=ServiceLevel(tenant="b")))[0] == below(len(PROMPT))
    assert asker.ask(PROMPT, greedy(service=ServiceLevel(tenant="b"), cache_salt="s"))[0] == 0
    runner.run(engine.close())


def test_a_prompt_that_was_given_up_goes_on_where_it_was(asker: Asker, runner: asyncio.Runner) -> None:
    async def leave() -> None:
        stream = asker.stream(PROMPT, greedy(64))
        async for output in stream:
            if output.num_output_tokens == 20:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        await asker.engine.idle()

    runner.run(leave())
    assert asker.ask(PROMPT)[0] == below(len(PROMPT))


def test_what_is_needed_least_goes_when_slots_are(folder: Path, runner: asyncio.Runner, tmp_path: Path) -> None:
    """Many conversations in a small pool: nothing is lost of what is needed, and the log replays."""
    log = tmp_path / "log"
    engine = runner.run(start_engine(config(folder, kv_tokens=120, event_log=log)))
    asker = Asker(engine, runner)
    alone = {number: asker.ask([number, *PROMPT[:60]], greedy(cache=False))[1] for number in range(3, 9)}
    found = 0
    for turn in range(18):
        number = 3 + turn * turn % 6
        cached, answer = asker.ask([number, *PROMPT[:60]])
        assert answer == alone[number]
        found += cached
    assert found > 0
    engine.core.scheduler.check_invariants()
    stats = engine.stats()
    assert stats.kv_tokens_used == 0 and stats.kv_tokens_cached <= 240
    runner.run(engine.close())
    assert replay(log) is None


def test_a_long_prompt_is_hashed_in_a_thread_to_the_same_keys(runner: asyncio.Runner) -> None:
    keys = PrefixKeys(1, shared_by_tenants=False)
    prompt = np.arange(40_000, dtype="<i4")
    long, short = (runner.run(keys.of_prompt(each, greedy(2))) for each in (prompt, prompt[:1000]))
    assert long is not None and short is not None
    assert long.keys[: len(short.keys)] == short.keys
    assert replace(short, keys=short.keys + short.hasher.push(prompt[1000:].tobytes())).keys == long.keys


def test_keys_name_all_that_comes_before() -> None:
    def keys(text: bytes, seed: bytes = b"seed", scope: bytes = b"") -> list[bytes]:
        flat = PrefixHasher(seed, 2, scope).push(text)
        return [flat[place : place + 16] for place in range(0, len(flat), 16)]

    text = bytes(range(40))  # ten tokens
    assert len(set(keys(text))) == 5
    assert keys(text[:20]) == keys(text)[:2]  # the fifth token completes no block
    assert not set(keys(b"\1" + text[1:])) & set(keys(text))
    assert not set(keys(text, b"other")) & set(keys(text))
    assert not set(keys(text, scope=b"other")) & set(keys(text))
