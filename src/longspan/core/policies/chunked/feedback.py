"""Feedback: what iterations took over what was predicted of them corrects the predictions to come.

A cost model is wrong by some per cent on the machine that it was measured on, by more on a busier one; instances
differ; and a request that decodes waits between its iterations, for a pipeline's first stage or for peers. All three
are seen in what has just run. So the correction is a running average of actual over predicted, by kind of iteration
and by instance, and another one of the time from token to token over the time that its iteration took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from longspan.core.actions import RunBatch
from longspan.core.books.request import Request
from longspan.core.news import News

Kind = Literal["prefill", "decode", "mixed", "wide"]
"""wide: several instances compute a chunk together, whatever else there is."""

LOW, HIGH = 0.2, 5.0
"""Corrections stay within these, whatever was measured."""
_SOONER = 1.2
"""A prediction that was too low is corrected so much sooner than the gain says, one that was too high so much later:
what noise makes of the averages is then on the safe side."""
_SURPRISE = 2.0
"""One iteration that took so many times longer, or shorter, than expected counts no more than that: it may have been
another program's turn."""
_GAP_HIGH = 3.0
_QUIET = 1e-12


@dataclass(frozen=True, slots=True)
class _Issued:
    at: float
    predicted_s: float
    kind: Kind


class Feedback:
    """Corrections of one deployment's predictions.

    gain: weight of one iteration in the averages; 0 corrects nothing. pace: seconds from token to token over those of
    an iteration with it; at least 1. took_s: of the batches that have just completed, by number. first_at: by id, when
    requests got their first tokens, as far as that is known.
    """

    def __init__(self, gain: float, num_instances: int) -> None:
        self.gain = gain
        self.num_instances = num_instances
        self.pace = 1.0
        self.took_s: dict[int, float] = {}
        self._kinds: dict[Kind, float] = {"prefill": 1.0, "decode": 1.0, "mixed": 1.0, "wide": 1.0}
        self._instances: dict[int, float] = {}
        self._mean = 1.0  # of all instances, also of those of which nothing is known
        self._issued: dict[int, _Issued] = {}
        self._latest: dict[int, tuple[Sequence[int], _Issued]] = {}  # by first of the group, for what was queued behind
        self._token_at: dict[str, float] = {}
        self.first_at: dict[str, float] = {}

    def expect(self, batch_id: int, at: float, predicted_s: float, kind: Kind) -> None:
        """Note what was predicted, uncorrected, of a batch that begins now."""
        self._issued[batch_id] = _Issued(at, predicted_s, kind)

    def begin(self, batch_id: int, at: float) -> None:
        """Note that a batch that was behind others begins only now."""
        if (issued := self._issued.get(batch_id)) is not None:
            self._issued[batch_id] = replace(issued, at=at)

    def renew(self, num_instances: int) -> None:
        """Note that predictions are others from now on: what was wrong with those before is forgotten; when requests
        got their tokens is not."""
        self._kinds = dict.fromkeys(self._kinds, 1.0)
        self.num_instances, self._instances, self._mean = num_instances, {}, 1.0
        self._issued.clear()
        self._latest.clear()

    def scale(self, kind: Kind, instances: Iterable[int] = ()) -> float:
        """Return actual over predicted of such iterations there: of the slowest of these instances."""
        slowest = max(map(self.slowness, instances), default=1.0)
        return min(HIGH, max(LOW, self._kinds[kind] * slowest))

    def slowness(self, instance: int) -> float:
        """Return actual over predicted there, beside the same of other instances."""
        return self._instances.get(instance, 1.0)

    def typical(self, kind: Kind) -> float:
        """Return actual over predicted of such iterations on the average instance."""
        return min(HIGH, max(LOW, self._kinds[kind] * self._mean))

    def left(self, batch: RunBatch, alike: int, now: float) -> float | None:
        """Return the seconds until a batch that runs, and so many like it behind it, are over; None: nothing is known
        of it. One that is overdue is expected to take as long again as it is late."""
        issued = self._of(batch)
        if issued is None:
            return None
        each_s = self.scale(issued.kind, batch.group) * issued.predicted_s
        return abs(each_s - (now - issued.at)) + alike * each_s

    def learn(self, news: News, going_on: Callable[[Sequence[str]], Sequence[str]], now: float) -> None:
        """Compare what has just run with what was predicted. going_on: of many ids, those of requests that are to have
        more tokens."""
        self.took_s.clear()
        for batch in news.fleet.void:
            self._issued.pop(batch.batch_id, None)
        for request in news.fleet.returned:
            self.forget(request)
        for batch in news.completed:
            self._compare(batch, going_on, now)
        for request in news.ended:
            self._token_at.pop(request.id, None)
            self.first_at.pop(request.id, None)

    def _compare(self, batch: RunBatch, going_on: Callable[[Sequence[str]], Sequence[str]], now: float) -> None:
        issued = self._of(batch)
        self._issued.pop(batch.batch_id, None)
        if issued is None:
            return
        took_s = self.took_s[batch.batch_id] = now - issued.at
        self._latest[batch.group[0]] = batch.group, _Issued(now, issued.predicted_s, issued.kind)
        if not self.gain:
            return
        if issued.predicted_s > _QUIET:
            self._correct(issued.kind, batch.group, took_s / issued.predicted_s)
        self._note_tokens(going_on([segment.request_id for segment in batch.segments if segment.emits]), took_s, now)

    def _of(self, batch: RunBatch) -> _Issued | None:
        issued = self._issued.get(batch.batch_id)
        if issued is None:  # it was queued behind the one before, and is the same again
            group, latest = self._latest.get(batch.group[0], ((), None))
            return latest if group == batch.group else None
        return issued

    def _correct(self, kind: Kind, group: Sequence[int], ratio: float) -> None:
        there = max(map(self.slowness, group))
        self._kinds[kind] = self._towards(self._kinds[kind], ratio / there)
        if len(group) < self.num_instances:
            relative = ratio / self._kinds[kind] / self._mean  # what all have in common is their kind's
            for number in group:
                known = self.slowness(number)
                if known == there:  # a group takes as long as its slowest, and tells nothing of the others
                    corrected = self._instances[number] = self._towards(known, relative)
                    self._mean += (corrected - known) / self.num_instances

    def _towards(self, known: float, ratio: float) -> float:
        believed = min(_SURPRISE * known, max(known / _SURPRISE, ratio))
        weight = self.gain * _SOONER if believed > known else self.gain / _SOONER
        return min(HIGH, max(LOW, known + weight * (believed - known)))

    def _note_tokens(self, request_ids: Sequence[str], took_s: float, now: float) -> None:
        """Note that these have got a token from an iteration that took so long."""
        before = list(map(self._token_at.get, request_ids))
        apart = set(before)  # nearly always one: who were in one iteration are in the next
        if None in apart:
            for request_id in request_ids:
                self.first_at.setdefault(request_id, now)
        self._token_at |= dict.fromkeys(request_ids, now)
        if took_s <= _QUIET:
            return
        gap = {at: min(_GAP_HIGH, (now - at) / took_s) for at in apart if at is not None}
        gaps = [gap[at] for at in before if at is not None]
        if gaps:
            mean = sum(gaps) / len(gaps)
            self.pace = max(1.0, self.pace + self.gain / 2 * (mean - self.pace))

    def forget(self, request: Request) -> None:
        """Note that the request's tokens are interrupted: the next gap is no iteration's."""
        self._token_at.pop(request.id, None)
