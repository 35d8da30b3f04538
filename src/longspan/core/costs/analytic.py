"""A cost model from a model's shape and a few figures of the hardware, where nothing has been measured.

A roofline: dense layers at `flops`, weights and KV read at `bandwidth`, and what each iteration costs besides. Work
is divided evenly; the ring's traffic hides behind attention (LoongServe section 4.1), so that only its rounds cost.
Rough by nature (some 20 %): right in how things scale, less so in what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk, DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.core.costs.episode import Timed


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The figures of a decoder-only transformer with gated feed-forward layers that the arithmetic depends on.

    weight_bytes: of one parameter as it is read. kv_bytes: of one number in the KV cache.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    weight_bytes: float
    kv_bytes: float

    @property
    def layer_parameters(self) -> int:
        """The parameters of all layers' matrices: what every token is multiplied with."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        """The parameters of the output head: what every token is multiplied with that another one is sampled after."""
        return self.hidden_size * self.vocab_size

    @property
    def weights_bytes(self) -> float:
        """The bytes that an iteration reads of the weights."""
        return self.weight_bytes * (self.layer_parameters + self.head_parameters)

    @property
    def flops_per_token(self) -> float:
        return 2.0 * self.layer_parameters

    @property
    def flops_per_pair(self) -> float:
        """Operations of one query and one key in all layers: their product, and the weighted value."""
        return 4.0 * self.num_layers * self.num_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> float:
        return 2.0 * self.num_layers * self.num_kv_heads * self.head_dim * self.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device, as fast as it really gets; rates per second.

    flops: of dense layers and attention. bandwidth: bytes read from memory. link_bandwidth: bytes from one instance
    to another. overhead_s: of an iteration, whatever it does. chunk_s: of one with prompts, besides. exchange_s: of one
    exchange between instances, in one layer. migration_s: of a migration, whatever it moves.
    """

    flops: float
    bandwidth: float
    link_bandwidth: float
    overhead_s: float = 0.0
    chunk_s: float = 0.0
    exchange_s: float = 0.0
    migration_s: float = 0.0


def analytic_cost_model(model: ModelShape, hardware: Hardware, num_instances: int, tp: int = 1) -> FittedCostModel:
    """Return coefficients for each number of instances up to this one, each with `tp` devices."""
    flops, bandwidth = hardware.flops * tp, hardware.bandwidth * tp
    reading = hardware.overhead_s + model.weights_bytes / bandwidth

    def prefill(instances: int) -> PrefillCoefficients:
        rounds = (instances - 1) * model.num_layers
        return PrefillCoefficients(
            num_instances=instances,
            fixed=reading + hardware.chunk_s + rounds * hardware.exchange_s,
            per_token=model.flops_per_token / (flops * instances),
            per_pair=model.flops_per_pair / (2 * flops * instances),  # half of len^2 is in the future
        )

    def decode(instances: int, masters: int) -> DecodeCoefficients:
        exchange = model.num_layers * hardware.exchange_s if instances > 1 else 0.0
        return DecodeCoefficients(
            num_instances=instances,
            num_masters=masters,
            fixed=reading + exchange,
            per_request=(model.flops_per_token + 2.0 * model.head_parameters) / (flops * masters),
            per_context_token=model.kv_bytes_per_token / (bandwidth * instances),
        )

    everyone = range(1, num_instances + 1)
    return FittedCostModel(
        prefill_coefficients=tuple(prefill(instances) for instances in everyone),
        decode_coefficients=tuple(
            decode(instances, masters) for instances in everyone for masters in sorted({1, instances})
        ),
        migration_fixed=hardware.migration_s,
        migration_per_token=model.kv_bytes_per_token / (hardware.link_bandwidth * tp),
    )


def calibrated_hardware(model: ModelShape, timed: Iterable[Timed], tp: int = 1) -> Hardware:
    """Return hardware that makes the analytic model agree with a few steps that ran.

    timed: on one instance a decode, and prefills: one that takes clearly longer, and perhaps short ones; where there
        are several, a decode over some of them and a migration. Of several alike the fastest counts: what else the
        machine did only adds.
    """
    prefills: dict[float, float] = {}  # operations -> seconds
    decode_s = shared_s = inf
    link_bandwidth = 0.0
    for step in timed:
        match step.work:
            case BatchShape(kind="prefill", num_instances=1, chunks=chunks):
                work = sum([_operations(model, chunk) for chunk in chunks])
                prefills[work] = min(step.seconds, prefills.get(work, inf))
            case BatchShape(kind="decode", num_instances=1):
                decode_s = min(step.seconds, decode_s)
            case BatchShape(kind="decode"):
                shared_s = min(step.seconds, shared_s)
            case int() as moved:
                link_bandwidth = max(link_bandwidth, moved * model.kv_bytes_per_token / (tp * step.seconds))
    flops, fixed_s = _line(prefills, decode_s)
    return Hardware(
        flops=flops / tp,
        bandwidth=model.weights_bytes / (tp * decode_s),
        link_bandwidth=link_bandwidth or inf,
        chunk_s=max(0.0, fixed_s - decode_s),
        exchange_s=max(0.0, shared_s - decode_s) / model.num_layers if shared_s < inf else 0.0,
    )


def _operations(model: ModelShape, chunk: Chunk) -> float:
    pairs = chunk.length * (chunk.length + 2 * chunk.context) // 2
    return chunk.length * model.flops_per_token + pairs * model.flops_per_pair


def _line(prefills: Mapping[float, float], decode_s: float) -> tuple[float, float]:
    """Operations a second, and the seconds of a prefill without any: by the shortest and the longest that ran."""
    least, most = min(prefills), max(prefills)
    took_s = prefills[most] - prefills[least]
    if took_s >= 0.5 * prefills[most]:  # they are far enough apart to tell
        flops = (most - least) / took_s
        return flops, max(0.0, prefills[least] - least / flops)
    return most / max(prefills[most] - decode_s, 0.1 * prefills[most]), decode_s
