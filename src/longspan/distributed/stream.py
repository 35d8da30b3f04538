"""The order of one worker's work on its device.

A GPU works off what the host hands it, later and in order; to wait for the host's thread alone tells nothing of it. So
what is to be known of the device is asked of events. A CPU has done all work when the call returns: its stream is the
plain twin, whose events have always passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch


class Event(Protocol):
    """A point in a stream."""

    def done(self) -> bool:
        """Tell whether the device has come to it. Any thread may ask."""
        ...

    def wait(self) -> None:
        """Blocks the host's thread until then, without keeping a core busy."""
        ...

    def seconds_since(self, earlier: Event) -> float:
        """Return seconds on the device's clock since an event of the same stream. Both have passed."""
        ...


class Stream(Protocol):
    """A queue of work on one device, for one thread of the host.

    host_computes: the host's processor time is work done.
    """

    host_computes: bool

    def enter(self) -> None:
        """Let what this thread computes from now on go to this device and this stream."""
        ...

    def record(self) -> Event:
        """Return the point behind all work so far."""
        ...

    def wait_for(self, event: Event) -> None:
        """Let work from now on begin behind the event, of any stream of the same kind. The host does not wait."""
        ...


class HostEvent:
    """A moment; all work before it is done."""

    def __init__(self) -> None:
        self._at_s = time.perf_counter()

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, HostEvent)
        return self._at_s - earlier._at_s


class HostStream:
    """`Stream` of a CPU, in the thread that calls."""

    host_computes = True

    def enter(self) -> None:
        return

    def record(self) -> Event:
        return HostEvent()

    def wait_for(self, event: Event) -> None:
        return


class CudaEvent:
    """`Event` of a GPU."""

    def __init__(self, stream: Any) -> None:
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]  # torch's have no types
        self.event.record(stream)

    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]  # torch's have no types

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, CudaEvent)
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaStream:
    """`Stream` of a GPU, one for each worker: instances that share a GPU do not wait for each other there."""

    host_computes = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's have no types

    def enter(self) -> None:
        torch.cuda.set_device(self.device)  # of this thread; kernels that torch does not launch itself go by it
        torch.cuda.set_stream(self.stream)

    def record(self) -> Event:
        return CudaEvent(self.stream)

    def wait_for(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.stream.wait_event(event.event)


MakeStream: TypeAlias = Callable[[torch.device], Stream]


def stream_on(device: torch.device) -> Stream:
    """Return a new one."""
    return CudaStream(device) if device.type == "cuda" else HostStream()
