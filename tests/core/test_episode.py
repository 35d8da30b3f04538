"""Episodes on the scheduler: what they say will run is what runs, and nothing of them is left."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, MigrateKV, RunBatch
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.episode import Company, Episode, Iterate, Move, Timed
from longspan.core.events import BatchCompleted, Event, KVMigrated, RequestAborted, RequestArrived, TokenOutput
from longspan.core.policies.episode import EpisodePolicy
from longspan.core.scheduler import Scheduler
from longspan.profiler.grid import check_groups, fit_groups
from longspan.simulator.cost import Seconds
from longspan.simulator.driver import Driver, Work


def run(
    episode: Episode, num_instances: int, kv_tokens: int, lookahead: bool = False
) -> tuple[list[Action], list[Timed]]:
    """Every action in order, the n-th of which takes n seconds; and what the policy timed."""
    config = SchedulerConfig(num_instances=num_instances, kv_tokens=kv_tokens, lookahead=lookahead)
    policy = EpisodePolicy()
    scheduler = Scheduler(config, policy)
    ids = [f"r{place}" for place in range(len(episode.prompts))]
    policy.begin(episode, ids)
    left = dict(zip(ids, episode.output_tokens(), strict=True))
    pending: list[Action] = []
    for request_id, prompt in zip(ids, episode.prompts, strict=True):
        pending += scheduler.handle(RequestArrived(request_id, prompt, left[request_id]), 0.0)
    now, ran = 0.0, []
    while pending:
        action = pending.pop(0)
        ran.append(action)
        now += len(ran)
        if isinstance(action, MigrateKV):
            actions = scheduler.handle(KVMigrated(action.migration_id), now)
        else:
            assert isinstance(action, RunBatch)
            outputs = []
            for segment in action.segments:
                if segment.emits:
                    left[segment.request_id] -= 1
                    ends = "length" if left[segment.request_id] == 0 else None
                    outputs.append(TokenOutput(segment.request_id, ends))
            actions = scheduler.handle(BatchCompleted(action.batch_id, tuple(outputs)), now)
        scheduler.check_invariants()
        pending += [a for a in actions if isinstance(a, RunBatch | MigrateKV)]
        assert len(pending) <= 1 + lookahead
    assert scheduler.idle() and not any(left.values())
    return ran, policy.timed()


def check(episode: Episode, num_instances: int, kv_tokens: int, lookahead: bool) -> None:
    ran, timed = run(episode, num_instances, kv_tokens, lookahead)
    expected = list(episode.work())
    assert [step.work for step in timed] == [work for work, _ in expected]
    assert len(ran) == sum(times for _, times in expected)
    place = 0
    for (work, times), step in zip(expected, timed, strict=True):
        last = ran[place + times // 2]
        if isinstance(work, BatchShape):
            assert isinstance(last, RunBatch) and BatchShape.of(last) == work
        else:
            assert isinstance(last, MigrateKV) and last.num_tokens == work
        counted = list(range(place + 1, place + times + 1))[1 if times > 1 else 0 :]
        assert step.seconds == sum(counted) / len(counted)  # the mean
        assert step.first_s == (place + 1 if times > 1 else None)
        place += times


@given(
    instances=st.integers(1, 4),
    kv_tokens=st.one_of(st.integers(100, 3000), st.integers(3000, 20_000)),
    max_model_len=st.integers(64, 10_000),
    is_check=st.booleans(),
    lookahead=st.booleans(),
    data=st.data(),
)
def test_every_episode_of_the_grids_runs_as_it_says(
    instances: int, kv_tokens: int, max_model_len: int, is_check: bool, lookahead: bool, data: st.DataObject
) -> None:
    config = SchedulerConfig(num_instances=instances, kv_tokens=kv_tokens)
    groups = (check_groups if is_check else fit_groups)(config, max_model_len)
    for number, episode in enumerate(data.draw(st.sampled_from(groups))):
        assert number < instances
        assert max(p + o for p, o in zip(episode.prompts, episode.output_tokens(), strict=True)) <= max_model_len
        check(episode, instances, kv_tokens, lookahead)


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_the_grid_has_all_that_a_fit_needs(instances: int) -> None:
    """From its cheapest groups on: whatever the budget, every degree and number of masters occurs."""
    groups = fit_groups(SchedulerConfig(num_instances=instances, kv_tokens=16_384), 8192)
    seen = [work for group in groups[:4] for episode in group for work, _ in episode.work()]
    shapes = [work for work in seen if isinstance(work, BatchShape)]
    assert {s.num_instances for s in shapes if s.kind == "prefill"} == set(range(1, instances + 1))
    decodes = {(s.num_instances, s.num_masters) for s in shapes if s.kind == "decode"}
    assert decodes == {(n, m) for n in range(1, instances + 1) for m in (1, n)}
    assert (instances > 1) == any(isinstance(work, int) for work in seen)


def test_checks_measure_what_no_fit_has_seen() -> None:
    config = SchedulerConfig(num_instances=2, kv_tokens=16_384)

    def prompts(groups: list[tuple[Episode, ...]]) -> set[tuple[int, ...]]:
        return {episode.prompts for group in groups for episode in group}

    assert not prompts(fit_groups(config, 8192)) & prompts(check_groups(config, 8192))
    kinds = {w.kind for g in check_groups(config, 8192) for e in g for w, _ in e.work() if isinstance(w, BatchShape)}
    assert kinds == {"prefill", "decode", "mixed"}


def test_masters_share_the_requests_and_moves_go_where_they_should() -> None:
    episode = Episode(
        (6, 6, 6), 2,
        (
            Iterate(chunks=((0, 6), (1, 6), (2, 6))),
            Iterate(decodes=(0, 1, 2), masters=2),
        ),
    )  # fmt: skip
    (prefill, decode), _ = run(episode, 2, 100)
    assert isinstance(prefill, RunBatch) and isinstance(decode, RunBatch)
    assert [s.compute for s in prefill.segments] == [(0, 1), (1, 0), (0, 1)]
    assert [s.compute for s in decode.segments] == [(0,), (1,), (0,)]
    (_, there, back, _), _ = run(Episode((6,), 1, (Iterate(chunks=((0, 6),)), Move(0, 0, 1), Move(0, 1, 0),
                                                   Iterate(decodes=(0,)))), 2, 100)  # fmt: skip
    assert isinstance(there, MigrateKV) and (there.source, there.target, there.ranges) == (0, 1, ((0, 6),))
    assert isinstance(back, MigrateKV) and (back.source, back.target, back.ranges) == (1, 0, ((0, 6),))


Spans = dict[int, list[tuple[float, float, RunBatch]]]


class InCompany(Driver):
    """Batches take 2 s on the first instance, 3 s elsewhere; the company leaves when the episode's requests have."""

    def __init__(self, scheduler: Scheduler, left: dict[str, int]) -> None:
        super().__init__(scheduler, self._as_said)
        self.left = left
        self.spans: Spans = {0: [], 2: []}

    def _as_said(self, work: Work) -> Seconds:
        assert isinstance(work, RunBatch)
        return Seconds(0.0, (2.0 if work.group == (0,) else 3.0,))

    def _sample(self, request_id: str) -> TokenOutput:
        self.left[request_id] -= 1
        return TokenOutput(request_id, None if self.left[request_id] else "length")

    def _submitted(self, work: Work, begin_s: float, end_s: float, seconds: Seconds) -> None:
        assert isinstance(work, RunBatch)
        (instance,) = work.group
        self.spans[instance].append((begin_s, end_s, work))

    def _handled(self, event: Event, actions: list[Action]) -> None:
        self.scheduler.check_invariants()
        if isinstance(event, BatchCompleted) and self.left["a"] == self.left["b"] == 0:
            self.handle(RequestAborted("other"))


