"""Pipeline stages against Hugging Face transformers, in fp32; and all dimensions at once."""

from __future__ import annotations

import pytest

from .test_elastic_engine import check

pytestmark = pytest.mark.heavy


def test_two_stages_in_two_processes(model, reference) -> None:
    """Stages balanced by measurement; what they hand on goes through shared memory."""
    check(model, reference, instances=1, pp=2, policy="medha", executor="multiproc")


def test_uneven_stages_under_a_policy_that_does_not_chunk(model, reference) -> None:
    check(model, reference.first(20), instances=2, pp=3, pp_layers=(5, 24, 1), policy="elastic_fcfs")


def test_tensor_pipeline_and_kv_parallelism_together(model, reference) -> None:
    """Eight devices: prompts grow over both instances, each of two stages of two devices."""
    check(model, reference.first(15), instances=2, tp=2, pp=2, policy="medha", kvp_tokens_per_shard=16)
