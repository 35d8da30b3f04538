"""Structured output: what a grammar costs, and whether all that comes out keeps to its schema."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, origin, ratio, table

_AIM = 0.95


def structured(record: Record) -> str:
    return "\n".join([
        "## Structured output\n",
        origin(record),
        f"Tokens a second of decodes, all with a JSON schema and all without; the aim is a ratio of {_AIM}:\n",
        table(
            ["requests at once", "without", "with", "ratio"],
            [[batch, _median(found["free"]), _median(found["structured"]), ratio(found["ratio"])]
             for batch, found in record["results"].items()],
        ),
    ])  # fmt: skip


def structured_schemas(record: Record) -> str:
    r = record["results"]
    refused = ", ".join(f"{why} {count}" for why, count in r["schemastore"]["refused"].items())
    return "\n".join([
        "### Outputs by their schemas\n",
        origin(record, ""),
        f"JSON schemas, each answered once, with at most {r['random']['max_tokens']} tokens. Every output that came to "
        "its end was parsed and is valid by its schema (`oneOf` taken as `anyOf`), or the benchmark fails:\n",
        table(
            ["", "answered", "valid", "cut off by length"],
            [["out of a grammar of schemas", *_answers(r["random"])],
             ["SchemaStore's", *_answers(r["schemastore"])]], text=1,
        ),
        f"Of SchemaStore's {r['schemastore']['offered']} the others were refused beforehand: {refused}.\n",
    ])  # fmt: skip


def _median(found: dict[str, Any]) -> str:
    return f"{found['median']:.1f}"


def _answers(found: dict[str, Any]) -> list[int]:
    return [found["schemas"], found["valid"], found["cut_by_length"]]
