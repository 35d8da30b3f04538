"""Fair shares: tenants of one priority share the service by weights while several wait."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.core.books.request import Request
from longspan.core.decision import OVER_SHARE, WITHIN_SHARE
from longspan.core.events import RequestArrived
from longspan.core.policies import create_policy
from longspan.core.policies.longspan.order import HOPELESS, INTERRUPTED
from longspan.core.policies.longspan.tenants import OVER, TenantShares, behind, read_weights
from longspan.errors import ConfigError, RequestError
from longspan.service_level import ServiceLevel

from .longspan import Arrival, Run, arrival, plain, played

FAIR = "longspan:fair_shares=true"


def of(tenant: str | None, **level: float) -> ServiceLevel:
    return ServiceLevel(tenant=tenant, if_late="serve", **level)  # type: ignore[arg-type]


def fair(weights: dict[str, float]) -> str:
    return f"{FAIR}:tenant_weights={','.join(f'{name}={weight}' for name, weight in weights.items())}"


# the clocks, against plain ones that forget nothing


@dataclass
class Plain:
    """What the clocks should show: by (tenant, priority). Nothing is forgotten, and nothing kept in columns."""

    weights: dict[str, float]
    slack_s: float
    clock: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))
    waiting: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    alive: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))

    def arrive(self, flow: tuple[str, int]) -> None:
        clocks = [self.clock[other] for other in self.waiting if other[1] == flow[1] and self.waiting[other]]
        if not self.waiting[flow]:
            known = [self.clock[other] for other in self.alive if other[1] == flow[1] and self.alive[other]]
            self.clock[flow] = max([self.clock[flow], *([min(clocks)] if clocks else known)])
        self.waiting[flow] += 1
        self.alive[flow] += 1

    def lead_s(self, flow: tuple[str, int]) -> float:
        clocks = [self.clock[other] for other in self.waiting if other[1] == flow[1] and self.waiting[other]]
        return (self.clock[flow] - min(clocks)) * self.weights[flow[0]] if self.waiting[flow] else 0.0


STEP = st.tuples(st.sampled_from(["arrive", "serve", "serve", "answer", "end"]), st.integers(0, 9), st.floats(0, 4))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=10, max_size=10), st.lists(STEP))
def test_clocks_are_those_of_a_plain_model(who: list[tuple[str, int]], steps: list[tuple[str, int, float]]) -> None:
    """Of those that wait: others' clocks matter to nobody."""
    weights = {"a": 1.0, "b": 3.0, "c": 0.5}
    shares, model = TenantShares(weights, 1.0), Plain(weights, 1.0)
    alive: dict[int, Request] = {}
    waiting: set[int] = set()
    for step, number, seconds in steps:
        flow, request = who[number], alive.get(number)
        if step == "arrive" and request is None:
            level = ServiceLevel(tenant=flow[0], priority=flow[1])
            alive[number] = request = Request(f"r{number}", 1, 1, 0.0, number, level)
            waiting.add(number)
            shares.arrive(request)
            model.arrive(flow)
        elif request is None:
            continue
        elif step == "serve":
            shares.serve(request.id, seconds)
            model.clock[flow] += seconds / weights[flow[0]]
        else:
            if number in waiting:
                waiting.discard(number)
                model.waiting[flow] -= 1
            if step == "answer":
                shares.answer(request.id)
            else:
                shares.end(request)
                del alive[number]
                model.alive[flow] -= 1
        for other in waiting:
            lead_s = model.lead_s(who[other])
            if abs(lead_s - 1.0) > 1e-6:
                assert shares.is_over(alive[other]) == (lead_s > 1.0)


def test_who_comes_back_has_saved_nothing_up_and_who_waits_keeps_its_lead() -> None:
    shares = TenantShares({}, 1.0)
    busy, back = (Request(name, 1, 1, 0.0, 0, ServiceLevel(tenant=name)) for name in ("busy", "back"))
    shares.arrive(busy)
    shares.serve("busy", 1000.0)
    shares.arrive(back)
    assert not shares.is_over(busy)
    shares.serve("busy", 0.9)
    assert not shares.is_over(busy)
    shares.serve("busy", 0.2)
    assert shares.is_over(busy) and not shares.is_over(back)
    shares.end(back)
    assert not shares.is_over(busy), "nobody else waits"


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
def test_nothing_is_kept_of_who_has_gone(names: list[str]) -> None:
    shares = TenantShares({}, 1.0)
    for number, name in enumerate(names):
        request = Request(f"r{number}", 1, 1, 0.0, number, ServiceLevel(tenant=name))
        shares.arrive(request)
        shares.serve(request.id, 5.0)
        shares.end(request)
    last = Request("last", 1, 1, 0.0, 99, ServiceLevel(tenant="new"))
    shares.arrive(last)
    assert shares.place(last) == 0
    assert not shares.is_over(last)


