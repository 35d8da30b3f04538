"""Whose a request is: of its API key, or of the header `Longspan-Tenant`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from longspan.config import EngineConfig
from longspan.entrypoints.openai.api_keys import read_keys
from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError
from longspan.service_level import ServiceLevel
from tests.server.fake_engine import FakeEngine
from tests.server.live_server import LiveServer, live_server

BODIES = {
    "/v1/completions": {"prompt": ["x", "y"], "max_tokens": 2, "priority": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "priority": 3},
}
HEADER = "longspan-tenant"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("sk-second tenant=chat\nsk-third   tenant=chat\nsk-fourth\n")
    return file


def levels(server: LiveServer, path: str, headers: list[tuple[str, str]]) -> set[ServiceLevel]:
    """What the engine was told of a request's service; nothing if it was refused."""
    server.engine.reset()
    with httpx2.Client(base_url=server.url, timeout=30, trust_env=False) as http:
        answer = http.post(path, json=BODIES[path], headers=headers)
    if answer.status_code != 200:
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "Longspan-Tenant"
    return {params.service for params in server.engine.params.values()}


@pytest.fixture(scope="module")
def open_server() -> Iterator[LiveServer]:
    with live_server() as server:
        yield server


@pytest.mark.parametrize("path", BODIES)
def test_a_header_says_it_where_there_are_no_keys(open_server: LiveServer, path: str) -> None:
    assert levels(open_server, path, [(HEADER, "team.a@b-c_9")]) == {ServiceLevel(priority=3, tenant="team.a@b-c_9")}
    assert levels(open_server, path, [(HEADER, "n" * 64)]) == {ServiceLevel(priority=3, tenant="n" * 64)}
    assert levels(open_server, path, []) == {ServiceLevel(priority=3)}, "the one before is forgotten"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "headers",
    [[(HEADER, "")], [(HEADER, "a b")], [(HEADER, "n" * 65)], [(HEADER, "a"), (HEADER, "a")], [(HEADER, "a,b")]],
)
def test_what_is_no_name_is_refused(open_server: LiveServer, path: str, headers: list[tuple[str, str]]) -> None:
    assert levels(open_server, path, headers) == set()


@pytest.mark.parametrize(
    ("tenants", "expected"),
    [("auto", ["key-1", "chat", "chat", "key-4"]), ("key", ["key-1", "chat", "chat", "key-4"]),
     ("header", ["said"] * 4), ("none", [None] * 4)],
)  # fmt: skip
def test_keys_say_it(keys: Path, tenants: str, expected: list[str | None]) -> None:
    with live_server(api_key=("sk-first",), api_key_file=keys, tenants=tenants) as server:
        for key, tenant in zip(("first", "second", "third", "fourth"), expected, strict=True):
            for path in BODIES:
                headers = [("authorization", f"Bearer sk-{key}"), (HEADER, "said")]
                assert levels(server, path, headers) == {ServiceLevel(priority=3, tenant=tenant)}


def scopes(server: LiveServer) -> dict[tuple[str, str | None], tuple[str | None, str | None]]:
    """By key and by what it gives as `cache_salt`: what the engine is told that requests have in common to share KV."""
    found = {}
    for key in ("first", "second", "third", "fourth"):
        for salt in (None, "s", "('chat', None)"):
            server.engine.reset()
            body = BODIES["/v1/completions"] | {"prompt": "x", "cache_salt": salt}
            headers = {"authorization": f"Bearer sk-{key}", HEADER: "said"}
            url = f"{server.url}/v1/completions"
            answer = httpx2.post(url, json=body, headers=headers, timeout=30, trust_env=False)
            assert answer.status_code == 200
            (params,) = server.engine.params.values()
            found[key, salt] = (params.service.tenant, params.cache_salt)
    return found


@pytest.mark.parametrize("tenants", ["auto", "key", "header", "none"])
def test_whoever_says_it_keys_do_not_find_each_others_prefixes(keys: Path, tenants: str) -> None:
    """Those of one name do: a header is of the client's own choice."""
    with live_server(api_key=("sk-first",), api_key_file=keys, tenants=tenants) as server:
        found = scopes(server)
    assert len(set(found.values())) == 3 * 3
    assert all(found["second", salt] == found["third", salt] for salt in (None, "s"))


def test_keys_share_prefixes_where_they_are_told_to(keys: Path) -> None:
    engine = FakeEngine(EngineConfig(model="fake/model", share_prefixes=True))
    with live_server(engine, api_key=("sk-first",), api_key_file=keys, tenants="none") as server:
        assert {value for (_, salt), value in scopes(server).items() if salt is None} == {(None, None)}


def test_names_are_no_keys(keys: Path) -> None:
    assert [tenant for _, tenant in read_keys(ServerConfig(api_key_file=keys))] == ["chat", "chat", "key-3"]
    for line in ("sk-x tenant=two words", "sk-x chat", "sk-x tenant=ä", "sk-x tenant="):
        keys.write_text(line)
        with pytest.raises(ConfigError, match="number 1") as refused:
            read_keys(ServerConfig(api_key_file=keys))
        assert "sk-x" not in str(refused.value)


def test_tenants_by_key_need_keys() -> None:
    with pytest.raises(ConfigError, match="needs api_key"):
        ServerConfig(tenants="key")
    with pytest.raises(ConfigError, match="one of auto, key, header, none"):
        ServerConfig(tenants="who")  # type: ignore[arg-type]
