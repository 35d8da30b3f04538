"""The whole engine, from token ids to token ids: the same text whatever the executor and the number of instances."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from case import Case, Figures, NotHereError, Where, WrongError
from longspan import LLM, SamplingParams
from longspan.errors import ConfigError
from parts.instances import SHAPE

BUDGET_S = 90.0
PROMPTS, OUTPUT = (20, 700, 90, 350), 24
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_tokens=OUTPUT, ignore_eos=True)
GREEDY = replace(SAMPLED, temperature=0.0)


def cases(where: Where) -> Iterator[Case]:
    for executor, instances in (("inproc", 1), ("inproc", 2), ("multiproc", 1), ("multiproc", 2)):
        yield Case(f"{executor}, {instances} instances", lambda e=executor, n=instances: same(where, e, n))
    yield Case("more processes than GPUs", lambda: refused(where))


def same(where: Where, executor: str, instances: int) -> Figures:
    """In fp32, where tokens are exact."""
    if where.is_cuda and executor == "multiproc" and instances > torch.cuda.device_count():
        raise NotHereError(f"{torch.cuda.device_count()} GPU", passing=True)
    expected, ours = generated("cpu", "inproc", 1), generated(where.device.type, executor, instances)
    agreeing = sum(a == b for a, b in zip(expected, ours, strict=True))
    figures = {"requests": len(expected), "same_tokens": agreeing}
    if agreeing < len(expected):
        raise WrongError(f"{len(expected) - agreeing} requests got other tokens than on the CPU", figures)
    return figures


def refused(where: Where) -> Figures:
    if not where.is_cuda:
        raise NotHereError("no GPU")
    try:
        generated("cuda", "multiproc", torch.cuda.device_count() + 1)
    except ConfigError as error:
        return {"says": str(error)}
    raise WrongError("they were started", {})


@functools.cache
def generated(device: str, executor: str, instances: int) -> list[tuple[int, ...]]:
    draw = random.Random(0)
    prompts = [[draw.randrange(1, SHAPE.vocab) for _ in range(length)] for length in PROMPTS]
    params = [GREEDY, SAMPLED, SAMPLED, GREEDY]
    with tempfile.TemporaryDirectory() as folder:
        model = str(SHAPE.write(Path(folder)))
        settings = {"device": device, "executor": executor, "instances": instances}
        with LLM(model, dtype="float32", kv_tokens=4096, **settings) as llm:
            return [completion.token_ids for completion in llm.generate(prompts, params)]
