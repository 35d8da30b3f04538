"""Step 2, allocation (section 5.2, equations 3 and 4): on which instances the dispatched prompts run.

All idle instances to begin with. Then again and again the decoding instance e_min with the fewest slots used, if
its KV fits the other decoding instances, and if moving it there pays:

    Gain = sum over r in R_p of (T(R_p, E_p) - T(R_p, E_p + e_min)) / r.input_len               (equation 3)
    Cost = sum over r in R_p of (V(e_min) / bandwidth) / r.input_len                            (equation 4)

While E_p has no room for R_p, the gain is what else it would wait for: the end of the first decode batch. Ours: the
cost has the decode iteration too that must end first, if one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longspan.core.decision import Decision
from longspan.core.policies.loongserve.prefill_times import PrefillTimes
from longspan.core.policies.loongserve.survey import DecodeBatch, Prompt


class Emptying(NamedTuple):
    """All KV of an instance, `tokens` slots with what is promised there, could move to `targets`."""

    instance: int
    tokens: int
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Allocation:
    """The instances that join a prefill.

    emptied: decoding instances whose KV moves away, so that they join E_p. targets: the instances that take it.
    """

    emptied: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    decisions: tuple[Decision, ...] = ()


def emptyings(batches: Sequence[DecodeBatch]) -> Iterator[Emptying]:
    """Yield one instance after another, the one with the fewest slots used first, while the rest have room."""
    used = {number: slots for batch in batches for number, slots in batch.used.items()}
    rooms = {number: room for batch in batches for number, room in batch.rooms.items()}
    taken: set[int] = set()
    for e_min in sorted(used, key=lambda number: (used[number], number)):
        del rooms[e_min]
        if e_min in taken or used[e_min] > sum(rooms.values()):
            return
        targets = tuple(_put(used[e_min], rooms))
        taken.update(targets)
        yield Emptying(e_min, used[e_min], targets)


def could_pay(
    prompts: Sequence[Prompt], num_allocated: int, times: PrefillTimes, migration_s: Callable[[int], float]
) -> bool:
    """Tell whether one more instance would pay if it were empty at once, with next to nothing to move.

    If not, `allocate` empties none, whatever the decode batches are like.
    """
    if num_allocated == len(times.fixed):
        return False
    lengths = [prompt.tokens for prompt in prompts]
    return times.batch(lengths, num_allocated) - times.batch(lengths, num_allocated + 1) > migration_s(0)


def allocate(
    prompts: Sequence[Prompt],
    num_allocated: int,
    num_lacking: int,
    batches: Sequence[DecodeBatch],
    times: PrefillTimes,
    migration_s: Callable[[int], float],
) -> Allocation | None:
    """Choose which instances to empty, in order; None if R_p lacks some and had better wait.

    prompts: R_p. num_allocated: |E_p| so far. num_lacking: instances that R_p must have beside them for its room.
    batches: decode batches that go on. migration_s: of so many tokens.
    """
    wait_s = max((batch.iteration_s for batch in batches if batch.is_running), default=0.0)
    end_s = min((batch.left_s for batch in batches), default=0.0) if num_lacking else 0.0
    lengths = [prompt.tokens for prompt in prompts]
    weight = sum(1.0 / tokens for tokens in lengths)
    chosen: list[Emptying] = []
    decisions: list[Decision] = []
    for step in emptyings(batches):
        size = num_allocated + len(chosen)
        sooner_s = end_s
        if len(chosen) >= num_lacking:
            sooner_s = times.batch(lengths, size) - times.batch(lengths, size + 1)
        gain, cost = sooner_s * weight, (migration_s(step.tokens) + wait_s) * weight
        if gain <= cost:
            break
        chosen.append(step)
        numbers = {"gain": gain, "cost": cost, "tokens": step.tokens}
        decisions.append(Decision("empty", tuple(prompt.id for prompt in prompts), (step.instance,), numbers))
    if len(chosen) < num_lacking:
        return None
    targets = {number for step in chosen for number in step.targets}
    return Allocation(tuple(step.instance for step in chosen), tuple(sorted(targets)), tuple(decisions))


def _put(tokens: int, rooms: dict[int, int]) -> list[int]:
    """Take the room of `tokens`; returns from whom. All from the fullest that has it, so that others can be emptied
    too; else from those with most."""
    if whole := [number for number in rooms if rooms[number] >= tokens]:
        fullest = min(whole, key=lambda number: (rooms[number], number))
        rooms[fullest] -= tokens
        return [fullest]
    takers = []
    for number in sorted(rooms, key=lambda number: (-rooms[number], number)):
        if tokens > 0:
            taken = min(tokens, rooms[number])
            rooms[number] -= taken
            tokens -= taken
            takers.append(number)
    return takers
