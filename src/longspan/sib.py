"""The scaling information base (LoongServe section 5.5): what was measured here, and the model fitted to it.

A JSON file, written by `longspan profile` and read by `longspan serve`. Its figures hold for one deployment: this
model, on these devices, cut up this way. Times in seconds, lengths in tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from longspan.core.costs.analytic import ModelShape
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.costs.episode import Company
from longspan.errors import ConfigError
from longspan.files import write_whole

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
QUANTIZED_BYTES = {"gguf": 0.5 + 4 / 32, "int8": 1 + 2 / 32}
"""Of a weight in groups of 32: with a scale and a minimum, as in the default model's file (Q4_1), or with a scale."""
_PACKAGES = ("longspan", "torch", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Everything that the times depend on, and that a user can change.

    processor: what the device calls itself. cores: that this program may use. kernels: the instruction set of our
    own kernels, or whose serve instead. threads_per_device: of each worker. quantization: what weights are kept in.
    """

    model: str
    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    quantization: str
    dtype: str
    instances: int
    tp: int
    executor: str
    device: str
    processor: str
    cores: int
    kernels: str
    threads_per_device: int
    pp: int = 1

    @property
    def model_shape(self) -> ModelShape:
        number_bytes = NUMBER_BYTES[self.dtype]
        return ModelShape(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            weight_bytes=QUANTIZED_BYTES.get(self.quantization, number_bytes),
            kv_bytes=number_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredIteration:
    """The time of an iteration.

    seconds: the mean over so many samples, each of them an iteration or a mean of several.
    """

    shape: BatchShape
    seconds: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMigration:
    """The time of a migration: num_tokens moved from one instance to another, at once."""

    num_tokens: int
    seconds: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredInterference:
    """The factor by which iterations of a kind take longer beside those of another instance, over all samples."""

    kind: Company
    beside: Company
    factor: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Measurements of one instance or group, while the rest stand still; and of what changes if they do not.

    Decodes are queued behind one another, all else behind nothing. unqueued_s: what a decode that is queued behind
    nothing takes longer, for its news to come in and its decision to go out.
    """

    iterations: tuple[MeasuredIteration, ...]
    migrations: tuple[MeasuredMigration, ...]
    unqueued_s: float = 0.0
    interference: tuple[MeasuredInterference, ...] = ()

    def without(self, known: Measurements) -> Measurements:
        """Return only what `known` has no measurement of."""
        shapes = {point.shape for point in known.iterations}
        sizes = {point.num_tokens for point in known.migrations}
        return Measurements(
            iterations=tuple(point for point in self.iterations if point.shape not in shapes),
            migrations=tuple(point for point in self.migrations if point.num_tokens not in sizes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingInformationBase:
    """The contents of a profile's file.

    date: of the measurement, ISO. versions: of the packages it was made with.
    """

    deployment: Deployment
    versions: dict[str, str]
    date: str
    measurements: Measurements
    cost_model: FittedCostModel

    def require(self, present: Deployment, path: Path) -> None:
        """Raise ConfigError if the file at `path` was measured on something else than what is there now."""
        pairs = [(f.name, getattr(self.deployment, f.name), getattr(present, f.name)) for f in fields(Deployment)]
        differing = [f"{name} is {then!r} in the file, but {now!r} here" for name, then, now in pairs if then != now]
        if differing:
            raise ConfigError(
                f"{path} does not fit what is being served: {'; '.join(differing)}. Measure anew with "
                f"`longspan profile`, or leave out --sib"
            )
        if self.versions != package_versions():
            logger.warning(
                "%s was measured with %s, and here is %s: if predictions are off, measure anew with `longspan profile`",
                path, _listed(self.versions), _listed(package_versions()),
            )  # fmt: skip


def package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source folder that was never installed
            versions[name] = "unknown"
    return versions


def write_sib(sib: ScalingInformationBase, path: Path) -> None:
    """Write it whole or not at all. Raises ConfigError."""
    content = {"format_version": FORMAT_VERSION, **{f.name: getattr(sib, f.name) for f in fields(sib)}}
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def read_sib(path: Path) -> ScalingInformationBase:
    """Raises ConfigError: not there, not such a file, or of another version."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; `longspan profile` writes one") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no scaling information base: {error}") from error
    found = content.pop("format_version", None)
    if found != FORMAT_VERSION:
        raise ConfigError(f"{path} has format version {found!r}, but this reads {FORMAT_VERSION}; measure anew")
    try:
        return msgspec.convert(content, ScalingInformationBase)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{path} is no scaling information base: {error}") from error


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
