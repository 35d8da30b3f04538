"""The page's files: no build, nothing from elsewhere."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Literal

from fastapi import Request, Response

Mode = Literal["live", "log"]

PREFIX = "/dashboard/files/"
_TYPES = {
    "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}  # fmt: skip
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-cache", "content-security-policy": _POLICY, "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff", "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}  # fmt: skip


class PageFiles:
    """All of them, in memory.

    mode: what the page shows: a running server, or an event log. asks_for_key: whether it begins by asking for one.
    """

    def __init__(self, mode: Mode, asks_for_key: bool = False) -> None:
        folder = files("longspan.entrypoints.dashboard") / "static"
        page = (folder / "index.html").read_text("utf-8").replace('data-mode="live"', f'data-mode="{mode}"')
        if asks_for_key:
            page = page.replace('data-key="none"', 'data-key="needed"')
        self._found = {"/": (page.encode(), "text/html; charset=utf-8")}
        for each in folder.iterdir():
            ending = each.name.rpartition(".")[2]
            if ending in _TYPES:
                self._found[PREFIX + each.name] = (each.read_bytes(), _TYPES[ending])
        self._tags = {path: f'"{hashlib.sha256(data).hexdigest()[:20]}"' for path, (data, _) in self._found.items()}

    @property
    def paths(self) -> frozenset[str]:
        """All paths. They tell nothing of the server, so no key is needed for them."""
        return frozenset(self._found)

    def answer(self, request: Request) -> Response:
        """Answer a request for one of `paths`."""
        data, media_type = self._found[request.url.path]
        headers = {**_HEADERS, "etag": self._tags[request.url.path]}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=media_type)
