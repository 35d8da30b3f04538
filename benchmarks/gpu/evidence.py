"""What a GPU makes of this project: is it right, and how near it comes to what the card can do. No GPU is needed to
try the script itself.

    python benchmarks/gpu/evidence.py correctness         every kernel, then whole models, against float64 and the CPU
    python benchmarks/gpu/evidence.py speed               the card's ceilings, prefill and decode
    python benchmarks/gpu/evidence.py speed --device cpu --shape tiny

Each takes five minutes at most and writes one JSON file, after every case. Called again, it goes on with the cases that
are not done by this source on this machine: those that failed, crashed, or had no time. Each part runs in a process of
its own, and a new one goes on behind a case that crashed it. Nothing is fetched: what is missing is listed first
(prepare.py collects it).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results" / "gpu"
TRIALS = ROOT / "build" / "gpu"  # git ignores it
sys.path[:0] = [str(ROOT / "src"), str(HERE), str(ROOT)]

if TYPE_CHECKING:
    from case import Part, Where
    from record import Record

COMMANDS = {
    "correctness": ("kernels", "sanitizer", "instances", "engine"),
    "speed": ("ceilings", "attention", "prefill", "decode"),
}
NEEDED = (
    "torch", "numpy", "msgspec", "gguf", "safetensors", "tokenizers", "transformers", "jinja2", "rich", "filelock",
)  # fmt: skip
TOTAL_S = 290.0
CASE_S = 60.0  # the most that one case may take: one that hangs does not take its part's time with it
_OUTPUT_KEPT = 6000  # characters of what a part printed before it crashed
_DUMP_S = 1.0  # for a part that hangs to write its stacks


def main() -> int:
    options = parse()
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"missing here: {', '.join(missing)}; benchmarks/gpu/prepare.py collects what must be brought")
        return 2
    if options.command == "case":
        part, name = options.names
        case = next(case for case in load(part).cases(where(options)) if case.name == name)
        print(json.dumps(case.run_seeded(), indent=1))
        return 0
    if options.command == "part":
        from child import attach, run_cases

        attach(options.parent)
        (part,) = options.names
        wanted = functools.partial(is_wanted, options.only, part)
        run_cases(load(part), where(options), wanted, set(json.loads(options.skip)), options.report)
    return run_command(options)


def is_wanted(only: str, part: str, case: str) -> bool:
    return only in f"{part}: {case}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*COMMANDS, "part", "case"], help="part, case: what the others start")
    parser.add_argument("names", nargs="*", help="of a part, and of a case of it")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("large", "tiny"), default="large", help="tiny: no large shapes")
    parser.add_argument("--out", type=Path, help="folder of results (benchmarks/results/gpu; build/gpu on a CPU)")
    parser.add_argument("--only", default="", help="cases whose `PART: NAME` contains this")
    parser.add_argument("--fresh", action="store_true", help="forget what is done")
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--skip", default="[]", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out or (RESULTS if options.device == "cuda" else TRIALS)
    return options


def run_command(options: argparse.Namespace) -> int:
    from record import Record

    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # through `once`, which ends the part
    here = where(options)
    names = {part: [case.name for case in load(part).cases(here)] for part in COMMANDS[options.command]}
    wanted = {part: [case for case in names[part] if is_wanted(options.only, part, case)] for part in names}
    if not any(wanted.values()):
        print(f"no case's name contains {options.only!r}; there are:")
        print("\n".join(f"  {part}: {case}" for part, cases in names.items() for case in cases))
        return 2
    record = Record(options.out, options.command, here.device)
    if options.fresh:
        record.cases = {}
    for part in names:
        record.plan(part, names[part], wanted[part])
    print(record.standing(), flush=True)
    deadline = begin
    for name in COMMANDS[options.command]:
        # What one part leaves of its time, those behind it have; all together have five minutes.
        deadline = min(deadline + load(name).BUDGET_S, begin + TOTAL_S)
        if set(wanted[name]) <= set(record.done(name)):
            continue
        print(f"--- {name}", flush=True)
        PartRun(options, record, name, max(deadline, time.monotonic() + 1.0)).until_through()
    record.save()
    print(f"{time.monotonic() - begin:.0f} s; wrote {record.path.name}: {json.dumps(record.summary())}")
    return 0 if record.is_good() else 1


class PartRun:
    """One part, in processes of its own."""

    def __init__(self, options: argparse.Namespace, record: Record, part: str, deadline: float) -> None:
        self.options = options
        self.record = record
        self.part = part
        self.deadline = deadline
        self.tried: list[str] = []
        self.running: str | None = None
        self.began = 0.0
        self.at_its_end = False

    def until_through(self) -> None:
        """Starts the part, and again behind each case that ends its process, until none is left or the time is over."""
        while not self.at_its_end and time.monotonic() < self.deadline:
            tried = len(self.tried)
            self.once()
            if not self.at_its_end and len(self.tried) == tried:
                return  # it ended before its first case: another try would too

    def once(self) -> None:
        from record import START

        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(self.command(writing), stdout=output, stderr=subprocess.STDOUT,
                                     pass_fds=(writing,), start_new_session=True)  # fmt: skip
            os.close(writing)
            self.running, self.began = None, time.monotonic()
            status = "crashed"
            try:
                for event in events(reading, self.next_deadline):
                    if event is None:
                        # Either it hangs, or it ran well until the part's time was over.
                        status = "timed out" if time.monotonic() >= self.began + CASE_S else "cut off"
                        dump(child)
                        break
                    self.take(event)
            except BaseException:
                status = "abandoned"
                raise
            finally:
                os.close(reading)
                end(child, patiently=status == "crashed")
            if not self.at_its_end and (self.running or not self.tried):
                output.seek(0)
                said = output.read()[-_OUTPUT_KEPT:].decode(errors="replace").replace(f"{ROOT}/", "")
                more = {"exit_code": child.returncode, "output": said}
                self.put(self.running or START, {"status": status, **more})

    def command(self, pipe: int) -> list[str]:
        options, done = self.options, self.record.done(self.part)
        return [
            sys.executable, str(HERE / "evidence.py"), "part", self.part, "--device", options.device,
            "--shape", options.shape, "--only", options.only, "--report", str(pipe), "--parent", str(os.getpid()),
            "--skip", json.dumps([*done, *self.tried]),
        ]  # fmt: skip

    def next_deadline(self) -> float:
        return self.deadline if self.running is None else min(self.deadline, self.began + CASE_S)

    def take(self, event: dict[str, Any]) -> None:
        if "end" in event:
            self.at_its_end = True
        elif "begin" in event:
            self.running, self.began = event["begin"], time.monotonic()
            self.tried.append(event["begin"])
        else:
            self.put(str(self.running), event)
            self.running, self.began = None, time.monotonic()

    def put(self, case: str, outcome: dict[str, Any]) -> None:
        print(f"{case}: {outcome['status']} {outcome.get('why', '')}", flush=True)
        self.record.put(self.part, case, seconds=time.monotonic() - self.began, **outcome)


def events(descriptor: int, deadline: Callable[[], float]) -> Iterator[dict[str, Any] | None]:
    """Lines of JSON from the part's process; None when the time for the next one is over."""
    left = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline() - time.monotonic()))
        if not ready:
            yield None
            return
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def dump(child: subprocess.Popen[bytes]) -> None:
    """The stacks of the part's threads go where its output goes."""
    from child import DUMP

    child.send_signal(DUMP)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_DUMP_S)  # it ends by the signal only where it has not begun


def end(child: subprocess.Popen[bytes], *, patiently: bool) -> None:
    """The part's process and whatever it started. One that has said its last word may leave by itself."""
    try:
        child.wait(5.0 if patiently else 0.0)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def where(options: argparse.Namespace) -> Where:
    import torch

    from case import Where

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here; --device cpu --shape tiny tries the script")
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    return Where(device, large=options.shape == "large")


def load(part: str) -> Part:
    return importlib.import_module(f"parts.{part}")


if __name__ == "__main__":
    sys.exit(main())
