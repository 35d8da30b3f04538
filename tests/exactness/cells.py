"""The matrix of what must not change a token: its axes, one line each, and the cells in which all pairs of them meet.

A new axis is a field of `Cell`, a line of `AXES`, and the place in `serving.py` that does as it says.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

from tests.core.settings import EVERY_POLICY
from tests.exactness import covering
from tests.exactness.covering import Axis

FORCED = "forced"
"""The tests' own policy, `ForcedPolicy`."""
DEFAULT = "default"
"""How a cell is written that differs in nothing from the defaults."""
_DEVICES = ("instances", "stages", "tp")
_PROCESSES = ("shared_memory", "gloo")
_SURVIVES = "shared_memory"
"""What goes on when a worker is lost."""
_MOST_PROCESSES = 4


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of an engine, under everything that its fields name.

    rope: as the model has it; or scaled, by 16 from a context that most prompts are beyond, and some outputs go beyond.
    loss: of no worker; or of one, killed or stopped when some number of tokens has come.
    executor: threads of this process; or a process for each device, and what they exchange through.
    chunk: tokens of a chunk, where the policy takes a size; `forced` cuts by it, or anyhow.
    shard: KV tokens of a prompt after which it goes on at the next instance, where the policy takes a number.
    retention, migrates, preempts: see `ForcedPolicy`. layout: of chunks over several instances: striped, or in pieces.
    pool: ample, or so small that requests must give way to each other.
    arrivals: all together, or each with the first token of the one before.
    aborts: no request; or two of them: with their arrival, upon others' tokens, or in the middle of their own.
    end: after all tokens, after the first, at a stop token, or at a stop string.
    sampling: greedy, with log-probabilities to compare; seeded; or seeded with penalties and filters.
    structured: whether all of the output has to match `serving.PATTERN`.
    scored: whether the prompts' log-probabilities are asked for, too.
    reuse: of KV that others have computed: none; or with prompts that come again, that go on from the one before and
        its answer, or that begin like the first.
    """

    policy: str = "elastic_fcfs"
    model: str = "llama"
    rope: str = "plain"
    loss: str = "none"
    instances: int = 2
    stages: int = 1
    tp: int = 1
    executor: str = "threads"
    chunk: int | None = None
    shard: int | None = None
    retention: str = "random"
    migrates: bool = False
    preempts: bool = False
    layout: str = "striped"
    pool: str = "ample"
    lookahead: bool = True
    arrivals: str = "together"
    aborts: str = "none"
    end: str = "length"
    sampling: str = "greedy"
    structured: bool = False
    scored: bool = False
    reuse: str = "none"

    @property
    def seed(self) -> int:
        return zlib.crc32(str(self).encode())

    def __str__(self) -> str:
        """What differs from the defaults; `parse` reads it."""
        defaults = asdict(Cell())
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if value != defaults[name]) or DEFAULT

    @classmethod
    def parse(cls, text: str) -> Cell:
        kinds = get_type_hints(cls)
        named = dict(word.split("=", 1) for word in text.split() if word != DEFAULT)
        return cls(**{name: _read(value, kinds[name]) for name, value in named.items()})


def _read(value: str, kind: object) -> str | int | bool:
    if kind is str:
        return value
    return value == "True" if kind is bool else int(value)


AXES: dict[str, Axis] = {
    "policy": Axis([FORCED, *EVERY_POLICY]),
    "model": Axis(["llama", "qwen2", "qwen3", "smollm2"], rare={"smollm2": _DEVICES}),
    "rope": Axis(["plain", "yarn", "dynamic", "longrope"]),
    "loss": Axis(["none", "killed", "stopped"], rare={"killed": _DEVICES, "stopped": ("instances",)}),
    "instances": Axis([1, 2, 3]),
    "stages": Axis([1, 2, 3]),
    "tp": Axis([1, 2]),
    "executor": Axis(["threads", *_PROCESSES], rare=dict.fromkeys(_PROCESSES, _DEVICES)),
    "chunk": Axis([None, 1, 7, 64]),
    "shard": Axis([None, 16]),
    "retention": Axis(["one", "even", "shards", "random"]),
    "migrates": Axis([False, True]),
    "preempts": Axis([False, True]),
    "layout": Axis(["striped", "pieces"]),
    "pool": Axis(["ample", "small"]),
    "lookahead": Axis([False, True]),
    "arrivals": Axis(["together", "in_turn"]),
    "aborts": Axis(["none", "at_once", "beside", "middle"]),
    "end": Axis(["length", "first", "stop_token", "stop_string"]),
    "sampling": Axis(["greedy", "seeded", "filtered"]),
    "structured": Axis([False, True]),
    "scored": Axis([False, True]),
    "reuse": Axis(["none", "again", "turns", "forks"]),
}


def possible(values: Mapping[str, Any]) -> bool:
    """Whether there is a cell with these values; those of the other axes are open."""
    own = values.get("policy", FORCED) == FORCED
    in_pieces = values.get("layout", "striped") != "striped"
    forces = values.get("migrates") or values.get("preempts") or values.get("retention", "random") != "random"
    if (forces or in_pieces) and not own:
        return False
    needs_several = values.get("migrates") or in_pieces or values.get("policy") == "distserve"
    if values.get("instances") == 1 and needs_several:
        return False
    if values.get("model") == "smollm2" and values.get("rope", "plain") != "plain":
        return False
    loses = values.get("loss", "none") != "none"
    if loses and (values.get("instances") == 1 or values.get("executor", _SURVIVES) != _SURVIVES):
        return False
    processes = math.prod([values.get(name, 1 + (loses and name == "instances")) for name in _DEVICES])
    return not (loses or values.get("executor") in _PROCESSES) or processes <= _MOST_PROCESSES


@functools.cache
def all_cells() -> list[Cell]:
    """Every pair meets in one of them; and every pair of what costs little under the policy that is forced."""
    cheap = {name: Axis([value for value in axis.values if value not in axis.rare]) for name, axis in AXES.items()}
    under_force = {**cheap, "policy": Axis([FORCED])}
    found = [*covering.cover(under_force, possible), *covering.cover(AXES, possible)]
    return list(dict.fromkeys(Cell(**values) for values in found))
