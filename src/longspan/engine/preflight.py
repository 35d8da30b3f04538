"""What can be known to fail before anything is fetched or loaded is refused here, with what to do about it.

Checks take the machine as an argument. They read files' sizes, and ask the driver for GPUs; no torch is imported.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from longspan.config import EngineConfig
from longspan.core.policies.base import Policy
from longspan.errors import ConfigError
from longspan.executor.nodes.access import check_access, fleet_key, master_address, resolve
from longspan.files import check_readable, check_writable
from longspan.models.catalog import ResolvedModel
from longspan.models.config import ModelConfig
from longspan.models.sharding import TensorParallelShard
from longspan.sib import NUMBER_BYTES, QUANTIZED_BYTES

logger = logging.getLogger(__name__)

SMALLEST_REQUEST = 32
"""Tokens, prompt and output together, that some request has to have room for."""
_WORKER_BYTES = 250 << 20  # of a process with torch, before it has loaded anything
_DRIVER_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Machine:
    """The cores, memory and GPUs of a machine.

    cores: that this program may use. memory_bytes: in all; free_bytes: now. count_gpus: see `count_gpus`.
    """

    cores: int
    memory_bytes: int
    free_bytes: int
    count_gpus: Callable[[], int]


def this_machine() -> Machine:
    page = os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * page,
        free_bytes=_available_bytes() or os.sysconf("SC_AVPHYS_PAGES") * page,
        count_gpus=count_gpus,
    )


def check_settings(config: EngineConfig, policy: Policy, machine: Machine | None = None) -> None:
    """Check what settings, files and devices say without the model. Raises ConfigError."""
    machine = machine or this_machine()
    if config.event_log is not None:
        check_writable(config.event_log)
    if config.sib is not None:
        check_readable(config.sib)
    _check_devices(config, machine)
    if config.nnodes > 1:
        gathering_place(config)
    if config.executor == "ray" and find_spec("ray") is None:
        raise ConfigError("executor is ray, which needs the package ray: pip install 'longspan[ray]'")
    if config.max_model_len is not None and config.max_model_len < 2:
        raise ConfigError("max_model_len is 1, but a prompt and its output have at least 2 tokens")
    _check_pool(config, policy)


def check_model(
    config: EngineConfig, policy: Policy, model: ResolvedModel, model_config: ModelConfig,
    machine: Machine | None = None,
) -> None:  # fmt: skip
    """Check what the model's own configuration says further. Raises ConfigError; warns of what may go wrong."""
    machine = machine or this_machine()
    _check_length(config, model_config)
    if model_config.rope.kind not in ("default", "per_frequency"):
        logger.info(
            "%s RoPE scaling by %g: up to %d tokens", model_config.rope.kind, model_config.rope.factor,
            config.max_model_len or model_config.max_model_len,
        )  # fmt: skip
    for rank in range(config.tp):
        TensorParallelShard.of(model_config, rank, config.tp)
    _check_stages(config, model_config.num_layers)
    if config.quantization == "gguf" and model.kind != "gguf":
        raise ConfigError("quantization is gguf, but the model is no .gguf file; use --quantization int8")
    if config.device != "cuda" and config.executor != "ray":
        _check_memory(config, model, model_config, machine)


def _check_length(config: EngineConfig, model_config: ModelConfig) -> None:
    if config.max_model_len is None or config.max_model_len <= model_config.max_model_len:
        return
    limit = model_config.longest_model_len
    if config.max_model_len > limit:
        raise ConfigError(f"max_model_len is {config.max_model_len}, but the model was made for {limit} tokens; "
                          "--rope-scaling stretches it, where that is worth it")
    logger.warning(
        "max_model_len is %d, beyond max_position_embeddings of %d: with %s RoPE scaling by %g some models give "
        "that number before scaling; if this one gives the length that it was trained for, answers get worse beyond it",
        config.max_model_len, model_config.max_position_embeddings, model_config.rope.kind, model_config.rope.factor,
    )  # fmt: skip


def _check_pool(config: EngineConfig, policy: Policy) -> None:
    """A pool that holds no request of a sensible length would refuse every one."""
    if config.kv_tokens is None:
        return
    needed = min(SMALLEST_REQUEST, config.max_model_len or SMALLEST_REQUEST)
    alone = policy.keeps_on_one_instance or config.num_instances == 1
    room = config.kv_tokens if alone else config.kv_tokens * config.num_instances
    if room < needed:
        where = "an instance" if alone else f"{config.num_instances} instances"
        raise ConfigError(
            f"kv_tokens is {config.kv_tokens}, so that {where} would hold {room} tokens, and no request of {needed} "
            f"could be served; give thousands, or leave --kv-tokens out for what fits"
        )


def _check_stages(config: EngineConfig, num_layers: int) -> None:
    if config.num_stages > num_layers:
        raise ConfigError(f"pp is {config.num_stages}, but the model has only {num_layers} layers")
    if config.pp_layers is not None and sum(config.pp_layers) != num_layers:
        raise ConfigError(f"pp_layers adds up to {sum(config.pp_layers)}, but the model has {num_layers} layers")


# -- devices ----------------------------------------------------------------------------------------------------------


