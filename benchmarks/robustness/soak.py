"""Half an hour with everything on: `make soak`, or ARGS="--minutes 2".

One server after the other, each for its share of the time, in fp32: a pool so small that requests are preempted, long
prompts and short ones, several choices, stops, log probabilities, penalties, clients that leave at random moments, the
fuzzer's hostile requests; an event log that is rotated, and one whose disk becomes full. Again and again all is let
come to an end, and looked at; and in between fixed prompts are asked for, which must get the tokens that transformers
gives them, whatever runs beside them.

Bars: every request ends; nothing is running, waiting or held in the pool when no request is there; memory, threads and
files as they were after the first tenth; no answer of status 5xx, no traceback; every fixed prompt exact; the event log
replays, or was switched off where its disk was full, and counted; exit code 0 after SIGTERM. A bar that is missed is an
exit code of 1.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.http_server import end_cleanly_on_sigterm
from benchmarks.robustness.attack import Attack, Leave, ReadSome, Send, Step, Wait
from benchmarks.robustness.grammar import CHAT, COMPLETIONS, post
from benchmarks.robustness.grammar import attack as hostile
from benchmarks.robustness.hostile_client import Outcome, carry_out
from benchmarks.robustness.watched_server import Held, WatchedServer, replays, watched

MODEL = "smollm2-135m"
ROTATED_BYTES, LEFT_ON_DISK_BYTES = 128 * 1024, 2 * 1024
SERVER = ("--dtype", "float32", "--max-model-len", "600", "--max-body-mb", "8", "--header-timeout-s", "6",
          "--body-timeout-s", "6", "--event-log-max-bytes", str(ROTATED_BYTES))  # fmt: skip
AT_ONCE, LOOKS = 6, 6
ANSWER_WITHIN_S, CLOSE_WITHIN_S, IDLE_WITHIN_S = 300.0, 90.0, 120.0
FIXED_TOKENS, LEAST_MARGIN = 24, 1e-3
VOCAB = 49_000
WORDS = ["the", "whale", "turned", "slowly", "in", "water", "and", "sea", "ship", "captain", "of", "night", "deep"]


@dataclass(frozen=True)
class Stage:
    """A server, its share of the time, and whether its event log's disk becomes full on the way."""

    name: str
    share: float
    options: tuple[str, ...]
    full_disk: bool = False


STAGES = (
    Stage("medha, tiny pool", 0.45, ("--policy", "medha", "--instances", "2", "--kv-tokens", "400")),
    Stage("elastic_fcfs, full disk", 0.2, ("--policy", "elastic_fcfs", "--instances", "2", "--kv-tokens", "400"), True),
    Stage("medha, two stages", 0.2, ("--policy", "medha", "--instances", "1", "--pp", "2", "--kv-tokens", "700")),
    Stage("loongserve, tensor parallel", 0.15, ("--policy", "loongserve", "--instances", "1", "--tp", "2",
                                                "--kv-tokens", "700")),
)  # fmt: skip


@dataclass(frozen=True)
class Fixed:
    """A prompt, and the text that it must get."""

    prompt: list[int]
    text: str


def fixed_prompts() -> list[Fixed]:
    """Greedy continuations by transformers, in fp32, with the same weights; up to where two tokens are as likely."""
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM

    from longspan.engine.tokenizer import Tokenizer
    from longspan.models.catalog import resolve_model

    torch.set_num_threads(1)  # more of them wait for each other on a busy machine
    resolved = resolve_model(MODEL)
    tokenizer = Tokenizer.load(resolved)
    model = AutoModelForCausalLM.from_pretrained(
        resolved.path.parent, gguf_file=resolved.path.name, dtype=torch.float32
    ).eval()
    draw, found = random.Random(5), []
    for length in (6, 17, 40, 90, 150, 260):
        prompt = tokenizer.encode(" ".join(draw.choices(WORDS, k=length)))[:length]
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([prompt]), max_new_tokens=FIXED_TOKENS, do_sample=False, return_dict_in_generate=True,
                output_logits=True, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        best = torch.cat(out.logits).topk(2).values
        sure = [bool(margin > LEAST_MARGIN) for margin in best[:, 0] - best[:, 1]]
        tokens = out.sequences[0, len(prompt) :].tolist()[: sure.index(False) if False in sure else None]
        found.append(Fixed(list(prompt), tokenizer.decode(tokens).rstrip("\ufffd")))
    return found


