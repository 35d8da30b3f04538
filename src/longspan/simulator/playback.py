"""Requests played to a scheduler on a virtual clock, with durations that the caller makes up.

For tests of policies, and examples small enough to follow by hand. What hardware would do is for the simulator to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from longspan.core.actions import Action
from longspan.core.events import Event, RequestArrived, TokenOutput
from longspan.core.hierarchy import AnyScheduler
from longspan.simulator.cost import Seconds
from longspan.simulator.driver import Driver, Work


@dataclass(slots=True)
class Played:
    """The times that a client sees, in seconds. Not `ended` at the end of it all: refused, or left waiting."""

    arrived: float
    num_output_tokens: int
    token_times: list[float] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return len(self.token_times) == self.num_output_tokens

    @property
    def ttft_s(self) -> float:
        return self.token_times[0] - self.arrived


def play(
    scheduler: AnyScheduler,
    arrivals: Iterable[tuple[float, RequestArrived]],
    seconds: Callable[[Work], float],
    on_step: Callable[[float, Event, list[Action]], None] = lambda now, event, actions: None,
) -> dict[str, Played]:
    """Play until nothing runs and no request is to come; each generates as many tokens as it may.

    arrivals: (time, request), in any order. seconds: how long a batch or migration takes; pipeline stages share that of
        a batch evenly. on_step: called after each event is handled, with what was decided.
    """
    playback = _Playback(scheduler, seconds, on_step)
    for at, arrival in arrivals:
        playback.push(at, arrival)
    playback.run_out()
    return playback.played


class _Playback(Driver):
    def __init__(
        self,
        scheduler: AnyScheduler,
        seconds: Callable[[Work], float],
        on_step: Callable[[float, Event, list[Action]], None],
    ) -> None:
        stages = scheduler.config.pp
        super().__init__(scheduler, lambda work: Seconds(0.0, (seconds(work) / stages,) * stages))
        self.played: dict[str, Played] = {}
        self._on_step = on_step

    def _arrives(self, request: RequestArrived) -> None:
        self.played[request.request_id] = Played(self.now, request.max_tokens)

    def _sample(self, request_id: str) -> TokenOutput:
        request = self.played[request_id]
        if request.ended:
            return TokenOutput(request_id)
        request.token_times.append(self.now)
        return TokenOutput(request_id, "length" if request.ended else None)

    def _handled(self, event: Event, actions: list[Action]) -> None:
        self._on_step(self.now, event, actions)
