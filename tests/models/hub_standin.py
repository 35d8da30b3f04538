"""A hub on the loopback interface: what huggingface_hub asks of the real one, for repositories that lie in folders.

    owner/name         is the folder ROOT/owner/name, of which each revision is a folder: ROOT/owner/name/main
    owner/gated-...    answers 401 to those without a token, and 403 to one that is not the right one
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import urlsplit

TOKEN = "hf_right"


@dataclass
class Hub:
    """A hub that runs.

    asked: methods and paths, in order. cuts: how many times the answer with a file's content breaks off half way.
    status: what everything is answered with, if not 200. promised_more: bytes that files are said to have more.
    """

    root: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    cuts: int = 0
    status: int = 200
    promised_more: int = 0
    lock: Lock = field(default_factory=Lock)

    def fetched(self) -> set[str]:
        """The names of the files whose content was asked for."""
        return {path.rpartition("/")[2] for path in self.asked if path.startswith("GET") and "/resolve/" in path}


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    ours = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": ours}))
    ours.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield ours
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def commit_of(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(lambda data, start: self.wfile.write(data[start:]))

    def do_HEAD(self) -> None:
        self._answer(lambda data, start: None)

    def log_message(self, format: str, *args: object) -> None: ...

    def _answer(self, send: Callable[[bytes, int], object]) -> None:
        path = urlsplit(self.path).path
        with self.hub.lock:
            self.hub.asked.append(f"{self.command} {path}")
        try:
            if self.hub.status != 200:
                raise _Refusal(self.hub.status, "")
            if path.startswith("/api/models/"):
                self._json(json.dumps(self._api(path.removeprefix("/api/models/"))).encode(), send)
            else:
                self._file(path, send)
        except _Refusal as refusal:
            self.send_response(refusal.status)
            if refusal.code:
                self.send_header("X-Error-Code", refusal.code)
            if refusal.message:
                self.send_header("X-Error-Message", refusal.message)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _api(self, path: str) -> object:
        repo, kind, rest = _split(path, "tree", "revision")
        folder, commit = self._folder(repo, rest.partition("/")[0] or "main")
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if kind == "tree":
            return [
                {
                    "type": "file", "path": str(file.relative_to(folder)), "oid": _oid(file),
                    "size": file.stat().st_size,
                }
                for file in files
            ]  # fmt: skip
        siblings = [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files]
        return {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}

    def _folder(self, repo: str, revision: str) -> tuple[Path, str]:
        whole = self.hub.root / repo
        if "/gated-" in repo:
            given = self.headers.get("Authorization")
            if given != f"Bearer {TOKEN}":
                raise _Refusal(403 if given else 401, "GatedRepo", "Access to model is restricted.")
        if not whole.is_dir():
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        for folder in whole.iterdir():
            commit = commit_of(f"{repo}/{folder.name}")
            if revision in (folder.name, commit):
                return folder, commit
        raise _Refusal(404, "RevisionNotFound", "Invalid rev id")

    def _file(self, path: str, send: Callable[[bytes, int], object]) -> None:
        repo, _, rest = _split(path.lstrip("/"), "resolve")
        revision, _, name = rest.partition("/")
        folder, commit = self._folder(repo, revision)
        if not (folder / name).is_file():
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        data = (folder / name).read_bytes()
        wanted = self.headers.get("Range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        more = self.hub.promised_more if self.command == "HEAD" else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_oid(folder / name)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start + more))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        with self.hub.lock:
            is_cut = self.command == "GET" and self.hub.cuts > 0 and len(data) - start > 1
            self.hub.cuts -= is_cut
        if is_cut:
            send(data[: start + (len(data) - start) // 2], start)
            self.close_connection = True
            return
        send(data, start)

    def _json(self, data: bytes, send: Callable[[bytes, int], object]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        send(data, 0)


def _split(path: str, *kinds: str) -> tuple[str, str, str]:
    """The repository, which of the kinds of question it is, and what follows that."""
    owner, name, *rest = path.split("/")
    if rest and rest[0] in kinds:
        return f"{owner}/{name}", rest[0], "/".join(rest[1:])
    return f"{owner}/{name}", "", ""


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
