"""The story of one request: its chapters, and how they are told to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from longspan.core.decision import Decision
from longspan.core.events import RequestArrived
from longspan.metrics.reasons import in_words

Kind = Literal[
    "waits", "prefill", "decode", "scales", "pauses", "migrates", "void", "preempted", "refused", "ended", "missing"
]

MOST_REASONS = 6


@dataclass(frozen=True, slots=True)
class Delayer:
    """Another request that ran meanwhile: for so many seconds, and instances times seconds.

    why: a prompt went first; "" if it is not known.
    """

    request_id: str
    seconds: float
    instance_seconds: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One part of a request's life, from `start` to `end`, seconds of the log's clock.

    group: the instances that ran it, or that it scaled or migrated to. before: those that it had until then.
    count: iterations. tokens: new tokens of a prefill, or tokens that moved. found: tokens before these that had been
    computed for other requests, or for it before it was preempted. others: most requests that shared a batch.
    delayers: requests that ran while it waited or paused, the longest first. over_share_s: how long of that its tenant
    was beyond its share. detail: why it ended, or how it began.
    """

    kind: Kind
    start: float
    end: float
    group: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    masters: tuple[int, ...] = ()
    count: int = 1
    tokens: int = 0
    found: int = 0
    others: int = 0
    delayers: tuple[Delayer, ...] = ()
    over_share_s: float = 0.0
    detail: str = ""
    why: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """All chapters in order."""

    request_id: str
    arrived: RequestArrived
    chapters: tuple[Chapter, ...]

    def lines(self) -> Iterator[str]:
        """Yield lines for people; times count from the arrival."""
        begin = self.chapters[0].start if self.chapters else 0.0
        asked = self.arrived
        yield f"{self.request_id}: {asked.num_prompt_tokens} prompt tokens, at most {asked.max_tokens} to generate"
        for chapter in self.chapters:
            yield f"  {chapter.start - begin:+10.3f} s  {_describe(chapter)}"
            if chapter.delayers:
                yield f"{'':16}meanwhile: {', '.join(map(_describe_delayer, chapter.delayers))}"
            if chapter.over_share_s > 0.0:
                tenant = "its tenant" if asked.service.tenant is None else f"its tenant {asked.service.tenant}"
                yield (
                    f"{'':16}for {chapter.over_share_s:.3f} s of that {tenant} had had more than its share of the "
                    "service: those of tenants within theirs went first"
                )
            for delayer in chapter.delayers:
                if delayer.why:
                    yield f"{'':16}{delayer.request_id} went first: {delayer.why}"
            for sentence in chain.from_iterable(map(in_words, chapter.why)):
                yield f"{'':16}{sentence}"
            others = [decision for decision in chapter.why if not in_words(decision)]
            for decision in others[:MOST_REASONS]:
                yield f"{'':16}{_describe_decision(decision)}"
            if len(others) > MOST_REASONS:
                yield f"{'':16}and {len(others) - MOST_REASONS} decisions more"


def _describe(chapter: Chapter) -> str:
    seconds = f"{chapter.end - chapter.start:.3f} s"
    match chapter.kind:
        case "waits":
            return f"waits {seconds}"
        case "pauses":
            return f"pauses {seconds}; its KV stays on {_instances(chapter.group)}"
        case "prefill" | "decode":
            return f"{_describe_iterations(chapter)}, {seconds}{_describe_company(chapter)}"
        case "scales":
            how = "up" if len(chapter.group) > len(chapter.before) else "down"
            how = how if len(chapter.group) != len(chapter.before) else "over"
            return f"scales {how}: {_describe_move(chapter)}"
        case "migrates":
            return f"{chapter.tokens} tokens of KV migrate {_describe_move(chapter)}, {seconds}"
        case "void":
            return f"an iteration on {_instances(chapter.group)} comes to nothing after {seconds}: an instance is lost"
        case "preempted":
            return "is preempted: its KV is dropped, to be computed again"
        case "refused" | "ended":
            return f"{'is refused' if chapter.kind == 'refused' else 'ends'}: {chapter.detail}"
        case "missing":
            return f"{seconds} are missing in this log"


def _describe_iterations(chapter: Chapter) -> str:
    where = f"{_instances(chapter.group)} (DoP {len(chapter.group)})"
    if chapter.kind == "prefill":
        parts = f" in {chapter.count} chunks" if chapter.count > 1 else ""
        found = f" behind {chapter.found} that were there" if chapter.found else ""
        return f"prefill of {chapter.tokens} tokens{found}{parts} on {where}"
    times = f"{chapter.count} decode iterations" if chapter.count > 1 else "decode iteration"
    return f"{times} on {where}, master {_instances(chapter.masters)}"


def _describe_company(chapter: Chapter) -> str:
    return f", with up to {chapter.others} others" if chapter.others else ""


def _describe_move(chapter: Chapter) -> str:
    return f"from {_instances(chapter.before)} to {_instances(chapter.group)}"


def _describe_delayer(delayer: Delayer) -> str:
    return f"{delayer.request_id} ({delayer.seconds:.3f} s, {delayer.instance_seconds:.3f} instance-seconds)"


def _describe_decision(decision: Decision) -> str:
    predicted = ", ".join(f"{name} {value:.4g}" for name, value in decision.predicted.items())
    chosen = f" -> {_instances(decision.instances)}" if decision.instances else ""
    return f"because: {decision.step}{chosen}{f'; {predicted}' if predicted else ''}"


def _instances(numbers: Sequence[int]) -> str:
    return "+".join(map(str, numbers))
