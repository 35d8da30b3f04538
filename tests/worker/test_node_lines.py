"""Lines between machines: who has the key is heard, nothing else is; machines that differ are told what differs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from longspan.config import EngineConfig
from longspan.errors import ConfigError
from longspan.executor.nodes.access import check_access, fleet_key, master_address
from longspan.executor.nodes.gathering import Gathering, Nodes
from longspan.executor.nodes.line import Line, LineRefusedError, answer, call
from longspan.executor.nodes.messages import Alive, Join, Refused, Welcome, decode_to_agent, encode
from longspan.executor.reader import Reader
from tests.ports import free_port
from tests.processes import wait_until

KEY, WITHIN_S = b"sixteen letters!", 30.0


class Relay:
    """A stranger in the middle, who may change what goes to the one that was called."""

    def __init__(self, port: int, change: Callable[[bytes], bytes]) -> None:
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.door.getsockname()[1]
        self._there = port
        self.change = change
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        caller, _ = self.door.accept()
        called = socket.create_connection(("127.0.0.1", self._there))
        threading.Thread(target=self._pass, args=(called, caller, lambda data: data), daemon=True).start()
        self._pass(caller, called, lambda data: self.change(data))

    def _pass(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        while data := source.recv(65536):
            target.sendall(change(data))
        target.shutdown(socket.SHUT_WR)


@contextmanager
def line(
    theirs: bytes = KEY, change: Callable[[bytes], bytes] | None = None
) -> Iterator[tuple[Line, Line, list[Relay]]]:
    """Both ends, the caller's first."""
    with socket.create_server(("127.0.0.1", 0)) as door, ThreadPoolExecutor() as pool:
        port = door.getsockname()[1]
        relays = [Relay(port, change)] if change else []
        answering = pool.submit(lambda: answer(door.accept()[0], KEY))
        try:
            calling = call("127.0.0.1", relays[0].port if relays else port, theirs)
        except (LineRefusedError, OSError, EOFError) as error:
            with pytest.raises(LineRefusedError, match="another key"):
                answering.result(WITHIN_S)
            raise error
        answered = answering.result(WITHIN_S)
        try:
            yield calling, answered, relays
        finally:
            calling.close()
            answered.close()


def test_messages_come_as_they_were_sent() -> None:
    with line() as (calling, answered, _):
        for size in (0, 1, 1000, 3_000_000):
            sending = threading.Thread(target=calling.send_bytes, args=(bytes(size),))
            sending.start()
            assert answered.receive() == bytes(size)
            sending.join()
        answered.send_bytes(b"back")
        assert calling.receive() == b"back"


def test_another_key_is_refused_on_both_ends() -> None:
    with pytest.raises(LineRefusedError, match="--fleet-key-file"), line(b"another key, and as long"):
        pass


@pytest.mark.parametrize("where", [0, 4, 40], ids=["its length", "its tag", "what it says"])
def test_a_message_that_was_changed_on_the_way_is_not_heard(where: int) -> None:
    changes = False

    def change(data: bytes) -> bytes:
        return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :] if changes else data

    with line(change=change) as (calling, answered, _):
        calling.send_bytes(b"as it is" * 10)
        assert answered.receive() == b"as it is" * 10
        changes = True
        calling.send_bytes(b"as it is" * 10)
        calling.close()
        with pytest.raises((LineRefusedError, EOFError)):
            answered.receive()


def test_a_message_that_is_sent_again_by_another_is_not_heard() -> None:
    repeats = False

    def twice(data: bytes) -> bytes:
        return data * (1 + repeats)

    with line(change=twice) as (calling, answered, _):
        repeats = True
        calling.send_bytes(b"once")
        assert answered.receive() == b"once"
        with pytest.raises(LineRefusedError, match="not written there"):
            answered.receive()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" + bytes(100), b"longspan-fleet-1" + bytes(100)])
def test_who_knows_no_key_learns_nothing(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, ThreadPoolExecutor() as pool:
        answering = pool.submit(lambda: answer(door.accept()[0], KEY))
        with socket.create_connection(door.getsockname()) as stranger:
            stranger.sendall(said)
            with pytest.raises(LineRefusedError):
                answering.result(WITHIN_S)
            told = b""
            with suppress(ConnectionResetError):  # what it said further was not read
                while data := stranger.recv(4096):
                    told += data
        assert len(told) <= len(b"longspan-fleet-1") + 32 + 32 and KEY not in told


# -- who joins ---------------------------------------------------------------------------------------------------------

FACTS = {"the version of longspan": "1.0", "tp": "1"}


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Nodes, int]]:
    """An engine that waits for two other machines, and the port. Its parameter is how long they may be silent."""
    port = free_port()
    waiting = Nodes(Gathering("127.0.0.1", port, KEY, 3, FACTS), timeout_s=getattr(request, "param", 600.0))
    reader = Reader(lambda handle, reply: None, lambda handle: None, lambda late_s: None)
    waiting.open(reader, lambda node: None)
    try:
        yield waiting, port
    finally:
        waiting.close()


