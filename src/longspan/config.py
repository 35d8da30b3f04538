"""What is being served and how: frozen, keyword-only, validated once.

Measured facts (cost models, machine profiles) live elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from longspan.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
GenerationDefaults = Literal["auto", "none"]
Quantization = Literal["auto", "none", "gguf", "int8"]
ExecutorName = Literal["multiproc", "inproc", "ray"]
RayPlacement = Literal["spread", "pack"]
TransportName = Literal["auto", "shared_memory", "gloo", "nccl"]
Overload = Literal["off", "warn", "enforce"]
Objective = Literal["latency", "balanced", "throughput"]

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_TTFT_FLOOR_S = 1.0
DEFAULT_TPOT_S = 0.05
"""Where no machine is there to be measured, as in simulations."""
DEFAULT_INSTANCES = 2
MOST_DEVICES = 4096
MOST_INSTANCES = 1 << 16
_MOST = 2**31 - 1  # of anything that is counted: it travels as an int32 somewhere
_MOST_SECONDS = 1e9
_MOST_BYTES = 2**62
_MOST_CHARS = 256
_MIN_EVENT_LOG_BYTES = 4096  # a file's header alone has about a thousand, and more where many requests are alive


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingKnobs:
    """What serving and simulating set alike: each knob stands here, and nowhere else, with its default and its help.

    Who needs knobs extends this class; so each is an option of every command that schedules, a name in its table of a
    TOML file, a variable of the environment, and an argument in Python. What a single policy uses is among its own
    options (`Policy.Options`).
    """

    max_waiting: int = 1024
    """Requests that may wait; more are refused, by a server with status 429."""
    max_batch_tokens: int = 8192
    """Prefill tokens in one batch, for each instance that takes part; a longer prompt is cut into chunks, or runs alone
    under policies that cut none."""
    max_batch_requests: int = 256
    """Requests in one decode batch."""
    max_requests_per_master: int = 16
    """A decode group with more requests a master takes another instance as master, if one is idle."""
    min_tokens_per_instance: int = 64
    """A prefill uses no more instances than give each so many tokens."""
    decode_headroom: int = 128
    """KV slots kept for each request's coming tokens when a prefill is planned."""
    prefix_cache: bool = True
    """Keep KV when its request has ended, until its slots are needed, and do not compute again what prompts begin with.
    In simulations: as far as the trace tells which prompts begin alike."""
    prefix_block: int = 16
    """How many tokens prompts must have in common to share their KV, and at every multiple of it."""
    repair_kv: bool = True
    """When an instance is lost, compute again only the tokens whose KV was there; else whole requests, as other servers
    do."""
    lookahead: bool = True
    """Queue the next decode step behind the running one, so that the device never waits."""
    ttft_slo_factor: float = 5.0
    """A request that names no TTFT should start to answer after so many times what its prompt takes alone,"""
    ttft_slo_floor_s: float | None = None
    """but not before so many seconds; by default 1, and more on a machine that takes longer for any prompt."""
    tpot_slo_s: float | None = None
    """Seconds for each further token, of requests that name none. Policies that chunk prompts size iterations by it. By
    default what suits the objective on the machine that serves; 0.05 in simulations."""
    overload: Overload = "enforce"
    """What becomes of a request whose first token would come later than its policy promises: enforce refuses it (a
    server answers with status 429), unless it asks to be served; warn serves it, and a server's log tells how many;
    off serves it. The policy longspan promises, others do not."""

    node_instances: int | None = None
    """Cut the fleet into nodes of at most so many instances, each with a scheduler of its own; arrivals are divided
    among them, and a request may be no longer than a node holds. By default one scheduler has all instances."""

    def __post_init__(self) -> None:
        if self.node_instances is not None:
            check_count("node_instances", self.node_instances)
        for name in ("max_waiting", "max_batch_tokens", "max_batch_requests", "max_requests_per_master",
                     "min_tokens_per_instance"):
            check_count(name, getattr(self, name))
        check_count("decode_headroom", self.decode_headroom, low=0)
        check_count("prefix_block", self.prefix_block)
        if not 1.0 <= self.ttft_slo_factor <= _MOST_SECONDS:
            raise ConfigError(
                f"ttft_slo_factor is {self.ttft_slo_factor}, but no prompt takes less than 1 times its time alone"
            )
        for name in ("ttft_slo_floor_s", "tpot_slo_s"):
            if (seconds := getattr(self, name)) is not None:
                check_seconds(name, seconds)
        check_choice("overload", self.overload, Overload)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingConfig(SchedulingKnobs):
    """The knobs, and who decides."""

    policy: str = "longspan"
    """Who runs when, and on how many instances: longspan, elastic_fcfs, loongserve or medha; others' schedulers alise,
    distserve, fastserve, preflow, qoserve, sarathi, splitfuse, ssjf, vllm; an order, edf, fcfs, fsp, least_slack or
    srpt; fixed groups, replicated, static_sp or static_tp; or MODULE:CLASS, one of your own. Its options follow, as in
    medha:max_space_share=0.3; `longspan policies` lists them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig(SchedulingConfig):
    """Everything the pure scheduler needs to know; written at the head of every event log.

    num_instances: elastic instances, numbered from 0.
    pp: pipeline stages inside each instance; a batch passes them one after the other, and the next one follows it.
    kv_tokens: KV slots of each instance, tokens.
    """

    num_instances: int = DEFAULT_INSTANCES
    pp: int = 1
    kv_tokens: int = 16384
    if TYPE_CHECKING:  # knobs that may be left out have their defaults here
        ttft_slo_floor_s: float = DEFAULT_TTFT_FLOOR_S
        tpot_slo_s: float = DEFAULT_TPOT_S

    def __post_init__(self) -> None:
        for name, default in (("ttft_slo_floor_s", DEFAULT_TTFT_FLOOR_S), ("tpot_slo_s", DEFAULT_TPOT_S)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        SchedulingConfig.__post_init__(self)
        for name in ("num_instances", "pp", "kv_tokens"):
            check_count(name, getattr(self, name))
        check_count("num_instances", self.num_instances, high=MOST_INSTANCES)

    @classmethod
    def of(cls, chosen: SchedulingKnobs, **deployment: Any) -> SchedulerConfig:
        """The knobs of another configuration, with what its deployment says: num_instances, pp, kv_tokens."""
        names = [field.name for field in fields(SchedulingConfig) if hasattr(chosen, field.name)]
        return cls(**{name: getattr(chosen, name) for name in names} | deployment)

    @property
    def total_kv_tokens(self) -> int:
        return self.num_instances * self.kv_tokens

    @property
    def num_nodes(self) -> int:
        """Schedulers that the instances are divided among."""
        return -(-self.num_instances // (self.node_instances or self.num_instances))

    def of_node(self, node: int = 0) -> SchedulerConfig:
        """Return what a node's own scheduler is told; itself, if it is the only one. The first node is no smaller than
        others."""
        if self.num_nodes == 1:
            return self
        share, more = divmod(self.num_instances, self.num_nodes)
        return replace(self, num_instances=share + (node < more), node_instances=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(SchedulingConfig):
    """One engine: model, devices, and how it schedules (`SchedulingConfig`).

    The text behind a field is also its help on the command line.
    """

    model: str = DEFAULT_MODEL
    """A name that `longspan models` lists, a folder in Hugging Face layout, a .gguf file, or an id on Hugging Face's
    hub, as owner/name; the same as the first argument."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub; by default its main branch."""
    chat_template: Path | None = None
    """A file with the chat template (Jinja) to use instead of the model's own."""
    served_model_name: str | None = None
    """The name that requests give; by default the model's own."""
    objective: Objective = "balanced"
    """What the start chooses for, where instances, pp, threads_per_device or tpot_slo_s are left out: latency, short
    waits and an even pace; throughput, many tokens a second; balanced, both."""
    instances: int | None = None
    """Elastic instances: full copies of the model, among which the work of one request is spread as it needs. By
    default, under the policy longspan on a CPU, what serves the objective best as measured, with pp and
    threads_per_device; else 2."""
    tp: int = 1
    """Tensor-parallel devices inside each instance, or inside each of its pipeline stages."""
    pp: int | None = None
    """Pipeline stages of each instance: consecutive layers, on devices of their own. Under policies that chunk prompts,
    such as longspan, the chunks of one follow each other through them (Medha's SPP). By default
    as instances; else 1."""
    pp_layers: tuple[int, ...] | None = None
    """Decoder layers of each stage, in order; by default balanced by the measured cost of a layer and the head."""
    dtype: DType = "auto"
    """Of weights, activations and KV; auto is bfloat16 where the device computes it natively."""
    generation_config: GenerationDefaults = "auto"
    """Sampling of requests over the API that do not say: auto, as the model's generation_config.json advises
    (temperature, top_p, top_k, min_p, repetition_penalty); none, OpenAI's defaults (temperature 1)."""
    quantization: Quantization = "auto"
    """What matrices are kept in: gguf, 4 and 8 bits as a .gguf file stores them; int8, 8 bits whatever the model; none,
    the dtype. auto is gguf where that is faster, on CPUs in bfloat16, else none."""
    device: Device = "auto"
    """Where to run; auto is CUDA if there is one."""
    executor: ExecutorName = "multiproc"
    """One process for each device, on this machine or on --nnodes; all instances as threads of this one (inproc); or a
    process for each device on the nodes of a Ray cluster, which places instances and watches them."""
    transport: TransportName = "auto"
    """How worker processes exchange; auto is NCCL between GPUs, shared memory between CPUs."""
    max_model_len: int | None = None
    """Longest prompt and output together, tokens; by default the model's own limit."""
    rope_scaling: str | None = None
    """RoPE scaling in place of the model's own, to go beyond its length: a JSON object as in config.json, such as
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}; in a TOML file a table."""
    kv_tokens: int | None = None
    """KV slots of each instance, tokens; by default what fits (on a CPU: enough for the longest context)."""
    threads_per_device: int | None = None
    """CPU threads of each device; by default an even share of the cores."""
    event_log: Path | None = None
    """Write every decision to this file, or where it exists to a new one beside it; `longspan replay` checks it,
    `longspan explain` tells of its requests. Compressed if it ends in .gz."""
    event_log_max_bytes: int | None = None
    """Go on in a new file (FILE.2, FILE.3 ...) once one has so many bytes."""
    event_log_keep: int | None = None
    """How many of a run's files to keep, the newest; all by default."""
    share_prefixes: bool = False
    """Let tenants (API keys) find the KV of each other's prompts; whoever measures how soon an answer comes can then
    tell what others have asked."""
    sib: Path | None = None
    """A file of `longspan profile`, measured here, for policies that predict times; by default an estimate."""
    worker_timeout_s: float = 15.0
    """A worker without a sign of life, or without progress, for so long is given up."""
    max_restarts: int = 5
    """How often the workers of an instance that is lost are started again within --restart-window-s; then it stays
    missing. Only where workers exchange through shared memory, or one instance is all: else a loss ends the server."""
    restart_window_s: float = 600.0
    """See --max-restarts, seconds."""
    nnodes: int = 1
    """Machines over which the instances are spread, as many on each as can be. The same command runs on all of them,
    with its own --node-rank."""
    node_rank: int = 0
    """Which of them this is: 0 serves and decides, and has workers too; others only run workers, and call it."""
    master: str | None = None
    """Address or name of the machine with --node-rank 0, as the others reach it, with a port behind a colon if it
    shall not be 29600."""
    fleet_key_file: Path | None = None
    """A file with the key that all machines share; needed unless --master is an address of this machine alone."""
    fleet_key: str | None = field(default=None, repr=False)
    """The key itself: in the environment, as LONGSPAN_SERVE_FLEET_KEY, since others may see a command line."""
    ray_address: str | None = None
    """The Ray cluster that --executor ray joins, as HOST:PORT, or auto for the one that this machine is a node of. By
    default what RAY_ADDRESS says; else, and with local, one is started on this machine, and ends with the server."""
    ray_placement: RayPlacement = "spread"
    """Spread instances over as many nodes of Ray as there are, or pack them on as few."""
    ray_timeout_s: float = 60.0
    """So long Ray may take to answer, and then to find places for all instances at the start."""
    stall_after_s: float = 60.0
    """/health turns 503 when a batch takes so much longer than what is expected of its size."""

    def __post_init__(self) -> None:
        SchedulingConfig.__post_init__(self)
        scaling: object = self.rope_scaling
        if isinstance(scaling, Mapping):  # as Python has it
            object.__setattr__(self, "rope_scaling", json.dumps(dict(scaling)))
        if not self.model.strip():
            raise ConfigError("model is empty; `longspan models` lists names, and a folder or .gguf file will do")
        for name in ("served_model_name", "revision"):
            if getattr(self, name) is not None:
                _check_name(name, getattr(self, name))
        self._check_devices()
        for name in ("max_model_len", "kv_tokens", "threads_per_device", "event_log_keep"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        self._check_event_log()
        for name, allowed in (("dtype", DType), ("device", Device), ("quantization", Quantization),
                              ("generation_config", GenerationDefaults), ("executor", ExecutorName),
                              ("transport", TransportName), ("objective", Objective), ("ray_placement", RayPlacement)):
            check_choice(name, getattr(self, name), allowed)
        check_count("max_restarts", self.max_restarts, 0)
        self._check_nodes()
        self._check_ray()
        for name in ("worker_timeout_s", "restart_window_s", "stall_after_s", "ray_timeout_s"):
            check_seconds(name, getattr(self, name))

    def _check_devices(self) -> None:
        for name, value in (("instances", self.num_instances), ("tp", self.tp), ("pp", self.num_stages)):
            check_count(name, value)
        if self.world_size > MOST_DEVICES:
            raise ConfigError(
                f"instances {self.num_instances}, pp {self.num_stages} and tp {self.tp} make {self.world_size} "
                f"devices, but there may be at most {MOST_DEVICES}"
            )
        if self.pp_layers is not None and (len(self.pp_layers) != self.num_stages or min(self.pp_layers) < 1):
            raise ConfigError(
                f"pp_layers is {self.pp_layers}, but must name at least 1 layer for each of {self.num_stages} stages"
            )

    def _check_nodes(self) -> None:
        check_count("nnodes", self.nnodes)
        check_count("node_rank", self.node_rank, 0, self.nnodes - 1)
        if self.nnodes == 1:
            return
        if self.master is None:
            raise ConfigError(f"nnodes is {self.nnodes}, which needs master: the address of the node with node_rank 0")
        if self.executor != "multiproc":
            told = "; Ray's nodes are all that it has" if self.executor == "ray" else ""
            raise ConfigError(f"nnodes is {self.nnodes}, which needs executor multiproc, not {self.executor}{told}")
        if self.num_instances < self.nnodes:
            raise ConfigError(
                f"instances is {self.num_instances}, but each of {self.nnodes} nodes has at least one: an instance's "
                "devices are on one node"
            )
        self._check_between_nodes(f"nnodes {self.nnodes}")

    def _check_ray(self) -> None:
        if self.executor == "ray":
            self._check_between_nodes("executor ray")
        elif self.ray_address is not None:
            raise ConfigError(f"ray_address needs executor ray, not {self.executor}")
        if self.ray_address is not None and "://" in self.ray_address:
            raise ConfigError(
                f"ray_address is {self.ray_address}, but the server itself is on a node of the cluster, and joins it "
                "by HOST:PORT or auto"
            )

    def _check_between_nodes(self, what: str) -> None:
        if self.transport in ("gloo", "nccl") or self.device == "cuda":
            raise ConfigError(
                f"with {what} transport is {self.transport} and device {self.device}, but between nodes only CPU "
                "workers exchange yet, over TCP; use --transport auto and --device cpu"
            )

    def _check_event_log(self) -> None:
        if self.event_log_max_bytes is not None:
            check_count("event_log_max_bytes", self.event_log_max_bytes, _MIN_EVENT_LOG_BYTES, _MOST_BYTES)
        for name, needed in (("event_log_max_bytes", "event_log"), ("event_log_keep", "event_log_max_bytes")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ConfigError(f"{name} needs {needed}")

    @property
    def num_instances(self) -> int:
        """Instances: as many as are given or were chosen, else the default."""
        return max(DEFAULT_INSTANCES, self.nnodes) if self.instances is None else self.instances

    @property
    def num_stages(self) -> int:
        """Pipeline stages of each instance, likewise."""
        return 1 if self.pp is None else self.pp

    @property
    def has_shape(self) -> bool:
        """Whether anything is said of how devices are cut up, so that nothing is left to choose."""
        given = (self.instances, self.pp, self.threads_per_device, self.pp_layers, self.node_instances, self.sib)
        return any(value is not None for value in given) or self.tp > 1

    @property
    def world_size(self) -> int:
        """Device processes: one for each tensor-parallel rank of each stage of each instance."""
        return self.num_instances * self.num_stages * self.tp

    @property
    def has_machines(self) -> bool:
        """Whether its workers may be on several machines."""
        return self.nnodes > 1 or self.executor == "ray"

    @property
    def instances_here(self) -> int:
        """Instances of one machine, at most."""
        return -(-self.num_instances // self.nnodes)

    @property
    def devices_here(self) -> int:
        """Device processes of one machine, at most."""
        return self.instances_here * self.num_stages * self.tp


for _settings in (SchedulingKnobs, EngineConfig):
    # Who extends them in another module inherits types, not the names that they have in this one.
    for _field in fields(_settings):
        _field.type = get_type_hints(_settings)[_field.name]


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


def check_choice(name: str, value: object, allowed: Any) -> None:
    """Raises ConfigError unless the value is one of a Literal's."""
    if value not in get_args(allowed):
        raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(get_args(allowed))}")


def instances_in_words(number: int) -> str:
    """Return "1 instance", "2 instances"."""
    return f"{number} instance{'' if number == 1 else 's'}"


def _check_name(name: str, text: str) -> None:
    if not text.strip() or not text.isprintable() or len(text) > _MOST_CHARS:
        raise ConfigError(f"{name} is {text!r}, but must be 1 to {_MOST_CHARS} characters that can be printed")
