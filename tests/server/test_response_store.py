"""What is kept of responses: within its bounds, whoever sends what, by an independent model of who gives up which."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from longspan.entrypoints.responses.store import OVERHEAD, ResponseStore, Stored, Turn

MOST, BYTES = 5, 8 * OVERHEAD + 1000
OWNERS = st.sampled_from(["a", "b", "c"])
SIZES = st.integers(0, 700)


class Model(RuleBasedStateMachine):
    """All that was ever put in, in order, and what should be left of it."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ResponseStore(MOST, BYTES)
        self.left: list[tuple[str, Stored]] = []
        self.everything: list[tuple[str, Stored]] = []
        self.given_up = 0

    @rule(owner=OWNERS, answer=SIZES, items=SIZES, follows=st.integers(0, 3))
    def put(self, owner: str, answer: int, items: int, follows: int) -> None:
        """It goes on from one of its owner's last responses, be it still there or not; or from none."""
        before = [stored.turn for who, stored in self.everything if who == owner][-follows:] if follows else []
        stored = Stored(f"r{len(self.everything)}", b"x" * answer, Turn(before[0] if before else None, b"y" * items, 1))
        self.everything.append((owner, stored))
        self.store.put(owner, stored)
        if stored.size + stored.turn.size > BYTES:
            self.given_up += 1
            return
        self.left.append((owner, stored))
        while len(self.left) > MOST or self.size(None) > BYTES:
            owners = {who for who, _ in self.left}
            most = [(len([1 for who, _ in self.left if who == one]) if len(self.left) > MOST else self.size(one), one)
                    for one in owners]  # fmt: skip
            victims = [one for amount, one in most if amount == max(most)[0]]
            gone = [one for one in victims if self.lacks_its_oldest(one)]
            assert gone, "whoever had most has given up nothing"
            self.left.remove(next(each for each in self.left if each[0] == gone[0]))
            self.given_up += 1

    def lacks_its_oldest(self, owner: str) -> bool:
        oldest = next(stored for who, stored in self.left if who == owner)
        return self.store.get(owner, oldest.response_id) is None

    @rule(which=st.integers(0, 30), owner=OWNERS)
    def delete(self, which: int, owner: str) -> None:
        """Only one's own."""
        response_id = f"r{which}"
        own = [each for each in self.left if each == (owner, each[1]) and each[1].response_id == response_id]
        assert self.store.delete(owner, response_id) is bool(own)
        for each in own:
            self.left.remove(each)

    def size(self, owner: str | None) -> int:
        """Bytes of what is left: each response, and each turn that one of them needs, once."""
        left = [stored for who, stored in self.left if owner in (None, who)]
        turns = {turn for stored in left for turn in stored.turn.path()}
        return sum(len(stored.answer) + OVERHEAD for stored in left) + sum(len(t.items) + OVERHEAD for t in turns)

    @invariant()
    def books_are_right(self) -> None:
        assert self.store.num_responses == len(self.left) <= MOST
        assert self.store.num_bytes == self.size(None) <= BYTES
        assert self.store.num_evicted == self.given_up
        for who, stored in self.everything:
            for owner in ("a", "b", "c"):
                found = self.store.get(owner, stored.response_id)
                assert (found is stored) == (owner == who and (who, stored) in self.left)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_chain_of_many_turns_needs_no_stack() -> None:
    turn: Turn | None = None
    for number in range(20_000):
        turn = Turn(turn, b"x", 1)
        if number == 10_000:
            middle = turn
    store = ResponseStore(3, 2**30)
    assert turn is not None
    store.put("a", Stored("last", b"", turn))
    store.put("a", Stored("middle", b"", middle))
    assert store.num_bytes == 20_000 * (OVERHEAD + 1) + 2 * OVERHEAD
    assert store.delete("a", "last")
    assert store.num_bytes == 10_001 * (OVERHEAD + 1) + OVERHEAD


def test_one_owner_pushes_out_only_its_own() -> None:
    store = ResponseStore(4, 2**20)
    store.put("quiet", Stored("q", b"", Turn(None, b"", 0)))
    for number in range(100):
        store.put("loud", Stored(f"l{number}", b"", Turn(None, b"", 0)))
    assert store.get("quiet", "q") is not None and store.num_responses == 4
    assert [store.get("loud", f"l{number}") is not None for number in (96, 97, 98, 99)] == [False, True, True, True]
    assert store.get("loud", "q") is None and not store.delete("loud", "q")
