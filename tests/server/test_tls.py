"""HTTPS, and certificates that cannot be used."""

from __future__ import annotations

import io
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
import trustme

from longspan.entrypoints import cli
from longspan.entrypoints.server_config import ServerConfig
from longspan.entrypoints.tls import tls_settings
from longspan.errors import ConfigError
from tests.server.fake_engine import MODEL
from tests.server.live_server import LiveServer, live_server
from tests.server.raw_http import connection, until_closed

Files = dict[str, Path]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    found = {name: folder / f"{name}.pem" for name in ("certificate", "key", "both", "authority", "client", "nonsense")}
    certificate.cert_chain_pems[0].write_to_path(found["certificate"])
    certificate.private_key_pem.write_to_path(found["key"])
    certificate.private_key_and_cert_chain_pem.write_to_path(found["both"])
    authority.cert_pem.write_to_path(found["authority"])
    authority.issue_cert("client@example.com").private_key_and_cert_chain_pem.write_to_path(found["client"])
    found["nonsense"].write_text("nonsense")
    return found


@pytest.fixture(scope="module")
def secure(files: Files) -> Iterator[LiveServer]:
    with live_server(ssl_certfile=files["certificate"], ssl_keyfile=files["key"]) as server:
        yield server


def https(server: LiveServer, context: ssl.SSLContext) -> httpx2.Client:
    url = f"https://127.0.0.1:{server.port}"
    return httpx2.Client(base_url=url, verify=context, timeout=30, trust_env=False)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_https(secure: LiveServer, authority: trustme.CA) -> None:
    with https(secure, trusting(authority)) as http:
        assert http.get("/health").status_code == 200
        client = openai.OpenAI(base_url=f"https://127.0.0.1:{secure.port}/v1", api_key="x", http_client=http)
        chunks = list(client.completions.create(model=MODEL, prompt="x", stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello world"
        large = http.post("/v1/completions", content=b"x" * 80_000_000, headers={"content-type": "application/json"})
        assert large.status_code == 413


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 1000, b"\x16\x03\x01"])
def test_who_does_not_speak_tls_stops_nobody(
    secure: LiveServer, authority: trustme.CA, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with connection(secure) as sock:
        sock.sendall(sent)
        with https(secure, trusting(authority)) as http:
            assert http.get("/health").status_code == 200
        if len(sent) > 3:
            sock.settimeout(30)
            received = until_closed(sock)
            assert not received.startswith(b"HTTP")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]


def test_a_handshake_that_does_not_end_is_ended(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longspan.entrypoints.http_server.TLS_HANDSHAKE_S", 0.2)
    with live_server(ssl_certfile=files["both"]) as server:
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with connection(server) as sock:
                sock.sendall(sent)
                assert until_closed(sock) == b""


def test_what_is_not_http_gets_its_answer(secure: LiveServer, authority: trustme.CA) -> None:
    context = trusting(authority)
    with connection(secure) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
        sock.sendall(b"\0" * 100)
        assert sock.recv(65536).startswith(b"HTTP/1.1 400")


def test_clients_show_a_certificate(files: Files, authority: trustme.CA) -> None:
    with live_server(ssl_certfile=files["both"], ssl_ca_certs=files["authority"]) as server:
        context = trusting(authority)
        with https(server, context) as http, pytest.raises(httpx2.TransportError):
            http.get("/health")
        context.load_cert_chain(files["client"])
        with https(server, context) as http:
            assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ssl_certfile": "gone"}, "gone cannot be read: No such file"),
        ({"ssl_certfile": "certificate"}, "not a PEM certificate and its key"),
        ({"ssl_certfile": "nonsense", "ssl_keyfile": "key"}, "not a PEM certificate and its key"),
        ({"ssl_certfile": "certificate", "ssl_keyfile": "client"}, "not a PEM certificate and its key"),
        ({"ssl_certfile": "certificate", "ssl_keyfile": "gone"}, "ssl_keyfile .*gone cannot be read"),
        ({"ssl_certfile": "both", "ssl_ca_certs": "nonsense"}, "holds no PEM certificates"),
        ({"ssl_certfile": "both", "ssl_ca_certs": "gone"}, "ssl_ca_certs .*gone cannot be read"),
    ],
)
def test_files_that_cannot_be_used(files: Files, settings: dict[str, str], says: str) -> None:
    paths = {name: files.get(value, Path(value)) for name, value in settings.items()}
    with pytest.raises(ConfigError, match=says):
        tls_settings(ServerConfig(**paths))  # type: ignore[arg-type]


def test_a_key_with_a_password(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files["key"].read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )

    def config(password: str | None) -> ServerConfig:
        return ServerConfig(
            ssl_certfile=files["certificate"], ssl_keyfile=encrypted, ssl_keyfile_password=password
        )

    assert tls_settings(config("open sesame"))["ssl_keyfile_password"] == "open sesame"
    with pytest.raises(ConfigError, match="ssl_keyfile_password is missing"):
        tls_settings(config(None))
    with pytest.raises(ConfigError, match="ssl_keyfile_password is wrong") as refused:
        tls_settings(config("open barley"))
    assert "barley" not in str(refused.value)


@pytest.mark.parametrize("name", ["ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"])
def test_what_needs_a_certificate(name: str) -> None:
    with pytest.raises(ConfigError, match="needs ssl_certfile"):
        ServerConfig(**{name: "x"})  # type: ignore[arg-type]


def test_our_own_clients_believe_the_authorities_that_the_environment_names(
    secure: LiveServer, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"https://localhost:{secure.port}"
    bench = "bench serve --num-requests 1 --input-len 9 --output-len 4 --token-ids 1:200"
    for command in ("chat", bench, "fleet list", "explain cmpl-"):
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
        asked = [*command.split(), "--url", url]
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        assert cli.run(asked) == 1
        error = capsys.readouterr().err
        assert "is not trusted" in error and "SSL_CERT_FILE" in error and error.count("\n") == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(files["authority"]))
        code = cli.run(asked)
        error = capsys.readouterr().err
        assert code == 0 or "no request 'cmpl-' is remembered" in error, error
    assert [each.id for each in openai.OpenAI(base_url=f"{url}/v1", api_key="none").models.list()] == [MODEL]
    for broken in ("nonsense", "key"):
        monkeypatch.setenv("SSL_CERT_FILE", str(files[broken]))
        for command in ("chat", "fleet list"):
            assert cli.run([*command.split(), "--url", url]) == 2
            assert "SSL_CERT_FILE" in capsys.readouterr().err
