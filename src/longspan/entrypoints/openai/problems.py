"""What pydantic finds wrong with a request, in OpenAI's words."""

from __future__ import annotations

from pydantic import ValidationError

from longspan.entrypoints.openai.json_place import join
from longspan.errors import RequestError

MAX_PROBLEMS_NAMED = 3


def request_error(error: ValidationError) -> RequestError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    named = [f"{join(problem['loc']) or 'body'}: {problem['msg']}" for problem in problems[:MAX_PROBLEMS_NAMED]]
    if len(problems) > MAX_PROBLEMS_NAMED:
        named.append(f"and {len(problems) - MAX_PROBLEMS_NAMED} more")
    first = problems[0]
    return RequestError("; ".join(named), param=join(first["loc"]) or None, code=_code(first["type"]))


def _code(problem: str) -> str:
    """OpenAI's code for a problem of pydantic's."""
    if problem == "missing":
        return "missing_required_parameter"
    if problem.endswith(("_type", "_parsing")) or problem in ("int_from_float", "model_attributes_type"):
        return "invalid_type"
    return _CODES.get(problem, "invalid_value")


_CODES = {
    "too_long": "array_above_max_length",
    "too_short": "empty_array",
    "string_too_long": "string_above_max_length",
    "string_too_short": "empty_string",
    "literal_error": "unsupported_value",
}
