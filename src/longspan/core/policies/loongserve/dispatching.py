"""Step 1, dispatching (section 5.1, equations 1 and 2): which prompts are prefilled next, in order of arrival.

A prompt joins R_p while there is memory for it and while joining beats waiting (`joining.py`).

Then decode batches B_i are looked at, one after another. If their instances G_i let further prompts R' in,

    Cost = sum over r in B_i of T(R_p + R', E_p + G_i) / r.output_len                           (equation 1)
    Gain = sum over r in R' of (AvgLat_d - min over B_i of exec_time)+ / r.input_len            (equation 2)

and B_i pauses if Gain > Cost. Its KV stays where it is. If no prompt can be dispatched in that way either, the prompts
go to as few decoding instances as have room for them once their KV has moved; step 2 says whether that pays.
"""

from __future__ import annotations

from typing import NamedTuple

from longspan.core.decision import Decision
from longspan.core.policies.loongserve.allocation import emptyings
from longspan.core.policies.loongserve.joining import Queue
from longspan.core.policies.loongserve.survey import DecodeBatch, Prompt, Survey


class Dispatch(NamedTuple):
    """The prompts that are dispatched, and where they find room.

    prompts: R_p, in order of arrival. rooms: E_p, instance -> room. paused: the decode batches that give theirs.
    lacking: decoding instances that must be emptied first, or R_p has no room.
    """

    prompts: tuple[Prompt, ...]
    rooms: dict[int, int]
    lacking: tuple[int, ...] = ()
    paused: tuple[DecodeBatch, ...] = ()
    decisions: tuple[Decision, ...] = ()


def dispatch(queue: Queue, found: Survey, capacity: int) -> Dispatch:
    """Choose which prompts to prefill, and where.

    queue: prompts of which the pool can hold all even when they have grown. capacity: slots of an instance.
    """
    prompts, rooms, paused, decisions = queue.prompts, dict(found.free), [], []
    room = sum(rooms.values())
    count, _ = queue.join(len(rooms), room)
    for batch in found.batches if count < len(prompts) else ():
        wider = room + sum(batch.rooms.values())
        extended, seconds = queue.join(len(rooms) + len(batch.rooms), wider)
        if extended <= count:
            continue
        left_s = batch.left_s
        gain = sum(left_s / prompt.tokens for prompt in prompts[count:extended])
        cost = batch.lateness(seconds)
        if batch.is_running:  # ours: those who could start now wait for its iteration
            cost += sum(batch.iteration_s / prompt.tokens for prompt in prompts[:count])
        if gain > cost:
            count, room = extended, wider
            rooms |= batch.rooms
            paused.append(batch)
            ids = tuple(request.id for request in batch.requests)
            decisions.append(Decision("pause", ids, tuple(batch.rooms), {"gain": gain, "cost": cost}))
            if count == len(prompts):
                break
    if count:
        return Dispatch(prompts[:count], rooms, (), tuple(paused), tuple(decisions))
    return _dispatch_to_emptied(queue, found, capacity)


def _dispatch_to_emptied(queue: Queue, found: Survey, capacity: int) -> Dispatch:
    """No instance is idle that has room, and no batch pauses: then as few decoding ones as do, once they are empty.

    Whether emptying them pays is for the next step to say.
    """
    room, lacking = sum(found.free.values()), []
    for step in emptyings(found.batches):
        room += capacity
        lacking.append(step.instance)
        count, _ = queue.join(len(found.free) + len(lacking), room)
        if count:
            return Dispatch(queue.prompts[:count], found.free, tuple(lacking))
    return Dispatch((), found.free)
