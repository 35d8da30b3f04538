"""A pipeline on the virtual clock: its stages wait for each other, and not for the host."""

from __future__ import annotations

import itertools

import pytest

from longspan.core.events import RequestArrived, TokenOutput
from longspan.core.scheduler import Scheduler
from longspan.simulator.cost import Seconds
from longspan.simulator.driver import Driver, Work
from tests.core.settings import configured

CHUNK, CHUNKS = 50, 40


class Pipeline(Driver):
    """Every chunk takes as long: on the host, and in each stage. begun: when each entered the first stage."""

    def __init__(self, stages: int, host_s: float, stage_s: float) -> None:
        config = configured("sarathi", num_instances=1, pp=stages, kv_tokens=10_000, chunk_size=CHUNK)
        super().__init__(Scheduler(config), lambda work: Seconds(host_s, (stage_s,) * stages))
        self.begun: list[float] = []

    def _sample(self, request_id: str) -> TokenOutput:
        return TokenOutput(request_id, "length")

    def _submitted(self, work: Work, begin_s: float, end_s: float, seconds: Seconds) -> None:
        self.begun.append(begin_s)


@pytest.mark.parametrize("stages", [4, 8])
@pytest.mark.parametrize(("host_s", "stage_s"), [(0.0, 1.0), (0.25, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_a_pipelines_period_is_the_longer_of_host_and_stage(stages: int, host_s: float, stage_s: float) -> None:
    """And not their sum: the host prepares a chunk while the one before is in the first stage."""
    pipeline = Pipeline(stages, host_s, stage_s)
    pipeline.push(0.0, RequestArrived("long", CHUNK * CHUNKS, 1))
    pipeline.run_out()
    assert len(pipeline.begun) == CHUNKS
    periods = [later - earlier for earlier, later in itertools.pairwise(pipeline.begun)]
    assert periods == pytest.approx([max(host_s, stage_s)] * (CHUNKS - 1))
    assert pipeline.now == pytest.approx(host_s + (CHUNKS - 1) * max(host_s, stage_s) + stages * stage_s)
