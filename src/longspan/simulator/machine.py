"""What the simulated devices can do: figures of a data sheet, how much of them is reached, and what comes on top.

Every group of figures says where it is from. "Fitted" ones are reproduced, with the error of each published timing,
by `benchmarks/simulator/fit_machines.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from longspan.simulator.interference import Interference
from longspan.simulator.residuals import Residuals

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheet:
    """One device and its links; rates per second.

    flops: dense 16-bit matrix products. memory_bytes: None where memory is no limit. memory_bandwidth: bytes.
    link_bandwidth: bytes in one direction, from a device to another of the same node.
    network_bandwidth: bytes in one direction, from a device to one of another node.
    """

    flops: float
    memory_bytes: float | None
    memory_bandwidth: float
    devices_per_node: int
    link_bandwidth: float
    network_bandwidth: float
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of the data sheet's figures that are reached.

    matmul: of flops in dense layers. attention: of flops in attention of prompts. memory: of memory_bandwidth.
    link: of both link_bandwidth and network_bandwidth.
    """

    matmul: float
    attention: float
    memory: float
    link: float
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """The costs that no roofline knows of, in seconds.

    iteration_s: of an iteration, on the host.
    prompts_s: the same if there are prompts in it, which no prepared launch (a CUDA graph) covers.
    request_s: the same for each request in it. instance_s: the same for each instance beyond the first.
    layer_s: of a layer, for launching its kernels. allreduce_s: of one all-reduce, whatever its size, for each
        doubling of its devices. exchange_s: of one exchange between instances, whatever its size.
    round_s: of a round of the ring beside its exchange, for launching its kernels. piece_s: the same for each prompt
        that goes around.
    unqueued_s: what a decode takes longer that is queued behind nothing, where nothing else of the host is known.
    network_s: what an exchange takes longer between nodes. migration_s: of a migration, whatever its size.
    contention: by what share reading weights takes longer for each other master of a batch, where instances share a
        memory.
    overlaps_ring: whether blocks of KV travel while the block before them is used.
    overlaps_host: whether the host prepares an iteration that is queued while the one before it still runs.
    """

    iteration_s: float
    prompts_s: float
    request_s: float
    instance_s: float
    layer_s: float
    allreduce_s: float
    exchange_s: float
    round_s: float
    piece_s: float = 0.0
    unqueued_s: float = 0.0
    network_s: float
    migration_s: float
    contention: float = 0.0
    overlaps_ring: bool = True
    overlaps_host: bool = True
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One kind of device, as many as are needed.

    residuals: what its figures leave unexplained, if it was measured. interference: the same, of its instances.
    lends_context: whether its instances of one node lend each other context (core/loans.py).
    """

    name: str
    sheet: DataSheet
    efficiency: Efficiency
    overheads: Overheads
    residuals: Residuals | None = None
    interference: Interference | None = None
    lends_context: bool = False

    def origins(self) -> dict[str, str]:
        """Tell where each group of figures is from."""
        return {
            "data sheet": self.sheet.origin,
            "efficiency": self.efficiency.origin,
            "overheads": self.overheads.origin,
        }
