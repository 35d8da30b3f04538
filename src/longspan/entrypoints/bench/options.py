"""Options of `longspan bench`, as frozen data. Light to import: the command line's help needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from longspan import files
from longspan.config import check_count, check_seconds
from longspan.errors import ConfigError

MOST_TOKENS = 100_000_000  # of one prompt or output
MOST_REQUESTS = 10_000_000  # they are held in memory, and so is what became of them
MOST_RATE = 1e6
MOST_ID = 2**31 - 1

Workload = Literal[
    "poisson", "gamma", "interval", "mixed", "medha_mix", "loongserve_zipf", "chats", "agents"
]
Fit = Literal["clip", "scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthOptions:
    """How long prompts and outputs are. input_len, output_len: "512", or "128:384" for uniform lengths."""

    trace: Annotated[tuple[Path, ...], Parameter(negative="")] = ()
    input_len: str = "512"
    output_len: str = "64"
    max_total_tokens: int | None = None
    fit: Fit = "clip"
    seed: int = 0

    def __post_init__(self) -> None:
        parse_range("input_len", self.input_len)
        parse_range("output_len", self.output_len)
        if self.max_total_tokens is not None:
            check_count("max_total_tokens", self.max_total_tokens, low=2)
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, but must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalOptions:
    """When requests leave, and how many."""

    workload: Workload | None = None
    rate: float | None = None
    cv2: float = 4.0
    long_share: float = 0.05
    zipf_exponent: float = 1.2
    duration: float | None = None
    num_requests: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate <= MOST_RATE:
            raise ConfigError(f"rate is {self.rate}, but must be above 0, and at most {MOST_RATE:g} requests a second")
        if self.rate is not None:
            check_seconds("one over rate", 1 / self.rate)
        if self.duration is not None:
            check_seconds("duration", self.duration)
        for name, value in (("cv2", self.cv2), ("zipf_exponent", self.zipf_exponent)):
            if not 1e-3 <= value <= 1e3:
                raise ConfigError(f"{name} is {value}, but must lie in [0.001, 1000]")
        if not 0 <= self.long_share <= 1:
            raise ConfigError(f"long_share is {self.long_share}, but must lie in [0, 1]")
        if self.num_requests is not None:
            check_count("num_requests", self.num_requests, high=MOST_REQUESTS)
        elif (self.duration or 0.0) * (self.rate or 1.0) > MOST_REQUESTS:
            raise ConfigError(f"these are more than {MOST_REQUESTS} requests: lower --rate or --duration")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Which server is measured, with what text, and where the results go."""

    url: str = "http://127.0.0.1:8000"
    model: str | None = None
    api_key: str | None = None
    max_concurrency: int = 0
    timeout: float | None = None
    token_ids: str = "1000:30000"
    prompt_text_file: Path | None = None
    slo: str | None = None
    long_threshold: int = 4096
    json: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.isprintable():
            raise ConfigError(f"model is {self.model!r}, which no server can be asked for")
        check_count("max_concurrency", self.max_concurrency, low=0)
        check_count("long_threshold", self.long_threshold, low=0)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        parse_range("token_ids", self.token_ids, most=MOST_ID)
        parse_slo(self.slo)
        check_writable(self.json, self.plot)


def parse_range(name: str, text: str, most: int = MOST_TOKENS) -> tuple[int, int]:
    """Parse a range: "512" is (512, 512), "128:384" is (128, 384)."""
    low, _, high = text.partition(":")
    try:
        parsed = int(low), int(high or low)
    except ValueError:
        parsed = (0, 0)
    if not 1 <= parsed[0] <= parsed[1] <= most:
        raise ConfigError(
            f"{name} is {text!r}, but must be a number such as 512, or a range such as 128:384, from 1 to {most}"
        )
    return parsed


def parse_slo(text: str | None) -> dict[str, float]:
    """Parse "ttft=0.5,tpot=0.05", in seconds; either may be left out."""
    promises: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = part.strip().partition("=")
        try:
            promises[name] = float(value)
        except ValueError:
            name = ""
        if name not in ("ttft", "tpot") or not promises[name] > 0:
            raise ConfigError(f"slo is {text!r}, but must be of the form ttft=0.5,tpot=0.05 (seconds)")
    return promises


def check_writable(*paths: Path | None) -> None:
    """Check before anything is measured, so that no result is lost at the end."""
    for path in paths:
        if path is not None:
            files.check_writable(path)
