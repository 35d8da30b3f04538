"""From names and files to the fleet that is simulated."""

from __future__ import annotations

from pathlib import Path

from longspan.core.costs.analytic import ModelShape
from longspan.errors import ConfigError
from longspan.models.config import ModelConfig, load_model_config
from longspan.sib import NUMBER_BYTES, read_sib
from longspan.simulator.fleet import Fleet, SimulatedModel
from longspan.simulator.hardware import known_machine
from longspan.simulator.measured import measured_machine, measured_model
from longspan.simulator.models import MODELS, known_model

DEFAULT_MODEL = "lwm-1m"
SIB_PREFIX = "sib:"


def make_fleet(hardware: str, model: str | None, instances: int, tp: int, pp: int = 1) -> Fleet:
    """Make a fleet.

    hardware: a name, or sib:FILE. model: a name, a folder with a config.json, or a .gguf file; without one it is
    the profiled model of a file, or the default one. Raises ConfigError, ModelError.
    """
    if not hardware.startswith(SIB_PREFIX):
        machine = known_machine(hardware)
        return Fleet(machine=machine, model=find_model(model or DEFAULT_MODEL), instances=instances, tp=tp, pp=pp)
    path = Path(hardware.removeprefix(SIB_PREFIX))
    sib = read_sib(path)
    simulated = measured_model(sib.deployment) if model is None else find_model(model)
    return Fleet(machine=measured_machine(sib, path), model=simulated, instances=instances, tp=tp, pp=pp)


def find_model(name: str) -> SimulatedModel:
    path = Path(name)
    if name in MODELS or not name or not _exists(path):
        return known_model(name)
    if path.name == "config.json":
        path = path.parent
    return _simulated(path.name, load_model_config(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # what can be no path may be a name
        return False


def _simulated(name: str, config: ModelConfig) -> SimulatedModel:
    number_bytes = NUMBER_BYTES[config.torch_dtype]
    shape = ModelShape(
        num_layers=config.num_layers, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
        vocab_size=config.vocab_size, weight_bytes=number_bytes, kv_bytes=number_bytes,
    )  # fmt: skip
    return SimulatedModel(
        name=name, shape=shape, max_model_len=config.max_model_len, tied=config.tie_word_embeddings
    )


def kv_tokens_of(fleet: Fleet, wanted: int | None) -> int:
    """Return the KV slots of an instance. Raises ConfigError: more than fit, or it is not known how many do."""
    if wanted is None:
        return fleet.kv_tokens_that_fit()
    if fleet.machine.sheet.memory_bytes is not None and wanted > (fit := fleet.kv_tokens_that_fit()):
        raise ConfigError(f"kv_tokens is {wanted}, but an instance of {fleet.model.name} has memory for {fit}")
    return wanted
