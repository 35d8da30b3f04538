"""Draw which instances ran what, from an event log.

    python docs/draw_groups.py record events.jsonl      # a real run: two long prompts among short ones, two instances
    python docs/draw_groups.py draw events.jsonl docs/groups.svg

One row for each instance, time to the right, one colour for each request; a batch is as wide as it took, and its
colours share its height by the tokens that it computed of each request. Prefills are outlined.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from longspan import SamplingParams
from longspan.config import EngineConfig
from longspan.core.actions import RunBatch
from longspan.core.events import BatchCompleted
from longspan.engine.assembly import start_engine
from longspan.metrics.event_log import read_event_log

WIDTH, ROW, GAP, LEFT, TOP = 1000, 60, 14, 90, 30


async def record(log: Path) -> None:
    """Two prompts of 3,000 and 5,000 tokens, and a short one every second."""
    engine = await start_engine(EngineConfig(instances=2, threads_per_device=1, event_log=log))

    async def ask(number: int, after: float, tokens: int, output: int) -> None:
        await asyncio.sleep(after)
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        async for _ in engine.generate([100 + number] * tokens, params, f"request-{number}"):
            pass

    shorts = [(0.3 + number, 40 + 30 * (number % 5), 30 + 12 * (number % 4)) for number in range(16)]
    await asyncio.gather(*(ask(n, *load) for n, load in enumerate([(2.0, 3000, 90), (9.0, 5000, 60), *shorts])))
    await engine.idle()
    await engine.close()
    assert engine.core.event_log is not None
    print(f"recorded {engine.core.event_log.path}")  # a new file, if there was one by that name


def draw(log: Path, out: Path) -> None:
    records = list(read_event_log(log))
    begin, end = records[0].now, records[-1].now
    scale = (WIDTH - LEFT - 20) / (end - begin)
    issued: dict[int, tuple[float, RunBatch]] = {}
    free_at: dict[int, float] = {}
    colours: dict[str, str] = {}
    marks: list[str] = []
    for record in records:
        if isinstance(record.event, BatchCompleted):
            issued_at, batch = issued.pop(record.event.batch_id)
            start = max(issued_at, *(free_at.get(i, begin) for i in batch.group))  # it may have been queued
            for instance in batch.group:
                free_at[instance] = record.now
                marks += bars(batch, instance, start - begin, record.now - begin, scale, colours)
        for action in record.actions:
            if isinstance(action, RunBatch):
                issued[action.batch_id] = record.now, action
    rows = read_event_log(log).config.num_instances
    height = TOP + rows * (ROW + GAP) + 30
    labels = [
        f'<text x="8" y="{TOP + i * (ROW + GAP) + ROW / 2 + 5}" fill="#555">instance {i}</text>' for i in range(rows)
    ]
    ticks = [
        f'<text x="{LEFT + s * scale:.0f}" y="{height - 8}" fill="#555" text-anchor="middle">{s} s</text>'
        for s in range(0, int(end - begin) + 1, max(1, round((end - begin) / 10)))
    ]
    out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="14"><rect width="100%" height="100%" fill="#fff"/>{"".join(labels + marks + ticks)}</svg>\n'
    )


def bars(
    batch: RunBatch, instance: int, start: float, end: float, scale: float, colours: dict[str, str]
) -> list[str]:
    """The batch on one instance: its requests' shares, one over the other."""
    tokens = {s.request_id: s.length for s in batch.segments if instance in s.compute}
    tokens = tokens or {s.request_id: 1 for s in batch.segments}
    total, y = sum(tokens.values()), float(TOP + instance * (ROW + GAP))
    x, width = LEFT + start * scale, max(0.3, (end - start) * scale)
    prefill = any(s.length > 1 for s in batch.segments)
    marks = []
    for request_id, count in tokens.items():
        colour = colours.setdefault(request_id, f"hsl({len(colours) * 137 % 360},65%,{58 if prefill else 62}%)")
        height = ROW * count / total
        marks.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')
        y += height
    if prefill:
        top = TOP + instance * (ROW + GAP)
        marks.append(
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{ROW}" fill="none" stroke="#333"/>'
        )
    return marks


if __name__ == "__main__":
    if sys.argv[1] == "record":
        asyncio.run(record(Path(sys.argv[2])))
    else:
        draw(Path(sys.argv[2]), Path(sys.argv[3]))
