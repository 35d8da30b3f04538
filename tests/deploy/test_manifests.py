"""What is under deploy/ fits its schemas, fits together, and gives options that Longspan has. No network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from longspan.config import EngineConfig
from longspan.entrypoints.cli import app
from longspan.entrypoints.server_config import ServerConfig
from longspan.executor.nodes.access import DEFAULT_PORT
from tests.deploy.schemas import COMPOSE, KINDS, PROMETHEUS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UID = 10001


def load(path: Path) -> Any:
    (found,) = yaml.safe_load_all(path.read_text())
    return found


def manifest(name: str) -> Any:
    return load(DEPLOY / "kubernetes" / f"{name}.yaml")


def check(found: Any, schema: dict[str, Any]) -> None:
    errors = [f"{'/'.join(map(str, error.instance_path))}: {error.message}"
              for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(found)]  # fmt: skip
    assert not errors, "\n".join(errors)


def pods() -> dict[str, Any]:
    template = manifest("leaderworkerset")["spec"]["leaderWorkerTemplate"]
    return {role: template[f"{role}Template"] for role in ("leader", "worker")}


def options(arguments: list[str], rank: int = 0) -> tuple[EngineConfig, ServerConfig]:
    """What `longspan` takes the arguments of a container for, with what a LeaderWorkerSet would put into them."""
    variables = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(rank), "LWS_LEADER_ADDRESS": "longspan-0.longspan"}
    arguments = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], argument) for argument in arguments]
    command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert command.__name__ == "serve"
    given = bound.arguments
    return given.get("engine", EngineConfig()), given.get("server", ServerConfig())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_fits_its_schema(path: Path) -> None:
    found = load(path)
    check(found, KINDS[found["kind"]])


def test_a_field_that_is_not_known_is_found() -> None:
    found = manifest("service")
    found["spec"]["selectors"] = {}
    with pytest.raises(AssertionError, match="selectors"):
        check(found, KINDS["Service"])


def test_compose_and_prometheus_fit_their_schemas() -> None:
    compose, prometheus = load(DEPLOY / "compose/compose.yaml"), load(DEPLOY / "compose/prometheus.yml")
    check(compose, COMPOSE)
    check(prometheus, PROMETHEUS)
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["longspan:8000"]
    service = compose["services"]["longspan"]
    build = service["build"]
    context = (DEPLOY / "compose" / build["context"]).resolve()
    assert context == ROOT and (context / build["dockerfile"]).is_file()
    _, server = options(service["command"])
    assert int(service["stop_grace_period"].removesuffix("s")) > server.drain_timeout_s
    for name in service["environment"]:
        field = name.removeprefix("LONGSPAN_SERVE_").lower()
        assert hasattr(EngineConfig(), field) or hasattr(ServerConfig(), field)


@pytest.mark.parametrize(("role", "rank"), [("leader", 0), ("worker", 1)])
def test_pods_run_what_longspan_understands(role: str, rank: int) -> None:
    spec = pods()[role]["spec"]
    (container,) = spec["containers"]
    engine, server = options(container["args"], rank)
    assert (engine.nnodes, engine.node_rank, engine.master) == (2, rank, "longspan-0.longspan")
    assert spec["terminationGracePeriodSeconds"] > server.drain_timeout_s + 5
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert mounts.keys() == {"/var/lib/longspan", "/etc/longspan"} and set(mounts.values()) == set(volumes)
    secret = manifest("secret")
    assert volumes[mounts["/etc/longspan"]]["secret"]["secretName"] == secret["metadata"]["name"]
    for file in (engine.fleet_key_file, server.api_key_file):
        assert file is not None and file.parent == Path("/etc/longspan") and file.name in secret["stringData"]


def test_pods_of_one_set_run_the_same_and_only_the_leader_is_asked() -> None:
    leader, worker = (pods()[role]["spec"]["containers"][0] for role in ("leader", "worker"))
    assert leader["args"] == worker["args"] and leader["env"] == worker["env"]
    assert (leader["readinessProbe"]["httpGet"]["path"], leader["livenessProbe"]["httpGet"]["path"]) == (
        "/ready", "/health"
    )  # fmt: skip
    assert not {"readinessProbe", "livenessProbe", "ports"} & worker.keys()
    ports = {port["name"]: port["containerPort"] for port in leader["ports"]}
    assert ports == {"http": ServerConfig().port, "fleet": DEFAULT_PORT}
    service, policy = manifest("service")["spec"], manifest("networkpolicy")["spec"]
    labels = {role: pod["metadata"]["labels"] for role, pod in pods().items()}
    assert service["selector"].items() <= labels["leader"].items()
    assert not service["selector"].items() <= labels["worker"].items()
    assert service["ports"][0]["targetPort"] in ports
    for each in labels.values():
        assert policy["podSelector"]["matchLabels"].items() <= each.items()
    assert [rule["ports"][0]["port"] for rule in policy["ingress"] if "ports" in rule] == ["http"]


def test_the_dockerfile_is_whole() -> None:
    """What it copies is there and not ignored; it runs as nobody in particular; SIGTERM reaches Longspan itself."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line and not line.startswith("#")]
    instructions = [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
             "ENTRYPOINT", "CMD"}  # fmt: skip
    assert {name for name, _ in instructions} <= known
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for name, rest in instructions:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and source in allowed
    given = dict(instructions)
    assert given["USER"] == str(UID) and f"--uid {UID}" in text
    entry, command = json.loads(given["ENTRYPOINT"]), json.loads(given["CMD"])
    assert entry == ["longspan"] and given["STOPSIGNAL"] == "SIGTERM"
    assert options(command)[1].host == "0.0.0.0"
    assert given["EXPOSE"].split() == [str(ServerConfig().port), str(DEFAULT_PORT)]
    requirement = next(rest for name, rest in instructions if name == "ARG" and rest.startswith("TORCH="))
    assert requirement.partition("=")[2].strip('"') in (ROOT / "pyproject.toml").read_text()
    for role in pods().values():
        assert role["spec"]["securityContext"]["fsGroup"] == UID