@dataclass
class Counts:
    """What became of the requests of one stage."""

    ended: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    fixed: int = 0
    inexact: list[str] = field(default_factory=list)

    def note(self, kind: str, outcome: Outcome, number: int) -> None:
        self.ended[f"{kind}: {outcome.ending}"] += 1
        self.statuses.update(map(str, outcome.statuses))
        failure = outcome.failure
        if failure is None and kind == "ordinary" and outcome.statuses != [200]:
            failure = (
                f"status {outcome.statuses}: {outcome.answers[0].body[:200]!r}" if outcome.answers else outcome.ending
            )
        if failure is not None:
            self.failures.append(f"{kind} {number} ({outcome.attack.name}): {failure}")


class Soak:
    """The load on one server. number: of the next request; what a request is follows from it and the seed."""

    def __init__(self, server: WatchedServer, fixed: Sequence[Fixed], seed: int) -> None:
        self.server = server
        self.fixed = fixed
        self.seed = seed
        self.number = 0
        self.counts = Counts()
        self.lingering: set[asyncio.Task[None]] = set()

    async def run_until(self, end: float) -> None:
        """Several requests at a time, each followed by another, until the time is over and all have ended."""
        await asyncio.gather(*(self._one_after_the_other(end) for _ in range(AT_ONCE)))
        while self.lingering:
            await asyncio.wait(set(self.lingering))

    async def _one_after_the_other(self, end: float) -> None:
        while time.monotonic() < end:
            number, self.number = self.number, self.number + 1
            draw = random.Random(f"{self.seed}/{number}")
            (kind,) = draw.choices(("ordinary", "leaving", "hostile", "fixed"), weights=(45, 20, 25, 10))
            match kind:
                case "ordinary":
                    attack = Attack("ordinary", (Send(ordinary(draw)),))
                case "leaving":
                    attack = leaving(draw)
                case "hostile":
                    attack = hostile(self.seed, number, MODEL)
                case _:
                    await self._fixed(draw.choice(self.fixed), draw.random() < 0.5, number)
                    continue
            work = self._carry_out(kind, attack, number)
            if attack.due == "close":  # it waits for the server's limits; the others need not wait for it
                task = asyncio.create_task(work)
                self.lingering.add(task)
                task.add_done_callback(self.lingering.discard)
            else:
                await work

    async def _carry_out(self, kind: str, attack: Attack, number: int) -> None:
        outcome = await carry_out(attack, self.server.port, ANSWER_WITHIN_S, CLOSE_WITHIN_S)
        self.counts.note(kind, outcome, number)

    async def _fixed(self, fixed: Fixed, stream: bool, number: int) -> None:
        body = {"prompt": fixed.prompt, "max_tokens": FIXED_TOKENS, "temperature": 0, "ignore_eos": True,
                "stream": stream}  # fmt: skip
        attack = Attack("fixed", (Send(post(COMPLETIONS, json.dumps(body).encode())),))
        outcome = await carry_out(attack, self.server.port, ANSWER_WITHIN_S, CLOSE_WITHIN_S)
        self.counts.note("fixed", outcome, number)
        self.counts.fixed += 1
        text = text_of(outcome) if outcome.statuses == [200] else f"status {outcome.statuses}"
        if not text.startswith(fixed.text):
            self.counts.inexact.append(f"{number}: {len(fixed.prompt)} tokens: {text!r} in place of {fixed.text!r}")


