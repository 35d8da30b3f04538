"""Service levels in the body of a request: `ttft_slo_ms`, `tpot_slo_ms`, `priority`, `if_late`."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from longspan.service_level import ServiceLevel
from tests.server.fake_engine import MODEL
from tests.server.live_server import LiveServer

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL, "prompt": "x"},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "x"}]},
}


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("fields", "service"),
    [
        ({}, ServiceLevel()),
        ({"ttft_slo_ms": 250}, ServiceLevel(ttft_s=0.25)),
        ({"ttft_slo_ms": 2000.0, "tpot_slo_ms": 12.5, "priority": -3}, ServiceLevel(2.0, 0.0125, -3)),
        ({"if_late": "serve"}, ServiceLevel(if_late="serve")),
        ({"if_late": "refuse", "priority": 2}, ServiceLevel(priority=2, if_late="refuse")),
        ({"ttft_slo_ms": None, "tpot_slo_ms": None, "priority": None, "if_late": None}, ServiceLevel()),
    ],
)
def test_they_reach_the_engine(
    http: httpx2.Client, server: LiveServer, path: str, fields: dict[str, Any], service: ServiceLevel
) -> None:
    assert http.post(path, json=ENDPOINTS[path] | fields).status_code == 200
    (params,) = server.engine.params.values()
    assert params.service == service


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("ttft_slo_ms", 0, "greater than or equal to 0.001"),
        ("ttft_slo_ms", -5, "greater than or equal to 0.001"),
        ("tpot_slo_ms", "soon", "valid number"),
        ("tpot_slo_ms", 0, "greater than or equal to 0.001"),
        ("priority", 1.5, "valid integer"),
        ("priority", 2**40, "less than or equal"),
        ("if_late", "wait", "'refuse' or 'serve'"),
        ("if_late", "", "'refuse' or 'serve'"),
        ("if_late", True, "'refuse' or 'serve'"),
        ("if_late", ["serve"], "'refuse' or 'serve'"),
    ],
)
def test_bad_ones_are_refused_by_name(http: httpx2.Client, path: str, field: str, value: object, says: str) -> None:
    answer = http.post(path, json=ENDPOINTS[path] | {field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert says in error["message"]
