"""Exchange between processes in C++ (csrc/mail.h): a message costs a call, and waiting gives up the GIL."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import torch

from longspan.native.library import Library, MessageStruct
from longspan.native.work import CurrentWork, WorkVoidError

WORK_IS_VOID, WRONG_LENGTH = 2, 3  # csrc/library.cpp


class NativeMail:
    """`Mail` of distributed/shared_memory.py."""

    def __init__(self, library: Library, work: CurrentWork) -> None:
        self.library = library
        self.work = work  # keeps the words to which the mail looks
        self.handle = library.mail_new(work.address)

    def connect(self, rank: int, written: int, read: int, buffer: int, capacity: int, *, outgoing: bool) -> None:
        self.library.mail_connect(self.handle, rank, written, read, buffer, capacity, outgoing)

    def connect_socket(self, rank: int, connection: socket.socket, *, outgoing: bool) -> None:
        self.library.mail_connect_socket(self.handle, rank, connection.fileno(), outgoing)

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> NativeExchange:
        return NativeExchange(self, sends, receives)

    def drop(self) -> None:
        self.library.mail_drop(self.handle)


class NativeExchange:
    """Keeps the tensors alive until `wait`."""

    def __init__(
        self,
        mail: NativeMail,
        sends: Sequence[tuple[torch.Tensor, int]],
        receives: Sequence[tuple[torch.Tensor, int]],
    ) -> None:
        self.mail = mail
        self.tensors = (sends, receives)
        self.count = len(sends) + len(receives)
        self.messages = (MessageStruct * self.count)(
            *[MessageStruct(rank, 1, tensor.data_ptr(), tensor.nbytes, 0) for tensor, rank in sends],
            *[MessageStruct(rank, 0, tensor.data_ptr(), tensor.nbytes, 0) for tensor, rank in receives],
        )
        mail.library.mail_post(mail.handle, self.messages, self.count)

    def wait(self) -> None:
        check_exchanged(self.mail.library.mail_wait(self.mail.handle, self.messages, self.count))


def check_exchanged(status: int) -> None:
    """Raises WorkVoidError where a call into the library has been left since its work is void."""
    if status == WORK_IS_VOID:
        raise WorkVoidError
    assert status != WRONG_LENGTH, "a letter is not as long as its receiver expects: ranks differ in what they are at"