def run_in_company(episode: Episode, lookahead: bool, company_tokens: int) -> tuple[Spans, list[Timed]]:
    """The episode on the first of three instances, the company on the last. What ran on these when."""
    policy = EpisodePolicy()
    scheduler = Scheduler(SchedulerConfig(num_instances=3, kv_tokens=100, lookahead=lookahead), policy)
    policy.begin(episode, ["a", "b"], "other")
    left = dict(zip("ab", episode.output_tokens(), strict=True)) | {"other": company_tokens}
    driver = InCompany(scheduler, left)
    for request_id, prompt in (("a", 8), ("other", 16), ("b", 8)):
        driver.push(0.0, RequestArrived(request_id, prompt, left[request_id]))
    driver.run_out()
    assert scheduler.idle()
    return driver.spans, policy.timed()


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("company", ["prefill", "decode"])
def test_company_is_at_work_from_the_first_step_to_the_last(company: Company, lookahead: bool) -> None:
    episode = Episode((8, 8), 1, (Iterate(chunks=((0, 8), (1, 8))), Iterate(decodes=(0, 1), times=5)), company)
    spans, timed = run_in_company(episode, lookahead, company_tokens=80)
    (_, ready, first), *others = spans[2]
    assert first.segments[0].length == 16
    assert all((batch.segments[0].length > 1) == (company == "prefill") for _, _, batch in others)
    assert spans[0][0][0] == ready and spans[2][-1][1] >= spans[0][-1][1]
    assert all(one[1] == two[0] for one, two in pairwise(spans[2])), "it never rests"
    assert [(step.work, step.seconds) for step in timed] == [(work, 2.0) for work, _ in episode.work()]


def test_an_episode_goes_on_when_its_company_is_gone() -> None:
    episode = Episode((8, 8), 1, (Iterate(chunks=((0, 8), (1, 8))), Iterate(decodes=(0, 1), times=9)), "decode")
    spans, timed = run_in_company(episode, lookahead=True, company_tokens=3)
    assert spans[2][-1][1] < spans[0][-1][1]
    assert [step.work for step in timed] == [work for work, _ in episode.work()]
