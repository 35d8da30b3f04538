"""`longspan dashboard`: an event log in a browser."""

from __future__ import annotations

import asyncio
import gzip
from heapq import nlargest
from operator import attrgetter
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from longspan.entrypoints.bind import bind
from longspan.entrypoints.dashboard.files import PageFiles
from longspan.entrypoints.dashboard.one_file import page_with
from longspan.entrypoints.event_logs import opened, tell_notes
from longspan.errors import ConfigError
from longspan.files import check_writable, write_whole
from longspan.metrics.event_log import EventLog
from longspan.metrics.explain import explain_all
from longspan.metrics.fleet.log_frames import LogFrames, frames_of
from longspan.metrics.request_list import find_requests, list_requests

HOST = "127.0.0.1"
MOST_STORIES = 8
MOST_HELD, MOST_READ = 1000, 4_000_000
"""Of a page that is one file: stories that it holds, and stories times records of the log."""


def serve_log(file: Path, port: int) -> int:
    """Serve the page until a signal. Raises ReplayError, ConfigError, LongspanError."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}, but must lie in [0, 65535]")
    with bind(HOST, port) as sock:
        app = log_app(file, _read(file))
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        sock.listen()  # before it is told where: a browser may be quick
        print(f"{file} at http://{HOST}:{sock.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        asyncio.run(_Server(config).serve(sockets=[sock]))
    return 0


def write_page(file: Path, out: Path) -> int:
    """Write the page as one file. Raises ReplayError, ConfigError."""
    check_writable(out)
    with opened(file, passes=5) as log:
        tell_notes(log)
        shown = frames_of(log)
        shown.stories = _longest_waits(log)
        write_whole(out, page_with(_packed(shown)))
    print(f"{out}: open it in a browser")
    return 0


def log_app(file: Path, data: bytes) -> Starlette:
    """Make an application that serves the page of a log. data: its frames, as JSON in gzip."""
    page = PageFiles("log")

    async def show(request: Request) -> Response:
        return page.answer(request)

    async def log(request: Request) -> Response:
        headers = {"content-encoding": "gzip", "cache-control": "no-store"}
        return Response(data, headers=headers, media_type="application/json")

    async def story(request: Request) -> Response:
        given = request.path_params["request_id"]
        told = await asyncio.to_thread(_stories, file, given)
        if not told:
            error = {"error": {"message": f"no request {given[:200]!r} arrives in this log"}}
            return Response(msgspec.json.encode(error), 404, media_type="application/json")
        return Response(msgspec.json.encode({"stories": told}), media_type="application/json")

    routes = [Route(path, show) for path in sorted(page.paths)]
    routes += [Route("/dashboard/log", log), Route("/requests/{request_id:path}/story", story)]
    # A page elsewhere whose name is made to point here is not answered.
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def _read(file: Path) -> bytes:
    with opened(file, passes=2) as log:
        tell_notes(log)
        return _packed(frames_of(log))


def _packed(shown: LogFrames) -> bytes:
    return gzip.compress(msgspec.json.encode(shown), 6)


def _longest_waits(log: EventLog) -> dict[str, list[str]]:
    """Stories of the requests that waited longest: of as many as can be told in some seconds."""
    num_records = sum(1 for _ in log)
    most = min(MOST_HELD, max(MOST_STORIES, MOST_READ // max(1, num_records)))
    found = nlargest(most, list_requests(log), key=attrgetter("longest_wait_s"))
    told = explain_all(log, [each.request_id for each in found]) if found else []
    return {story.request_id: list(story.lines()) for story in told}


def _stories(file: Path, given: str) -> list[dict[str, object]]:
    log = EventLog(file)
    found = find_requests(log, given)[:MOST_STORIES]
    return [
        {"request_id": story.request_id, "lines": list(story.lines())} for story in explain_all(log, found)
    ] if found else []


class _Server(uvicorn.Server):
    """Ends quietly at a signal."""

    def handle_exit(self, sig: int, frame: object) -> None:
        self.should_exit = True
