"""What is being served and how: frozen, keyword-only, validated once.

Measured facts (cost models, machine profiles) live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from longspan.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
GenerationDefaults = Literal["auto", "none"]
Quantization = Literal["auto", "none", "gguf", "int8"]
ExecutorName = Literal["multiproc", "inproc"]
TransportName = Literal["auto", "shared_memory", "gloo", "nccl"]

DEFAULT_MODEL = "smollm2-135m"
MOST_DEVICES = 4096
MOST_INSTANCES = 1 << 16
_MOST = 2**31 - 1  # of anything that is counted: it travels as an int32 somewhere
_MOST_SECONDS = 1e9
_MOST_BYTES = 2**62
_MOST_CHARS = 256
_MIN_EVENT_LOG_BYTES = 4096  # a file's header alone has about a thousand, and more where many requests are alive


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Everything the pure scheduler needs to know; written at the head of every event log.

    num_instances: elastic instances, numbered from 0.
    pp: pipeline stages inside each instance; a batch passes them one after the other, and the next one follows it.
    kv_tokens: KV slots of each instance, tokens.
    policy: name in `longspan.core.policies.POLICIES`.
    max_waiting: requests that may wait before new ones are turned away.
    max_batch_tokens: prefill tokens in one batch, for each instance of its group; one longer prompt runs alone.
    max_batch_requests: requests in one decode batch.
    min_tokens_per_instance: a prefill uses no more instances than give each of them this many tokens.
    decode_headroom: KV slots kept for each request's coming tokens when a retention plan is made.
    max_requests_per_master: a decode group that exceeds it takes another instance as master, if one is idle.
    lookahead: queue the next decode iteration behind the running one, so that the device never waits.

    What policies that chunk prompts go by (docs/medha.md):
    ttft_slo_factor, ttft_slo_floor_s: a request that names no TTFT should have its first token after so many times
        what its prompt takes alone, but not before so many seconds.
    tpot_slo_s: seconds for each further token, of requests that name none; how long an iteration may take.
    chunk_size: tokens in a batch of the policy `sarathi`; of one prompt in a batch of `splitfuse`.
    max_fixed_share: of an iteration with a chunk, at most so much goes to what costs the same for any; a tighter TPOT
        is not kept while somebody prefills.
    max_space_share: of an iteration, at most so much goes from a long prompt's chunk to short ones.
    kvp_tokens_per_shard: a request's KV goes on at another instance after so many tokens; None: see the policy.
    """

    num_instances: int = 2
    pp: int = 1
    kv_tokens: int = 16384
    policy: str = "elastic_fcfs"
    max_waiting: int = 1024
    max_batch_tokens: int = 8192
    max_batch_requests: int = 256
    min_tokens_per_instance: int = 64
    decode_headroom: int = 128
    max_requests_per_master: int = 16
    lookahead: bool = True
    ttft_slo_factor: float = 1.5
    ttft_slo_floor_s: float = 0.5
    tpot_slo_s: float = 0.05
    chunk_size: int = 512
    max_fixed_share: float = 0.8
    max_space_share: float = 0.4
    kvp_tokens_per_shard: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_instances", "pp", "kv_tokens", "max_waiting", "max_batch_tokens", "max_batch_requests",
                     "min_tokens_per_instance", "max_requests_per_master", "chunk_size"):
            check_count(name, getattr(self, name))
        check_count("num_instances", self.num_instances, high=MOST_INSTANCES)
        check_count("decode_headroom", self.decode_headroom, low=0)
        if self.kvp_tokens_per_shard is not None:
            check_count("kvp_tokens_per_shard", self.kvp_tokens_per_shard)
        check_service_defaults(self.ttft_slo_factor, self.ttft_slo_floor_s, self.tpot_slo_s)
        if not 0.0 < self.max_fixed_share < 1.0:
            raise ConfigError(f"max_fixed_share is {self.max_fixed_share}, but must lie between 0 and 1")
        if not 0.0 <= self.max_space_share < 1.0:
            raise ConfigError(f"max_space_share is {self.max_space_share}, but must be at least 0 and below 1")

    @property
    def total_kv_tokens(self) -> int:
        return self.num_instances * self.kv_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine: model, devices, scheduler.

    model: a name that `longspan models` lists, a folder in Hugging Face layout, or a .gguf file.
    tp: tensor-parallel devices inside each instance, or inside each of its pipeline stages.
    pp: pipeline stages of each instance: consecutive layers on devices of their own. Several chunks of one prompt are
        in flight at once (Medha's SPP).
    pp_layers: decoder layers of each stage, in order; None balances them by the measured cost of a layer and the head.
    dtype: of weights, activations and KV; auto is bfloat16 where the device computes it natively.
    generation_config: where a request over the API does not say, auto takes temperature, top_p, top_k, min_p and
        repetition_penalty from the model's generation_config.json; none takes OpenAI's defaults (temperature 1).
    quantization: what matrices are kept in: gguf, 4 and 8 bits as a .gguf file stores them; int8, 8 bits whatever the
        model; none, dtype. auto is gguf where it is faster, on CPUs in bfloat16, else none.
    max_model_len: longest prompt plus output, tokens; None is the model's own limit.
    kv_tokens: KV slots of each instance, tokens; None is what fits (on a CPU: enough for the longest context).
    threads_per_device: CPU threads of each device process; None shares the cores evenly.
    transport: how worker processes exchange; auto is NCCL between GPUs, shared memory on one machine's CPUs.
    event_log: a new file for every event and decision (docs/event_log.md); None writes none.
    event_log_max_bytes: a file that has so many is left for a new one; None: one file.
    event_log_keep: so many of a run's files stay, the newest; None: all.
    sib: a file of `longspan profile`: what policies predict times with. None: an estimate, for those that need one.
    worker_timeout_s: a worker that gives no sign of life, or makes no progress, for so long is given up.
    stall_after_s: a batch may take so much longer than what is expected of its size; then /health says that it stalls.
    """

    model: str = DEFAULT_MODEL
    served_model_name: str | None = None
    instances: int = 2
    tp: int = 1
    pp: int = 1
    pp_layers: tuple[int, ...] | None = None
    dtype: DType = "auto"
    generation_config: GenerationDefaults = "auto"
    quantization: Quantization = "auto"
    device: Device = "auto"
    executor: ExecutorName = "multiproc"
    transport: TransportName = "auto"
    max_model_len: int | None = None
    kv_tokens: int | None = None
    policy: str = "elastic_fcfs"
    threads_per_device: int | None = None
    max_waiting: int = 1024
    max_batch_tokens: int = 8192
    max_requests_per_master: int = 16
    lookahead: bool = True
    ttft_slo_factor: float = 1.5
    ttft_slo_floor_s: float = 0.5
    tpot_slo_s: float = 0.05
    chunk_size: int = 512
    kvp_tokens_per_shard: int | None = None
    event_log: Path | None = None
    event_log_max_bytes: int | None = None
    event_log_keep: int | None = None
    sib: Path | None = None
    worker_timeout_s: float = 15.0
    stall_after_s: float = 60.0

    def __post_init__(self) -> None:  # noqa: C901
        if not self.model.strip():
            raise ConfigError("model is empty; `longspan models` lists names, and a folder or .gguf file will do")
        if self.served_model_name is not None:
            _check_name("served_model_name", self.served_model_name)
        for name in ("instances", "tp", "pp", "max_waiting", "max_batch_tokens", "max_requests_per_master",
                     "chunk_size"):
            check_count(name, getattr(self, name))
        if self.world_size > MOST_DEVICES:
            raise ConfigError(
                f"instances {self.instances}, pp {self.pp} and tp {self.tp} make {self.world_size} devices, but there "
                f"may be at most {MOST_DEVICES}"
            )
        if self.pp_layers is not None and (len(self.pp_layers) != self.pp or min(self.pp_layers) < 1):
            raise ConfigError(
                f"pp_layers is {self.pp_layers}, but must name at least 1 layer for each of {self.pp} stages"
            )
        check_service_defaults(self.ttft_slo_factor, self.ttft_slo_floor_s, self.tpot_slo_s)
        for name in ("max_model_len", "kv_tokens", "threads_per_device", "kvp_tokens_per_shard", "event_log_keep"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.event_log_max_bytes is not None:
            check_count("event_log_max_bytes", self.event_log_max_bytes, _MIN_EVENT_LOG_BYTES, _MOST_BYTES)
        for name, needed in (("event_log_max_bytes", "event_log"), ("event_log_keep", "event_log_max_bytes")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ConfigError(f"{name} needs {needed}")
        for name, value, allowed in (("dtype", self.dtype, DType), ("device", self.device, Device),
                                     ("quantization", self.quantization, Quantization),
                                     ("generation_config", self.generation_config, GenerationDefaults),
                                     ("executor", self.executor, ExecutorName),
                                     ("transport", self.transport, TransportName)):
            if value not in get_args(allowed):
                raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(get_args(allowed))}")
        for name in ("worker_timeout_s", "stall_after_s"):
            check_seconds(name, getattr(self, name))

    @property
    def world_size(self) -> int:
        """Device processes: one for each tensor-parallel rank of each stage of each instance."""
        return self.instances * self.pp * self.tp


def check_service_defaults(ttft_slo_factor: float, ttft_slo_floor_s: float, tpot_slo_s: float) -> None:
    """Raises ConfigError."""
    if not 1.0 <= ttft_slo_factor <= _MOST_SECONDS:
        raise ConfigError(f"ttft_slo_factor is {ttft_slo_factor}, but no prompt takes less than 1 times its time alone")
    check_seconds("ttft_slo_floor_s", ttft_slo_floor_s)
    check_seconds("tpot_slo_s", tpot_slo_s)


def check_seconds(name: str, seconds: float, *, may_be_0: bool = False) -> None:
    """Raises ConfigError unless a clock can count so many, and at least some."""
    if not 0.0 <= seconds <= _MOST_SECONDS or (seconds == 0 and not may_be_0):
        low = "at least 0" if may_be_0 else "above 0"
        raise ConfigError(f"{name} is {seconds}, but must be a number of seconds {low}, at most {_MOST_SECONDS:g}")


def check_count(name: str, value: int, low: int = 1, high: int = _MOST) -> None:
    """Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} is {value!r}, but must be a whole number")
    if value < low:
        raise ConfigError(f"{name} is {value}, but must be at least {low}")
    if value > high:
        raise ConfigError(f"{name} is {value}, but must be at most {high}")


def _check_name(name: str, text: str) -> None:
    if not text.strip() or not text.isprintable() or len(text) > _MOST_CHARS:
        raise ConfigError(f"{name} is {text!r}, but must be 1 to {_MOST_CHARS} characters that can be printed")
