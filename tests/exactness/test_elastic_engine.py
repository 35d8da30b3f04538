"""The whole engine against Hugging Face transformers, in fp32, with a real model and prompts of real text, together.

What the matrix tries in every combination with tiny models, in a few that are large.
"""

from __future__ import annotations

import pytest

from longspan import LLM, SamplingParams
from longspan.core.actions import RunBatch
from longspan.core.loans import loans
from longspan.core.policies.fixed import FixedPolicy
from longspan.metrics.event_log import read_event_log
from longspan.models.catalog import ResolvedModel

from .conftest import TOP, require_same
from .theirs import Theirs

pytestmark = pytest.mark.heavy
NUM_TOKENS = 6
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=TOP)


def check(
    model: ResolvedModel, theirs: Theirs, prompts: list[list[int]], *, policy: FixedPolicy | str = "elastic_fcfs",
    executor: str = "inproc", **settings,
) -> None:  # fmt: skip
    """All as transformers has it, and every slot free at the end."""
    with LLM(
        str(model.path), policy=policy, dtype="float32", executor=executor, threads_per_device=1,
        kv_tokens=4_000, **settings,
    ) as llm:  # fmt: skip
        completions = llm.generate(prompts, GREEDY)
        llm.wait_idle()
        assert llm.stats().kv_tokens_used == 0
    require_same(completions, [theirs.of(prompt, GREEDY, NUM_TOKENS) for prompt in prompts])


def test_four_instances(model, theirs, prompts) -> None:
    """The KV of every prompt lies on all of them, and all are masters."""
    check(model, theirs, prompts, instances=4, policy=FixedPolicy(range(4), masters=lambda _: range(4)))


def test_the_default_policy(model, theirs, prompts) -> None:
    check(model, theirs, prompts, instances=2)


def test_processes(model, theirs, prompts) -> None:
    """Two instances of two devices, each a process; everything crosses process borders."""
    policy = FixedPolicy(
        range(2), keepers=[1], masters=lambda i: [i % 2], migrations=lambda i: (1, 0) if i == 3 else None
    )
    check(model, theirs, prompts[:8], instances=2, tp=2, executor="multiproc", transport="shared_memory",
          policy=policy, lookahead=False)  # fmt: skip


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param({"executor": "inproc"}, id="threads"),
        pytest.param({"executor": "multiproc", "tp": 2}, id="tp"),
        pytest.param({"executor": "multiproc", "pp": 2}, id="stages"),
    ],
)
def test_a_turn_whose_context_lies_on_one_instance(model, theirs, prompts, tmp_path, devices) -> None:
    """Both compute it, and the holder lends to the other."""
    log = tmp_path / "events.jsonl"
    with LLM(
        str(model.path), policy=FixedPolicy(range(2), keepers=[0]), dtype="float32", instances=2, threads_per_device=1,
        kv_tokens=4_000, event_log=log, **devices,
    ) as llm:  # fmt: skip
        for prompt in (prompts[-1][:300], prompts[-1]):
            require_same(llm.generate([prompt], GREEDY), [theirs.of(prompt, GREEDY, NUM_TOKENS)])
    actions = [action for record in read_event_log(log) for action in record.actions]
    segments = [segment for action in actions if isinstance(action, RunBatch) for segment in action.segments]
    assert any((0, 1) in loans(segment) for segment in segments)


def test_all_kinds_of_parallelism_together(model, theirs, prompts) -> None:
    """Eight devices: prompts grow over both instances, each of two stages of two devices; the first stage is short."""
    check(model, theirs, prompts[:6], instances=2, tp=2, pp=2, pp_layers=(5, 25),
          policy="medha:kvp_tokens_per_shard=16")  # fmt: skip
