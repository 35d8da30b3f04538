"""Structured output from the engine: what comes out keeps to its grammar, and what cannot be used is refused."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import jsonschema_rs
import llguidance
import pytest

from longspan import LLM, SamplingParams, StructuredOutputs
from longspan.engine import grammars
from longspan.engine.tokenizer import Tokenizer
from longspan.errors import QueueFullError, RequestError
from longspan.models.catalog import ResolvedModel
from longspan.worker import model_runner
from longspan.worker.matcher import Vocabulary, translate
from tests.models.tiny import write_random_model

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# Deep enough for its compiler to run out of stack, which is the end of a process.
CHAIN = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(4000)) + '\nr4000: "x"\n'


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, model: ResolvedModel):
    """With a real vocabulary, whose tokens are many letters long."""
    backend = Tokenizer.load(model).backend
    path = write_random_model(tmp_path_factory.mktemp("tiny"), backend, backend.get_vocab_size(), 512)
    with LLM(path, instances=2, executor="inproc", dtype="float32", threads_per_device=1, policy="elastic_fcfs") as llm:
        yield llm


def sampling(max_tokens: int = 120, seed: int = 1, **wanted: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=seed, structured_outputs=StructuredOutputs(**wanted))


def test_random_weights_write_json_that_is_valid(llm: LLM) -> None:
    answers = llm.generate(["x"] * 12, [sampling(seed=seed, json=SCHEMA) for seed in range(12)])
    assert {answer.finish_reason for answer in answers} == {"stop"}
    for answer in answers:
        jsonschema_rs.validate(SCHEMA, json.loads(answer.text))


def test_every_kind(llm: LLM) -> None:
    (choice,) = llm.generate("x", sampling(choice=["yes", "no"]))
    assert choice.text in ("yes", "no") and choice.finish_reason == "stop"
    (regex,) = llm.generate("x", sampling(regex=r"[a-f]{3}-[0-9]{2}"))
    assert re.fullmatch(r"[a-f]{3}-[0-9]{2}", regex.text)
    (grammar,) = llm.generate("x", sampling(grammar='root ::= "a" ("b" | "c") "."'))
    assert grammar.text in ("ab.", "ac.")
    (any_object,) = llm.generate("x", sampling(max_tokens=1, json_object=True))
    assert any_object.text.lstrip().startswith("{") and any_object.finish_reason == "length"


def test_only_the_end_follows_the_end(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True, structured_outputs=StructuredOutputs(choice=["yes"]))
    (answer,) = llm.generate("x", params)
    assert answer.text == "yes" and answer.finish_reason == "length"
    assert set(answer.token_ids[-5:]) == set(llm.engine.tokenizer.eos_token_ids)


def test_a_grammar_beside_others_that_have_none(llm: LLM) -> None:
    free = SamplingParams(max_tokens=20, temperature=0)
    alone = llm.generate(["once", "upon"], free)
    mixed = llm.generate(["once", "x", "upon"], [free, sampling(json=SCHEMA), free])
    assert [mixed[0].token_ids, mixed[2].token_ids] == [answer.token_ids for answer in alone]


def test_logprobs_are_those_without_the_grammar(llm: LLM) -> None:
    structured = StructuredOutputs(choice=["yes", "no"])
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=5)
    (free,) = llm.generate("x", params)
    (bound,) = llm.generate("x", SamplingParams(max_tokens=1, temperature=0, logprobs=5, structured_outputs=structured))
    assert free.logprobs and bound.logprobs
    assert free.logprobs[0].top == bound.logprobs[0].top
    assert bound.logprobs[0].chosen.rank > 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"json": {"type": "object", "properties": {"a": {"not": {}}}}}, "at /properties/a/not"),
        ({"regex": "(a|"}, "unclosed group"),
        ({"grammar": "start: x"}, "unknown name"),
        ({"grammar": CHAIN}, "crashes"),
        ({"grammar": 'start: s\ns: s s | "a" | "b"\n'}, "Too many items"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_and_hurts_nobody(llm: LLM, wanted: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        llm.generate("x", sampling(**wanted))
    assert (refused.value.param, refused.value.code) == ("structured_outputs", "invalid_grammar")
    assert llm.generate("x", sampling(choice=["fine"]))[0].text == "fine"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({}, "none of them"),
        ({"json": SCHEMA, "regex": "a"}, "json and regex"),
        ({"json": [1]}, "a JSON schema"),
        ({"choice": "yes"}, "texts"),
        ({"choice": ["yes", ""]}, "none of them empty"),
        ({"regex": 3}, "must be a text"),
        ({"regex": "a" * 70_000}, "70000 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_structure_is_refused(wanted: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        StructuredOutputs(**wanted)


def test_each_grammar_is_tried_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = grammars.Grammars._ask
    monkeypatch.setattr(grammars.Grammars, "_ask", lambda self, wanted: asked.append(wanted) or ask(self, wanted))
    params = sampling(regex="[x-z]{7}")
    for _ in range(3):
        llm.generate(["x"] * 3, params)
    assert asked == [params.structured_outputs]


def test_a_call_with_more_grammars_than_are_kept(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one given up that is used again and again."""
    monkeypatch.setattr(grammars, "MAX_KEPT", 4)
    count = grammars.MAX_WAITING + 16
    wanted = [sampling(regex=f"[abc]{{1,{number % 9 + 1}}}d{{{number}}}") for number in range(count)]
    answers = llm.generate(["x"] * len(wanted), wanted)
    assert all(answer.text.count("d") == number for number, answer in enumerate(answers))
    asked = []
    ask = grammars.Grammars._ask
    monkeypatch.setattr(grammars.Grammars, "_ask", lambda self, wanted: asked.append(wanted.regex) or ask(self, wanted))
    for number in range(8):
        llm.generate(["x"] * 2, [sampling(regex="[xy]z"), sampling(regex=f"x{{{number + 1}}}w")])
    assert asked.count("[xy]z") == 1


