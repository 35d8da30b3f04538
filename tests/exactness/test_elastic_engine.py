"""The whole engine against Hugging Face transformers, in fp32: the same tokens, whatever the parallelism.

All fifty prompts run together in each case, with a real model; instances are threads of this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest

from longspan import LLM, SamplingParams
from longspan.core.policies.fixed import FixedPolicy
from longspan.models.catalog import ResolvedModel

from .conftest import NUM_TOKENS, TOP, Reference, require_same

pytestmark = pytest.mark.heavy
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=TOP)


def check(
    model: ResolvedModel, reference: Reference, *, policy: FixedPolicy | str = "elastic_fcfs",
    executor: str = "inproc", **settings,
) -> None:  # fmt: skip
    """All as transformers has it, and every slot free at the end."""
    with LLM(
        str(model.path), policy=policy, dtype="float32", executor=executor, threads_per_device=1,
        kv_tokens=12_000, **settings,
    ) as llm:  # fmt: skip
        completions = llm.generate(reference.prompts, GREEDY)
        llm.wait_idle()
        assert llm.stats().kv_tokens_used == 0
    require_same(completions, reference)


@pytest.mark.parametrize("dop", [1, 2, 3, 4])
def test_degree_of_parallelism(model, reference, dop: int) -> None:
    everyone = range(dop)
    check(model, reference, instances=dop, policy=FixedPolicy(everyone, masters=lambda _: everyone))


@pytest.mark.parametrize("keepers", [k for size in (1, 2) for k in combinations(range(3), size)])
def test_retention_onto_some_of_three(model, reference, keepers: Sequence[int]) -> None:
    """Every proper subset; all three are above. The longest prompt on one of them alone."""
    reference = reference if keepers == (1,) else reference.first(len(reference.prompts) - 1)
    check(model, reference, instances=3, policy=FixedPolicy(range(3), keepers))


@pytest.mark.parametrize(("instances", "tp"), [(1, 2), (2, 2)])
def test_tensor_parallel(model, reference, instances: int, tp: int) -> None:
    check(model, reference, instances=instances, tp=tp, policy=FixedPolicy(range(instances)))


def test_scaling_in_mid_decode(model, reference) -> None:
    """The KV starts on one instance; the masters become two and three, then fewer, then another one."""
    masters = [[0], [0, 1], [0, 1, 2], [0, 1, 2], [1, 2], [2], [0]]
    policy = FixedPolicy(range(3), keepers=[0], masters=lambda i: masters[min(i, 6)])
    check(model, reference, instances=3, policy=policy, lookahead=False)


def test_migration_in_mid_decode(model, reference) -> None:
    """Before each iteration all that the first request has on one instance moves to the next."""
    policy = FixedPolicy(
        range(3), keepers=[0, 1], masters=lambda i: [i % 3], migrations=lambda i: (i % 3, (i + 1) % 3)
    )
    check(model, reference, instances=3, policy=policy, lookahead=False)


def test_the_default_policy(model, reference) -> None:
    check(model, reference, instances=2)


@pytest.mark.parametrize("transport", ["shared_memory", "gloo"])
def test_processes(model, reference, transport: str) -> None:
    """Two instances of two devices, each a process; everything crosses process borders."""
    policy = FixedPolicy(
        range(2), keepers=[1], masters=lambda i: [i % 2], migrations=lambda i: (1, 0) if i == 3 else None
    )
    reference = reference if transport == "shared_memory" else reference.first(15)
    check(model, reference, instances=2, tp=2, executor="multiproc", transport=transport, policy=policy,
          lookahead=False)


def test_two_stages_in_two_processes(model, reference) -> None:
    """Stages balanced by measurement; what they hand on goes through shared memory."""
    check(model, reference.first(48), instances=1, pp=2, policy="medha", executor="multiproc")


def test_uneven_stages_under_a_policy_that_does_not_chunk(model, reference) -> None:
    check(model, reference.first(20), instances=2, pp=3, pp_layers=(5, 24, 1), policy="elastic_fcfs")


def test_all_kinds_of_parallelism_together(model, reference) -> None:
    """Eight devices: prompts grow over both instances, each of two stages of two devices."""
    check(model, reference.first(15), instances=2, tp=2, pp=2, policy="medha", kvp_tokens_per_shard=16)
