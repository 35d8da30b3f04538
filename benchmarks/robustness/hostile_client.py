"""Carries an attack out, and tells what came of it."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from dataclasses import dataclass, field

from benchmarks.robustness.attack import Attack, Finish, Leave, ReadSome, Send, Wait
from benchmarks.robustness.http_answer import MAX_HEAD, Answer, BadAnswerError, read_answer

HOST = "127.0.0.1"
CONNECT_WITHIN_S, SEND_WITHIN_S = 10.0, 60.0


@dataclass
class Outcome:
    """How it ended.

    ending: answered, closed (by the server, without all answers), left (by the client, as planned), hangs (no answer,
        or no close, in time), bad (not HTTP), refused (no connection).
    failure: what is not as it must be, or None.
    """

    attack: Attack
    ending: str = "refused"
    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


async def carry_out(attack: Attack, port: int, answer_within_s: float, close_within_s: float) -> Outcome:
    """answer_within_s, close_within_s: after the last byte was sent, for each answer; more is a hang."""
    outcome = Outcome(attack)
    begin = time.monotonic()
    try:
        reader, writer = await asyncio.wait_for(_connect(port, attack.small_window), CONNECT_WITHIN_S)
    except (OSError, TimeoutError) as error:
        outcome.failure = f"no connection: {type(error).__name__}: {error}"
        return outcome
    try:
        one = answer_within_s if attack.due in ("answer", "nothing") else close_within_s
        within = one * max(1, len(attack.methods))  # pipelined requests are answered one after the other
        await _steps_and_end(outcome, reader, writer, within)
    finally:
        outcome.seconds = time.monotonic() - begin
        writer.transport.abort()
    outcome.failure = _failure(outcome)
    return outcome


async def _connect(port: int, small_window: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock = socket.socket()
    sock.setblocking(False)
    if small_window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the system rounds it up to its least
    try:
        await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
    except BaseException:
        sock.close()
        raise
    return await asyncio.open_connection(sock=sock, limit=1024 if small_window else MAX_HEAD)


async def _steps_and_end(
    outcome: Outcome, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, within_s: float
) -> None:
    """Answers are read while the rest is sent: a server may refuse before it has all."""
    attack = outcome.attack
    sent = asyncio.create_task(_steps(attack, reader, writer))
    tasks: set[asyncio.Task[None]] = {sent}
    try:
        if attack.due == "nothing":
            await asyncio.wait(tasks, timeout=within_s)
            outcome.ending = "left" if sent.done() else "hangs"
            return
        ended = asyncio.create_task(_read_to_the_end(outcome, reader))
        tasks.add(ended)
        await asyncio.wait(tasks, timeout=SEND_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await asyncio.wait({ended}, timeout=within_s)
        if not ended.done():
            outcome.ending = "hangs"
            return
        try:
            ended.result()
        except BadAnswerError as error:
            outcome.ending, outcome.failure = "bad", str(error)
        except ConnectionError:
            outcome.ending = "answered" if len(outcome.answers) >= len(attack.methods) > 0 else "closed"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if not sent.cancelled():
            sent.exception()  # it could not send all: the server closed, which the reading has seen


async def _steps(attack: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for step in attack.steps:
        match step:
            case Send(data, 0, _):
                writer.write(data)
                await writer.drain()
            case Send(data, piece, every_s):
                for at in range(0, len(data), piece):
                    writer.write(data[at : at + piece])
                    await writer.drain()
                    await asyncio.sleep(every_s)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case ReadSome(size):
                await reader.read(size)
            case Finish():
                writer.write_eof()
            case Leave(reset):
                if reset:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort() if reset else writer.close()


async def _read_to_the_end(outcome: Outcome, reader: asyncio.StreamReader) -> None:
    """All answers that are due; or none, if the server closes. One that says that it closes is the last."""
    methods = outcome.attack.methods
    while len(outcome.answers) < max(1, len(methods)):
        method = methods[len(outcome.answers)] if methods else "POST"
        answer = await read_answer(reader, method)
        if answer is None:
            outcome.ending = "closed"
            return
        outcome.answers.append(answer)
        if answer.headers.get("connection") == "close" or not answer.complete:
            break
    outcome.ending = "answered"


def _failure(outcome: Outcome) -> str | None:
    attack = outcome.attack
    if outcome.failure is not None:
        return outcome.failure
    if outcome.ending == "hangs":
        return "no answer in time" if attack.due == "answer" else "not closed in time"
    if outcome.ending == "closed" and attack.due == "answer" and not outcome.answers:
        return "closed without an answer"
    for answer in outcome.answers:
        if answer.status >= 500:
            return f"status {answer.status}: {answer.body[:200].decode(errors='replace')}"
        if answer.stream_error is not None:
            return f"an error in the stream: {answer.stream_error}"
        if (fault := answer.fault()) is not None:
            return fault
        if "x-request-id" not in answer.headers and attack.due == "answer":
            return f"status {answer.status} without x-request-id"
    return None