def text_of(outcome: Outcome) -> str:
    (answer,) = outcome.answers
    body = answer.body.decode()
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(json.loads(body)["choices"][0]["text"])
    events = [event.removeprefix("data: ") for event in body.split("\n\n") if event.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


def ordinary(draw: random.Random) -> bytes:
    """What clients send who mean well."""
    length = draw.choices((draw.randint(2, 40), draw.randint(80, 300), draw.randint(400, 500)), (70, 24, 6))[0]
    body: dict[str, Any] = {
        "max_tokens": draw.randint(1, 60), "temperature": draw.choice((0, 0.7, 1.3)), "stream": draw.random() < 0.5,
    }  # fmt: skip
    options: dict[str, Any] = {
        "n": draw.randint(2, 3), "seed": draw.randint(0, 2**31), "top_p": 0.9, "top_k": 20, "min_p": 0.05,
        "repetition_penalty": 1.2, "presence_penalty": 0.5, "stop": draw.sample(["e", " the", ".", "\n", "qu"], 2),
        "stop_token_ids": [2, 30], "ignore_eos": True, "priority": draw.randint(-2, 2), "ttft_slo_ms": 300,
        "tpot_slo_ms": 40,
    }  # fmt: skip
    for name in draw.sample(sorted(options), draw.randint(0, 4)):
        body[name] = options[name]
    if body["stream"] and draw.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    logprobs = draw.random() < 0.2
    if draw.random() < 0.4:
        body["messages"] = [{"role": "user", "content": " ".join(draw.choices(WORDS, k=min(length, 350)))}]
        body |= {"logprobs": True, "top_logprobs": 5} if logprobs else {}
        return post(CHAT, json.dumps(body).encode())
    body["prompt"] = [draw.randrange(VOCAB) for _ in range(length)]
    body |= {"logprobs": 5} if logprobs else {}
    return post(COMPLETIONS, json.dumps(body).encode())


def leaving(draw: random.Random) -> Attack:
    """Goes before the first token, between two, or after the last."""
    first: Step = draw.choice((Wait(draw.expovariate(2.0)), ReadSome(draw.choice((1, 500, 3_000)))))
    steps = (Send(ordinary(draw)), first, Wait(draw.choice((0.0, 0.05, 0.5))), Leave(draw.random() < 0.5))
    return Attack("leaving", steps, "nothing", ())


@dataclass
class Look:
    """At a server without work. minutes: since the stage began. busy: what is not zero, but should be."""

    minutes: float
    held: Held
    busy: dict[str, float]


def look(server: WatchedServer, begin: float) -> Look:
    busy = server.busy_after(IDLE_WITHIN_S)
    return Look((time.monotonic() - begin) / 60, server.held(), busy)


def fill_disk(server: WatchedServer, event_log: Path) -> None:
    """No file of the server's process grows beyond what its event log has now and a little: the disk is full then."""
    limit = max(event_log.stat().st_size, server.log.stat().st_size) + LEFT_ON_DISK_BYTES
    resource.prlimit(server.http.process.pid, resource.RLIMIT_FSIZE, (limit, limit))


def run_stage(stage: Stage, minutes: float, fixed: Sequence[Fixed], seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        event_log = Path(folder) / "events.jsonl"
        options = [MODEL, *stage.options, *SERVER, "--event-log", str(event_log)]
        if stage.full_disk:  # one file, which will be too large for the disk
            options = [word for word in options if word not in ("--event-log-max-bytes", str(ROTATED_BYTES))]
        with watched(options, Path(folder)) as server:
            soak = Soak(server, fixed, seed)
            begin = time.monotonic()
            looks = [look(server, begin)]
            for number in range(LOOKS):
                if stage.full_disk and number == LOOKS // 3:
                    fill_disk(server, event_log)
                asyncio.run(soak.run_until(begin + 60 * minutes * (number + 1) / LOOKS))
                if not server.alive:
                    break
                looks.append(look(server, begin))
            gauges = server.http.gauges() if server.alive else {}
            exit_code = server.stop() if server.alive else server.http.process.returncode
            slow = [call for call in server.probe()["slow"] if call[0] >= begin]
            longest = max(slow, key=lambda call: call[1], default=[begin, 0.0, "", ""])
            tracebacks = server.tracebacks()
        pieces = len(list(Path(folder).glob("events*")))
        result = {
            "server": ["longspan", "serve", *(word for word in options if not word.startswith("/"))],
            "minutes": (time.monotonic() - begin) / 60,
            "requests": soak.number,
            "ended": dict(sorted(soak.counts.ended.items())),
            "statuses": dict(sorted(soak.counts.statuses.items())),
            "failures": soak.counts.failures[:20],
            "fixed_prompts_asked": soak.counts.fixed,
            "inexact": soak.counts.inexact[:20],
            "preemptions": gauges.get("vllm:num_preemptions_total"),
            "event_log_errors": gauges.get("longspan:event_log_errors_total"),
            "event_log_pieces": pieces,
            "replays": replays(event_log),
            "looks": [asdict(each) for each in looks],
            "memory_growth": growth([each.held.server_mib + each.held.workers_mib for each in looks]),
            "server_memory_growth": growth([each.held.server_mib for each in looks]),
            "longest_callback_ms": 1000 * longest[1],
            "longest_callback": longest[2:],
            "exit_code": exit_code,
            "tracebacks": sorted(set(tracebacks))[:8],
        }
    return result | {"verdicts": verdicts(stage, result)}


def growth(values: list[float]) -> float:
    """From the second look on, when all that is made once has been made."""
    return values[-1] / values[1] - 1 if len(values) > 2 else 0.0


def verdicts(stage: Stage, result: dict[str, Any]) -> dict[str, bool]:
    looks = result["looks"][1:]
    threads, files = ([each["held"][name] for each in looks] for name in ("threads", "files"))
    return {
        "all_end_well": not result["failures"] and not any(status[0] == "5" for status in result["statuses"]),
        "nothing_stuck": len(looks) == LOOKS and not any(each["busy"] for each in looks),
        "memory_flat": abs(result["memory_growth"]) <= 0.05 and abs(result["server_memory_growth"]) <= 0.1,
        "threads_and_files_flat": bool(looks) and threads[-1] <= threads[0] + 2 and files[-1] <= files[0] + 2,
        "exact": result["fixed_prompts_asked"] > 0 and not result["inexact"],
        "preempted": bool(result["preemptions"]) or "medha" not in stage.name,
        "event_log": result["replays"] and result["event_log_errors"] == int(stage.full_disk),
        "no_traceback": not result["tracebacks"],
        "exit_code_0": result["exit_code"] == 0,
    }  # fmt: skip


def main() -> int:
    options = arguments(
        (__doc__ or "").partition("\n")[0],
        [("minutes", 30.0, "of load"), ("seed", 16, "what the requests follow from"),
         ("stages", "", "only those with this in their name"), ("name", "soak", "result; empty writes none")],
    )  # fmt: skip
    end_cleanly_on_sigterm()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        fixed = other.submit(fixed_prompts).result()
    say(f"{len(fixed)} fixed prompts, by transformers")
    results = {}
    stages = [stage for stage in STAGES if options.stages in stage.name]
    for stage in stages:
        minutes = options.minutes * stage.share / sum(each.share for each in stages)
        results[stage.name] = run_stage(stage, minutes, fixed, options.seed)
        tell(stage.name, results[stage.name])
    if options.name:
        save(options.name, {"model": MODEL, "at_once": AT_ONCE, "seed": options.seed, "stages": results})
    return int(not all(met for result in results.values() for met in result["verdicts"].values()))


def tell(name: str, result: dict[str, Any]) -> None:
    say(
        f"{name}: {result['requests']} requests in {result['minutes']:.1f} min, statuses {result['statuses']}, "
        f"{result['fixed_prompts_asked']} fixed prompts, {result['preemptions']} preemptions, "
        f"{result['event_log_pieces']} pieces of log, memory {100 * result['memory_growth']:+.1f} % (server "
        f"{100 * result['server_memory_growth']:+.1f} %), longest callback {result['longest_callback_ms']:.0f} ms",
    )
    for line in (*result["failures"][:5], *result["inexact"][:5], *result["tracebacks"][:5]):
        say(f"    {line[:400]}")
    for bar, met in result["verdicts"].items():
        if not met:
            say(f"    MISSED {bar}")


if __name__ == "__main__":
    sys.exit(main())
