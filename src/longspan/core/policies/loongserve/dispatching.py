"""Step 1, dispatching (section 5.1, equations 1 and 2): who is prefilled next, in order of arrival.

A prompt joins R_p while there is memory for it and while joining beats waiting. With n prompts dispatched already,

    joining costs   n (T(R_p + r, E_p) - T(R_p, E_p)) + T(R_p + r, E_p)     all run as one batch
    or              n (T(R_p, E_p - c) - T(R_p, E_p)) + T({r}, c)           r has c instances for itself
    waiting costs   T(R_p, E_p) + T({r}, E_p)                               r runs after them

in seconds of input latency. For equal prompts, joining as one batch wins as long as the work of R_p is less than its
fixed cost: that is the paper's tipping point between a memory-bound and a compute-bound prefill, derived in place of
the released code's constant `max_prefill_time`. The second line lets a short prompt go beside a long one.

Then decode batches B_i are looked at, one after another. If their instances G_i let further prompts R' in,

    Cost = sum over r in B_i of T(R_p + R', E_p + G_i) / r.output_len                           (equation 1)
    Gain = sum over r in R' of (AvgLat_d - min over B_i of exec_time)+ / r.input_len            (equation 2)

and B_i pauses if Gain > Cost. Its KV stays where it is. If nobody can be dispatched in that way either, the prompts go
to as few decoding instances as have room for them once their KV has moved; step 2 says whether that pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longspan.core.decision import Decision
from longspan.core.policies.loongserve.allocation import emptyings
from longspan.core.policies.loongserve.prefill_times import PrefillTimes
from longspan.core.policies.loongserve.survey import DecodeBatch, Prompt, Survey

MAX_BATCHING = 256
"""|R_p| |E_p| at most, or MIN_PROMPTS prompts, whatever is more: it keeps batching below a millisecond."""
MIN_PROMPTS = 16


@dataclass(frozen=True, slots=True)
class Dispatch:
    """prompts: R_p, in order of arrival. rooms: E_p, instance -> room. paused: the decode batches that give theirs.

    lacking: decoding instances that must be emptied first, or R_p has no room.
    """

    prompts: tuple[Prompt, ...]
    rooms: dict[int, int]
    lacking: tuple[int, ...] = ()
    paused: tuple[DecodeBatch, ...] = ()
    decisions: tuple[Decision, ...] = ()


def dispatch(
    queue: Sequence[Prompt], found: Survey, times: PrefillTimes, max_batch_tokens: int, capacity: int
) -> Dispatch:
    """queue: waiting prompts, first come first, of which the pool can hold all even when they have grown.

    max_batch_tokens: tokens dispatched at once, for each instance; where there are several, beside the longest prompt.
    capacity: slots of an instance.
    """
    rooms, paused, decisions = dict(found.free), [], []
    chosen = _join(queue, rooms, times, max_batch_tokens)
    for batch in found.batches:
        if len(chosen.prompts) == len(queue):
            break
        wider = rooms | batch.rooms
        extended = _join(queue, wider, times, max_batch_tokens)
        extra = extended.prompts[len(chosen.prompts) :]
        if not extra:
            continue
        left_s = batch.left_s
        gain = sum(left_s / prompt.tokens for prompt in extra)
        cost = batch.lateness(extended.seconds)
        if batch.is_running:  # ours: those who could start now wait for its iteration
            cost += sum(batch.iteration_s / prompt.tokens for prompt in chosen.prompts)
        if gain > cost:
            chosen, rooms = extended, wider
            paused.append(batch)
            ids = tuple(request.id for request in batch.requests)
            decisions.append(Decision("pause", ids, tuple(batch.rooms), {"gain": gain, "cost": cost}))
    if chosen.prompts:
        return Dispatch(chosen.prompts, rooms, (), tuple(paused), tuple(decisions))
    return _dispatch_to_emptied(queue, found, times, max_batch_tokens, capacity)


def _dispatch_to_emptied(
    queue: Sequence[Prompt], found: Survey, times: PrefillTimes, max_batch_tokens: int, capacity: int
) -> Dispatch:
    """No instance is idle that has room, and no batch pauses: then as few decoding ones as do, once they are empty.

    Whether emptying them pays is for the next step to say.
    """
    rooms, lacking = dict(found.free), []
    for step in emptyings(found.batches):
        rooms[step.instance] = capacity
        lacking.append(step.instance)
        chosen = _join(queue, rooms, times, max_batch_tokens)
        if chosen.prompts:
            return Dispatch(chosen.prompts, found.free, tuple(lacking))
    return Dispatch((), found.free)


@dataclass(frozen=True, slots=True)
class _Joined:
    """seconds: T(R_p, E_p)."""

    prompts: tuple[Prompt, ...]
    seconds: float


def _join(queue: Sequence[Prompt], rooms: dict[int, int], times: PrefillTimes, max_batch_tokens: int) -> _Joined:
    """The longest part of the queue, from its head, that fits these instances and of which each joined gladly."""
    E, room = len(rooms), sum(rooms.values())
    if E == 0:
        return _Joined((), 0.0)
    most = max(MIN_PROMPTS, MAX_BATCHING // E)
    batch = times.fixed[:E]  # T of those who joined, as one batch, on 1, 2, ... E instances
    tokens = longest = joined = 0
    for prompt in queue[:most]:
        room -= prompt.need
        tokens += prompt.tokens
        longest = max(longest, prompt.tokens)
        work = times.work(prompt.tokens)
        if room < 0:
            break
        apart = longest if E > 1 else 0  # a long one can have instances, and so a batch, of its own
        if joined and tokens - apart > max_batch_tokens * E:
            break
        if joined and not _joining_pays(joined, batch, work, times.fixed, E):
            break
        batch = [seconds + more for seconds, more in zip(batch, work, strict=False)]
        joined += 1
    return _Joined(tuple(queue[:joined]), batch[E - 1])


def _joining_pays(n: int, batch: Sequence[float], work: Sequence[float], fixed: Sequence[float], E: int) -> bool:
    """Whether one more prompt should run now, with the n others or beside them, rather than after them."""
    now = batch[E - 1]
    wait = now + fixed[E - 1] + work[E - 1]
    if n * work[E - 1] + now + work[E - 1] <= wait:
        return True
    return any(n * (batch[E - c - 1] - now) + fixed[c - 1] + work[c - 1] <= wait for c in range(1, E))