def test_so_many_wait_to_be_tried_and_no_more(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    ask = grammars.Grammars._ask
    monkeypatch.setattr(grammars.Grammars, "_ask", lambda self, wanted: go_on.wait() and ask(self, wanted))
    wanted = [sampling(regex=f"a{{{number + 1}}}") for number in range(grammars.MAX_WAITING + 1)]

    async def prepare_all() -> list[BaseException | None]:
        tasks = [asyncio.create_task(llm.engine.prepare(params)) for params in wanted]
        while not tasks[-1].done():
            await asyncio.sleep(0.001)
        go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    *fine, last = llm._call(prepare_all())
    assert isinstance(last, QueueFullError) and fine == [None] * grammars.MAX_WAITING


def test_one_that_takes_for_ever_is_given_up(tmp_path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is stopped, as one that computes without end looks from outside; the next one gets another."""
    llm.generate("x", sampling(choice=["first"]))
    process = llm.engine.grammars._process
    assert process is not None and process.pid is not None
    monkeypatch.setattr(grammars, "ANSWER_S", 0.2)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(RequestError, match=r"not answer within 0\.2 s"):
        llm.generate("x", sampling(choice=["second"]))
    monkeypatch.undo()
    deadline = time.monotonic() + 60
    while process.is_alive():
        assert time.monotonic() < deadline
    assert llm.generate("x", sampling(choice=["third"]))[0].text == "third"


PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)
BOMBS = {
    "multiples": {"allOf": [{"type": "integer", "multipleOf": prime} for prime in PRIMES]},
    "names": {"patternProperties": {f"^[a-z]{{1,{i + 1}}}x{i}$": {"type": "integer"} for i in range(150)}},
}


@pytest.mark.parametrize("schema", BOMBS.values(), ids=BOMBS)
def test_one_that_computes_for_long_is_ended_soon(llm: LLM, schema: dict) -> None:
    """By the time that it computes, not by a clock that others move; and it stays known as such."""
    with pytest.raises(RequestError, match="it costs too much: to compile it takes"):
        llm.generate("x", sampling(json=schema))
    process = llm.engine.grammars._process
    with pytest.raises(RequestError, match="it costs too much: to compile it takes"):
        llm.generate("x", sampling(json=schema))
    assert llm.engine.grammars._process is process
    assert llm.generate("x", sampling(choice=["fine"]))[0].text == "fine"


def test_workers_compile_a_grammar_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one request has written so far is nothing to the next one with the same grammar."""
    tokenizer = llm.engine.tokenizer
    vocabulary = Vocabulary(tokenizer.backend.to_str(), tokenizer.eos_token_ids, llm.engine.vocab_size)
    compiled, compile_it = [], llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", lambda *it, **said: compiled.append(1) or compile_it(*it, **said))
    first = vocabulary.matcher(translate("regex", "[a-c]x[0-9]"))
    begin = first.allowed()
    for char in "bx":
        first.append(tokenizer.encode(char, False)[-1])
    second = vocabulary.matcher(translate("regex", "[a-c]x[0-9]"))
    assert (second.allowed() == begin).all() and (first.allowed() != begin).any()
    seen = tokenizer.encode("b", False)
    assert (vocabulary.matcher(translate("regex", "[a-c]x[0-9]"), seen).allowed() != begin).any()
    assert len(compiled) == 1


def test_one_that_takes_long_for_a_token_ends_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time at all is allowed here, so any grammar exceeds it."""
    params = [sampling(regex="[0-9]{5}"), SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)]
    monkeypatch.setattr(model_runner, "MOST_STEP_S", -1.0)
    with pytest.raises(RequestError, match="others wait for it"):
        llm.generate("x", params[0])
    assert len(llm.generate("x", params[1])[0].token_ids) == 8
    monkeypatch.undo()
    assert llm.generate("x", params[0])[0].finish_reason == "stop"