def test_a_part_outweighs_all_keys_but_of_those_that_are_being_read() -> None:
    soon, hopeless, interrupted = 1e-3, HOPELESS + 1e6, HOPELESS + INTERRUPTED
    assert behind(soon, 1.0) > behind(hopeless, 0.0)
    assert behind(hopeless, 1.0) < behind(soon, 2.0)
    assert behind(interrupted, 3.0) == interrupted
    assert behind(hopeless, 2.0) % OVER == pytest.approx(hopeless)


# the policy


def backlog(tenant: str, lengths: list[int], outputs: int = 1) -> list[Arrival]:
    return [arrival(0.0, f"{tenant}{n}", length, outputs, of(tenant)) for n, length in enumerate(lengths)]


def prompt_tokens(run: Run, until: float) -> dict[str, int]:
    """By the first letter of a request's id, of batches that began before."""
    tokens: dict[str, int] = defaultdict(int)
    for begin, batch, _ in run.took:
        for segment in batch.segments if begin < until else ():
            tokens[segment.request_id[0]] += segment.length
    return tokens


def waits_until(run: Run, tenant: str) -> float:
    """When the last of its requests had its first token."""
    return max(found.token_times[0] for name, found in run.played.items() if name[0] == tenant)


LENGTHS = st.lists(st.integers(20, 3000), min_size=12, max_size=12)


@settings(max_examples=10, deadline=None)
@given(LENGTHS, LENGTHS, st.sampled_from([1.0, 2.0, 5.0, 0.25]), st.integers(1, 2))
def test_two_that_always_wait_share_by_weight(a: list[int], b: list[int], weight: float, num_instances: int) -> None:
    """Whatever they ask for: a token costs 1 ms, so tokens are service, beside an iteration's 10 ms."""
    arrivals = backlog("a", a) + backlog("b", b)
    run = played(arrivals, plain(num_instances), policy=fair({"a": weight}), num_instances=num_instances)
    end = min(waits_until(run, "a"), waits_until(run, "b"))
    largest_s = max(seconds for _, _, seconds in run.took)
    slack_s = num_instances * (0.5 + 2 * largest_s)
    for at in (0.25 * end, 0.5 * end, end - 1e-6):
        tokens = prompt_tokens(run, at)
        a_s, b_s = 1e-3 * tokens["a"] / weight, 1e-3 * tokens["b"]
        fixed = 1.25  # the smallest chunks cost more than their tokens
        assert a_s <= fixed * (b_s + slack_s / min(1.0, weight))
        assert b_s <= fixed * (a_s + slack_s / min(1.0, weight))


@pytest.mark.parametrize("num_instances", [1, 2])
@pytest.mark.parametrize("outputs", [1, 10])
def test_who_keeps_within_its_share_is_served_as_though_the_other_were_not_there(
    num_instances: int, outputs: int
) -> None:
    """But for the slack, and iterations that have begun."""
    mine = [arrival(2.0 * n, f"m{n}", 300, outputs, of("mine")) for n in range(6)]
    flood = [arrival(0.04 / num_instances * n, f"x{n}", 100, outputs, of("greedy")) for n in range(300 * num_instances)]

    def waits(policy: str, arrivals: list[Arrival]) -> list[float]:
        arrivals = sorted(arrivals, key=lambda pair: pair[0])
        run = played(arrivals, plain(num_instances), policy=f"{policy}:team=1", num_instances=num_instances)
        assert all(found.ended for found in run.played.values())
        return [run.played[f"m{n}"].ttft_s for n in range(6)]

    alone, shared, unshared = waits(FAIR, mine), waits(FAIR, mine + flood), waits("longspan", mine + flood)
    later = max(b - a for a, b in zip(alone, shared, strict=True))
    assert later < 1.0
    assert max(b - a for a, b in zip(alone, unshared, strict=True)) > 4 * later, "or there is nothing to share"


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(10, 2000), st.integers(1, 9), st.integers(0, 1)), min_size=1))
@settings(max_examples=10, deadline=None)
def test_one_tenant_changes_nothing_and_without_the_option_none_does(
    drawn: list[tuple[float, int, int, int]],
) -> None:
    def actions(policy: str, tenants: list[str | None]) -> list[object]:
        arrivals = [
            arrival(at, f"r{n}", prompt, outputs, ServiceLevel(tenant=tenants[n % len(tenants)], priority=priority))
            for n, (at, prompt, outputs, priority) in enumerate(sorted(drawn))
        ]
        return [actions for _, _, actions in played(arrivals, plain(2), policy=policy, num_instances=2).steps]

    today = actions("longspan", [None])
    assert actions("longspan", ["a", "b", None]) == today
    assert actions(FAIR, [None]) == today
    assert actions(FAIR, ["a"]) == today