def _check_devices(config: EngineConfig, machine: Machine) -> None:
    if config.device == "cuda":
        _check_gpus(config, machine)
    elif config.transport == "nccl" and config.device == "cpu":
        raise ConfigError("transport is nccl, which is for GPUs, but the device is cpu; use --transport auto")
    if config.device == "cuda" and config.quantization in ("gguf", "int8"):
        raise ConfigError(
            f"quantization is {config.quantization}, but its kernels are for CPUs and the device is cuda; use "
            "--quantization none"
        )
    threads = (config.threads_per_device or 0) * config.devices_here
    if config.device != "cuda" and threads > machine.cores:
        logger.warning(
            "%d threads on each of %d devices are more than the %d cores here, and slow each other down; leave out "
            "--threads-per-device for an even share", config.threads_per_device, config.devices_here, machine.cores,
        )  # fmt: skip


def _check_gpus(config: EngineConfig, machine: Machine) -> None:
    if _torch_is_for_cpus():
        raise ConfigError(
            f"device is cuda, but torch {version('torch')} here is built for CPUs only; install a build of torch with "
            "CUDA, or use --device cpu"
        )
    if config.transport not in ("auto", "nccl"):
        raise ConfigError(f"transport is {config.transport}, but the device is cuda; use --transport auto")
    found = machine.count_gpus()
    if not found:
        raise ConfigError(
            "device is cuda, but the NVIDIA driver shows no GPU here (see nvidia-smi, and CUDA_VISIBLE_DEVICES); use "
            "--device cpu"
        )
    if config.executor == "multiproc" and 1 < config.world_size > found:
        raise ConfigError(
            f"instances {config.num_instances}, pp {config.num_stages} and tp {config.tp} need {config.world_size} "
            f"GPUs, but here are {found}; use fewer, or --executor inproc for several instances on one GPU"
        )


def gathering_place(config: EngineConfig) -> tuple[str, int, bytes]:
    """Return the address and port at which the nodes meet, and their key. Raises ConfigError."""
    (host, port), key = master_address(config), fleet_key(config)
    try:
        address = resolve(host)
    except OSError as error:
        raise ConfigError(f"master is {host!r}, which cannot be resolved: {error.strerror}") from error
    check_access(key, address)
    return address, port, key


def runs_on_cpu(config: EngineConfig, machine: Machine) -> bool:
    """Tell whether workers will compute on the CPU."""
    if config.device == "auto":
        return _torch_is_for_cpus() or not machine.count_gpus()
    return config.device == "cpu"


def count_gpus() -> int:
    """Return how many GPUs the driver shows to this program, as torch would; 0 too where there is no driver.

    The driver is asked in a process of its own, so that none of its threads and memory stay in this one.
    """
    ask = (
        "import ctypes; d = ctypes.CDLL('libcuda.so.1'); n = ctypes.c_int()\n"
        "print(0 if d.cuInit(0) or d.cuDeviceGetCount(ctypes.byref(n)) else n.value)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", ask], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_DRIVER_TIMEOUT_S, check=False,
        )  # fmt: skip
        return int(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def _torch_is_for_cpus() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


# -- memory -----------------------------------------------------------------------------------------------------------


def _check_memory(config: EngineConfig, model: ResolvedModel, model_config: ModelConfig, machine: Machine) -> None:
    number_bytes = NUMBER_BYTES["float32" if config.dtype == "float32" else "bfloat16"]
    kv_bytes = (config.kv_tokens or 0) * model_config.kv_bytes_per_token(
        number_bytes, model_config.num_kv_heads, model_config.num_layers
    )
    instances = config.instances_here
    if instances * kv_bytes > machine.memory_bytes:
        fit = config.kv_tokens * machine.memory_bytes // (instances * kv_bytes) if config.kv_tokens else 0
        raise ConfigError(
            f"kv_tokens is {config.kv_tokens}, which takes {_gb(kv_bytes)} on each of {instances} "
            f"instances, but this machine has {_gb(machine.memory_bytes)}: not even {fit} would leave room for the "
            "weights"
        )
    copies = instances if config.executor == "multiproc" else 1
    processes = config.devices_here if config.executor == "multiproc" else 1
    weights = copies * weight_bytes(config, model, model_config)
    needed = weights + instances * kv_bytes + processes * _WORKER_BYTES
    if needed > machine.free_bytes:
        logger.warning(
            "this takes about %s (weights of %d copies: %s), but %s of memory are free: it may be killed, or swap; "
            "use fewer --instances or --executor inproc, which shares the weights",
            _gb(needed), copies, _gb(weights), _gb(machine.free_bytes),
        )  # fmt: skip


def weight_bytes(config: EngineConfig, model: ResolvedModel, model_config: ModelConfig) -> int:
    """Return the bytes of one copy on a CPU, at least: some quantised matrices may have to be kept plain."""
    m = model_config
    width = (2 * m.num_heads + 2 * m.num_kv_heads) * m.head_dim + 3 * m.intermediate_size
    numbers = m.num_layers * m.hidden_size * width + (2 - m.tie_word_embeddings) * m.vocab_size * m.hidden_size
    plain = NUMBER_BYTES["float32" if config.dtype == "float32" else "bfloat16"]
    if config.quantization == "int8":
        return int(numbers * QUANTIZED_BYTES["int8"])
    may_stay_quantised = config.quantization == "gguf" or (config.quantization == "auto" and config.dtype != "float32")
    if model.kind == "gguf" and may_stay_quantised:
        return min(numbers * plain, model.path.stat().st_size)
    return numbers * plain


def _available_bytes() -> int | None:
    """What programs could still get, caches included; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
