"""What a model's generation_config.json says about sampling: the defaults of requests that do not say themselves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longspan.sampling_params import MIN_REPETITION_PENALTY

logger = logging.getLogger(__name__)

FILE_NAME = "generation_config.json"

_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("[0, 2]", lambda x: 0 <= x <= 2),
    "top_p": ("(0, 1]", lambda x: 0 < x <= 1),
    "top_k": ("whole numbers from 0", lambda x: 0 <= x < 2**31 and x == int(x)),
    "min_p": ("[0, 1]", lambda x: 0 <= x <= 1),
    "repetition_penalty": (
        f"[{MIN_REPETITION_PENALTY}, 10]", lambda x: MIN_REPETITION_PENALTY <= x <= 10
    ),
}


def load_generation_config(model: Path | str) -> dict[str, float]:
    """Return the sampling defaults of a model folder; empty for a .gguf file, or a folder without the file.

    Names and ranges are those of `SamplingParams`; what is missing has no default of the model's.

    With `do_sample` false the model is greedy in transformers, whatever temperature, top_p, top_k and min_p are: they
    are left out then. So are values of the wrong type or out of range, and a file that cannot be read; a warning says
    which and why. Ends of generation are in `ModelConfig.eos_token_ids`.
    """
    path = Path(model) / FILE_NAME
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s is left out: it cannot be read as JSON (%s)", path, error)
        return {}
    if not isinstance(raw, dict):
        logger.warning("%s is left out: it holds no JSON object", path)
        return {}
    given = {name: value for name in _RANGES if (value := raw.get(name)) is not None}
    if raw.get("do_sample") is False and (idle := given.keys() - {"repetition_penalty"}):
        logger.warning("%s: %s left out: do_sample is false there", path, ", ".join(sorted(idle)))
        given = {name: value for name, value in given.items() if name not in idle}
    return _checked(given, path)


def _checked(given: dict[str, Any], path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in given.items():
        range_text, inside = _RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not inside(value):  # NaN is never inside
            logger.warning("%s: %s is left out: it is %.80r, but must be in %s", path, name, value, range_text)
        else:
            found[name] = int(value) if name == "top_k" else float(value)
    return found
