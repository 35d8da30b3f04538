"""Shared-memory exchange in C++ (csrc/mail.h): a message costs a call, and waiting gives up the GIL."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longspan.native.library import Library, MessageStruct


class NativeMail:
    """`Mail` of distributed/shared_memory.py."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.handle = library.mail_new()

    def connect(self, rank: int, written: int, read: int, buffer: int, capacity: int, *, outgoing: bool) -> None:
        self.library.mail_connect(self.handle, rank, written, read, buffer, capacity, outgoing)

    def exchange(
        self, sends: Sequence[tuple[torch.Tensor, int]], receives: Sequence[tuple[torch.Tensor, int]]
    ) -> NativeExchange:
        return NativeExchange(self, sends, receives)


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
        self.mail.library.mail_wait(self.mail.handle, self.messages, self.count)
