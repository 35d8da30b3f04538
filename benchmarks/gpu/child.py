"""A part's own process: runs its cases one after the other, and reports each on a pipe."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from case import Case, NotHereError, Part, Where, WrongError
from longspan.worker.parent import end_with_parent

_ROOT = Path(__file__).parents[2]
_TRACE_KEPT = 3000  # characters
DUMP = signal.SIGUSR1  # the process writes the stacks of all its threads


def attach(parent: int) -> None:
    """End this process when the parent does, however it ends; write stacks at a crash and at `DUMP`."""
    end_with_parent()
    if os.getppid() != parent:
        os._exit(1)  # it ended before it could be watched
    faulthandler.enable()
    faulthandler.register(DUMP)


def run_cases(part: Part, where: Where, wanted: Callable[[str], bool], skip: Collection[str], pipe: int) -> None:
    """Never returns. Each case is announced before it begins, so that one which ends this process is known."""

    def report(**event: Any) -> None:
        os.write(pipe, json.dumps(event).encode() + b"\n")

    for case in part.cases(where):
        if case.name in skip or not wanted(case.name):
            continue
        report(begin=case.name)
        report(**_outcome(case), seed=case.seed)
        if not _device_answers(where):
            os._exit(3)  # an error of the device stays in the process: the next case needs a new one
    report(end=True)
    os._exit(0)  # threads of a case that failed may still wait for one another


def _outcome(case: Case) -> dict[str, Any]:
    try:
        return {"status": "done", "figures": case.run_seeded()}
    except NotHereError as reason:
        return {"status": "not here", "why": str(reason)} | ({"passing": True} if reason.passing else {})
    except WrongError as wrong:
        return {"status": "wrong", "why": str(wrong), "figures": wrong.figures}
    except Exception as error:
        trace = traceback.format_exc()[-_TRACE_KEPT:].replace(f"{_ROOT}/", "")
        return {"status": "failed", "why": f"{type(error).__name__}: {error}"[:500], "trace": trace}


def _device_answers(where: Where) -> bool:
    try:
        if where.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