def join(port: int, node: int, facts: dict[str, str] = FACTS) -> Line:
    calling = call("127.0.0.1", port, KEY)
    calling.send_bytes(encode(Join(node, facts)))
    return calling


@pytest.mark.parametrize(
    ("node", "facts", "why"),
    [
        (0, FACTS, r"node_rank is 0.*\[1, 2\]"),
        (3, FACTS, r"node_rank is 3.*\[1, 2\]"),
        (1, FACTS | {"tp": "2"}, "tp is 2 there, and 1 on node 0"),
        (1, FACTS | {"the version of longspan": "0.9"}, "version of longspan is 0.9 there, and 1.0 on node 0"),
        (1, {"tp": "1"}, "version of longspan is not told there"),
    ],
)
def test_a_machine_that_is_not_wanted_is_told_why(
    nodes: tuple[Nodes, int], node: int, facts: dict[str, str], why: str
) -> None:
    refused = decode_to_agent(join(nodes[1], node, facts).receive())
    assert isinstance(refused, Refused)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(refused.why)


@pytest.mark.parametrize("nodes", [3.0], indirect=True)
def test_machines_join_are_lost_by_silence_and_join_again(nodes: tuple[Nodes, int]) -> None:
    waiting, port = nodes
    lines = [join(port, node) for node in (1, 2)]
    waiting.wait(lambda phase: None, lambda: False)
    for each in lines:
        assert isinstance(decode_to_agent(each.receive()), Welcome)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            lines[0].send_bytes(encode(Alive()))

    beating = threading.Thread(target=beat)
    beating.start()
    lost: list[tuple[int, str]] = []
    wait_until(lambda: bool(lost.extend(waiting.check(time.monotonic(), 0.0)[0]) or lost))
    assert [node for node, _ in lost] == [2] and "no sign of life" in lost[0][1]
    assert [machine.is_there for machine in waiting.machines] == [True, False]
    lines.append(join(port, 2))
    back: list[int] = []
    wait_until(lambda: bool(back.extend(waiting.check(time.monotonic(), 0.0)[1]) or back))
    assert back == [2] and waiting.machines[1].is_there
    stop.set()
    beating.join()
    for each in lines:
        each.close()


def test_one_that_joins_anew_takes_the_place_of_what_it_was(nodes: tuple[Nodes, int]) -> None:
    """The engine may not know yet that the one before is cut off."""
    waiting, port = nodes
    first = [join(port, 1), join(port, 2)]
    waiting.wait(lambda phase: None, lambda: False)
    again = join(port, 1)
    lost: list[tuple[int, str]] = []
    wait_until(lambda: bool(lost.extend(waiting.check(time.monotonic(), 0.0)[0]) or lost))
    assert lost == [(1, "node 1 is lost: it has joined anew")]
    assert waiting.check(time.monotonic(), 0.0)[1] == [1]
    assert isinstance(decode_to_agent(again.receive()), Welcome)
    for each in (*first, again):
        each.close()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("master", "expected"),
    [
        ("10.0.0.1", ("10.0.0.1", 29600)),
        ("node-0.svc:5000", ("node-0.svc", 5000)),
        ("::1", ("::1", 29600)),
        ("[::1]", ("::1", 29600)),
        ("[fd00::1]:77", ("fd00::1", 77)),
    ],
)
def test_master(master: str, expected: tuple[str, int]) -> None:
    assert master_address(EngineConfig(nnodes=2, master=master)) == expected


@pytest.mark.parametrize("master", ["", ":5", "a:b", "a:0", "a:70000"])
def test_a_master_that_cannot_be(master: str) -> None:
    with pytest.raises(ConfigError, match="must be like"):
        master_address(EngineConfig(nnodes=2, master=master))


def test_without_a_key_only_this_machine_may_come() -> None:
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        check_access(b"", address)
    check_access(KEY, "10.0.0.1")
    with pytest.raises(ConfigError, match="--fleet-key-file"):
        check_access(b"", "10.0.0.1")


def test_the_key_is_long_and_appears_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a key that is long enough\n")
    assert fleet_key(EngineConfig(fleet_key_file=file)) == b"a key that is long enough"
    given = EngineConfig(fleet_key="another that is long enough")
    assert fleet_key(given) == b"another that is long enough" and "another" not in repr(given)
    with pytest.raises(ConfigError, match="at least 16"):
        fleet_key(EngineConfig(fleet_key="short"))
    with pytest.raises(ConfigError, match="cannot be read"):
        fleet_key(EngineConfig(fleet_key_file=file.with_name("none")))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"nnodes": 2}, "needs master"),
        ({"nnodes": 2, "master": "a", "node_rank": 2}, "node_rank is 2"),
        ({"nnodes": 3, "master": "a", "instances": 2}, "each of 3 nodes has at least one"),
        ({"nnodes": 2, "master": "a", "executor": "inproc"}, "needs executor multiproc"),
        ({"nnodes": 2, "master": "a", "transport": "gloo"}, "only CPU workers exchange yet"),
        ({"node_rank": 1}, "node_rank is 1"),
    ],
)
def test_nodes_that_cannot_be(settings: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        EngineConfig(**settings)  # type: ignore[arg-type]  # of any kind