def test_nobody_starves_and_shares_are_told() -> None:
    """A tenant beyond its share gets what the others leave."""
    arrivals = [
        arrival(0.01 * n, f"{tenant}{n}", 300, 3, of(tenant))
        for n in range(200) for tenant in (("x", "y") if n % 10 == 0 else ("x",))
    ]  # fmt: skip
    run = played(arrivals, plain(), policy=FAIR)
    assert all(found.ended for found in run.played.values())
    assert run.decisions(OVER_SHARE) and run.decisions(WITHIN_SHARE)
    assert {decision.request_ids[0][0] for decision in run.decisions(OVER_SHARE)} >= {"x"}


def test_a_higher_priority_goes_before_any_share() -> None:
    arrivals = [
        *[arrival(0.0, f"a{n}", 500, 1, of("a", priority=1)) for n in range(10)],
        *[arrival(0.0, f"b{n}", 500, 1, of("b")) for n in range(10)],
    ]
    run = played(arrivals, plain(), policy=FAIR)
    assert waits_until(run, "a") < min(found.token_times[0] for n, found in run.played.items() if n[0] == "b")


def test_only_who_is_beyond_its_share_is_refused() -> None:
    """Promises know who goes behind whom: of the flood a third is refused, of who keeps within his share few, and
    nobody once it is known what comes of promises to either."""
    mine = [arrival(1.0 * n, f"m{n}", 200, service=ServiceLevel(tenant="mine")) for n in range(120)]
    flood = [arrival(0.14 * n, f"x{n}", 200, service=ServiceLevel(tenant="greedy")) for n in range(857)]
    everybody = sorted(mine + flood, key=lambda pair: pair[0])
    runs = {policy: played(everybody, plain(), policy=policy) for policy in ("longspan", FAIR)}
    mine_refused = {policy: [int(name[1:]) for name in run.refused if name[0] == "m"] for policy, run in runs.items()}
    assert len(mine_refused["longspan"]) > 20 and len(mine_refused[FAIR]) <= 20
    assert max(mine_refused[FAIR], default=0) < 100
    assert sum(name[0] == "x" for name in runs[FAIR].refused) > 250


# what may be said


def test_weights_as_they_are_written() -> None:
    assert read_weights(None) == read_weights("") == {}
    assert read_weights("chat=4, batch=0.5,a.b@c-d_e=1e3") == {"chat": 4.0, "batch": 0.5, "a.b@c-d_e": 1000.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chat", "written as in chat=4"), ("=1", "written as in"), ("chat=x", "written as in"),
        ("chat=0", "the weight"), ("chat=-1", "the weight"), ("chat=inf", "the weight"), ("chat=nan", "the weight"),
        ("a=1,a=2", "names a twice"), ("a b=1", "no name of 1"), (f"{'n' * 65}=1", "no name of 1 to 64"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        create_policy("longspan", {"fair_shares": True, "tenant_weights": text})


def test_weights_need_shares() -> None:
    with pytest.raises(ConfigError, match="needs fair_shares=true"):
        create_policy("longspan:tenant_weights=a=2")
    assert create_policy("longspan:fair_shares=true:tenant_weights=a=2,b=1")


@pytest.mark.parametrize("tenant", ["", "a b", "x" * 65, "ä", "a\n", 7])
def test_names_that_cannot_be(tenant: str) -> None:
    with pytest.raises(RequestError, match="no name of 1 to 64"):
        ServiceLevel(tenant=tenant)
    assert RequestArrived("r", 1, 1, ServiceLevel(tenant="A.b_c@d-9")).service.tenant == "A.b_c@d-9"
