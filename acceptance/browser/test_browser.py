"""What only a browser does: other pages' scripts, names that are made to point here, certificates. In Chromium.

The HTTP server is the real one; its engine says what tests want.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from playwright.sync_api import Browser, Error, Page

from tests.server.live_server import LiveServer, live_server

ASK = """async ([url, key]) => {
    const answer = await fetch(url + '/v1/chat/completions', {
        method: 'POST',
        headers: {'Content-Type': 'application/json', 'Authorization': 'Bearer ' + key},
        body: JSON.stringify({messages: [{role: 'user', content: 'x'}], stream: true}),
    });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) text += piece.value;
    return [answer.status, text];
}"""


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """A site with one empty page; its origin."""
    (folder / "index.html").write_text("<!doctype html><title>a page</title>")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[str]:
    with site(tmp_path) as origin:
        yield origin


@pytest.fixture
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with site(tmp_path_factory.mktemp("theirs")) as origin:
        yield origin


def test_pages_of_an_origin_that_is_allowed_stream_answers(page: Page, ours: str) -> None:
    """With a key and a JSON body, so that the browser asks before it sends."""
    with live_server(cors_origins=(ours,), api_key=("secret",)) as server:
        page.goto(ours)
        status, text = page.evaluate(ASK, [server.url, "secret"])
        assert status == 200 and text.startswith("data: ") and text.rstrip().endswith("data: [DONE]")
        status, text = page.evaluate(ASK, [server.url, "wrong"])
        assert status == 401 and "invalid_api_key" in text  # the page may read why


def test_pages_of_other_origins_get_nothing(page: Page, ours: str, theirs: str) -> None:
    with live_server(cors_origins=(ours,)) as server:
        page.goto(theirs)
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate(ASK, [server.url, "none"])
        assert arrived(server) == 0
        # What browsers send without asking first is refused, or at least not read.
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate("url => fetch(url + '/v1/models').then(answer => answer.text())", server.url)


def test_by_default_pages_get_nothing(page: Page, ours: str) -> None:
    with live_server() as server:
        page.goto(ours)
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate(ASK, [server.url, "none"])
        simple = "url => fetch(url + '/v1/completions', {method: 'POST', mode: 'no-cors', body: '{\"prompt\": \"x\"}'})"
        page.evaluate(simple, server.url)  # a form could send as much
        assert arrived(server) == 0


def test_a_name_that_is_made_to_point_here_is_not_answered(page: Page) -> None:
    with live_server() as server:
        answer = page.goto(f"http://evil.example:{server.port}/v1/models")
        assert answer is not None and answer.status == 421 and "host_not_allowed" in answer.text()
        # Its scripts are of the same origin now, so no CORS protects the server.
        status, text = page.evaluate(ASK, ["", "none"])
        assert status == 421 and "host_not_allowed" in text
        assert arrived(server) == 0


def test_a_name_that_is_allowed_is_answered(page: Page) -> None:
    with live_server(allowed_hosts=("evil.example",)) as server:
        answer = page.goto(f"http://evil.example:{server.port}/v1/models")
        assert answer is not None and answer.status == 200


def test_https(chromium: Browser, tmp_path: Path) -> None:
    """Streams go through TLS, once the user trusts the certificate; before, the browser shows nothing."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    with live_server(ssl_certfile=certificate, ssl_keyfile=key) as server:
        url = server.url.replace("http:", "https:")
        with chromium.new_context() as context, pytest.raises(Error, match="ERR_CERT_AUTHORITY_INVALID"):
            context.new_page().goto(f"{url}/v1/models")
        with chromium.new_context(ignore_https_errors=True) as context:
            page = context.new_page()
            page.goto(f"{url}/v1/models")
            status, text = page.evaluate(ASK, ["", "none"])
            assert status == 200 and text.rstrip().endswith("data: [DONE]")


def arrived(server: LiveServer) -> int:
    """Requests that got as far as the engine."""
    return len(server.engine.prompts)
