"""What the manifests under deploy/ may hold, as JSON schemas.

These are the fields that they use, from the references of Kubernetes 1.32 (core/v1, networking.k8s.io/v1), of
LeaderWorkerSet (leaderworkerset.x-k8s.io/v1), the Compose specification, and Prometheus. Any other field is an error:
whoever uses one more adds it here, as its reference has it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "integer", "minimum": 1}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
PORT_NAME: Schema = NAME | {"maxLength": 15}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(us|ms|s|m|h))+$"}
LABELS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$"},
    "additionalProperties": {"type": "string", "pattern": "^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$"},
}
ANNOTATIONS: Schema = {"type": "object", "additionalProperties": TEXT}


def fields(*required: str, **properties: Schema) -> Schema:
    """An object with these fields, and no others."""
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False
    }  # fmt: skip


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def constant(value: str) -> Schema:
    return {"const": value}


PROBE = fields(
    "httpGet",
    httpGet=fields("port", path=TEXT, port={"anyOf": [PORT, PORT_NAME]}, scheme={"enum": ["HTTP", "HTTPS"]}),
    periodSeconds=SECONDS, failureThreshold=SECONDS, timeoutSeconds=SECONDS, initialDelaySeconds=COUNT,
)  # fmt: skip
CONTAINER = fields(
    "name", "image",
    name=NAME, image=TEXT, command=many(TEXT), args=many(TEXT),
    env=many(fields("name", "value", name={"type": "string", "pattern": "^[A-Z_][A-Z0-9_]*$"}, value=TEXT)),
    ports=many(fields("containerPort", name=PORT_NAME, containerPort=PORT, protocol={"enum": ["TCP", "UDP"]})),
    resources=fields(
        requests={"type": "object", "additionalProperties": QUANTITY},
        limits={"type": "object", "additionalProperties": QUANTITY},
    ),
    startupProbe=PROBE, readinessProbe=PROBE, livenessProbe=PROBE,
    lifecycle=fields(preStop=fields(sleep=fields("seconds", seconds=SECONDS))),
    volumeMounts=many(fields("name", "mountPath", name=NAME, mountPath=TEXT, readOnly={"type": "boolean"})),
)  # fmt: skip
VOLUME = fields(
    "name",
    name=NAME, secret=fields("secretName", secretName=NAME),
    emptyDir=fields(sizeLimit=QUANTITY),
)  # fmt: skip
POD_TEMPLATE = fields(
    "spec",
    metadata=fields(labels=LABELS, annotations=ANNOTATIONS),
    spec=fields(
        "containers",
        terminationGracePeriodSeconds=COUNT,
        securityContext=fields(runAsNonRoot={"type": "boolean"}, runAsUser=COUNT, fsGroup=COUNT),
        containers=many(CONTAINER), volumes=many(VOLUME),
    ),
)  # fmt: skip
METADATA = fields("name", name=NAME, labels=LABELS, annotations=ANNOTATIONS)
SELECTOR = fields("matchLabels", matchLabels=LABELS)

KINDS = {
    "LeaderWorkerSet": fields(
        "apiVersion", "kind", "metadata", "spec",
        apiVersion=constant("leaderworkerset.x-k8s.io/v1"), kind=TEXT, metadata=METADATA,
        spec=fields(
            "leaderWorkerTemplate",
            replicas=COUNT, startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
            leaderWorkerTemplate=fields(
                "workerTemplate",
                size=SECONDS, leaderTemplate=POD_TEMPLATE, workerTemplate=POD_TEMPLATE,
                restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
            ),
        ),
    ),
    "Secret": fields(
        "apiVersion", "kind", "metadata",
        apiVersion=constant("v1"), kind=TEXT, metadata=METADATA, type=TEXT,
        stringData={"type": "object", "additionalProperties": TEXT},
    ),
    "Service": fields(
        "apiVersion", "kind", "metadata", "spec",
        apiVersion=constant("v1"), kind=TEXT, metadata=METADATA,
        spec=fields(
            "ports",
            selector=LABELS,
            ports=many(fields("port", name=PORT_NAME, port=PORT, targetPort={"anyOf": [PORT, PORT_NAME]})),
        ),
    ),
    "NetworkPolicy": fields(
        "apiVersion", "kind", "metadata", "spec",
        apiVersion=constant("networking.k8s.io/v1"), kind=TEXT, metadata=METADATA,
        spec=fields(
            "podSelector",
            podSelector=SELECTOR, policyTypes=many({"enum": ["Ingress", "Egress"]}),
            ingress=many({
                "type": "object", "additionalProperties": False, "properties": {
                    "from": many(fields("podSelector", podSelector=SELECTOR)),
                    "ports": many(fields("port", port={"anyOf": [PORT, PORT_NAME]}, protocol={"enum": ["TCP", "UDP"]})),
                },
            }),
        ),
    ),
}  # fmt: skip

COMPOSE = fields(
    "services",
    name=NAME,
    services={
        "type": "object",
        "additionalProperties": fields(
            image=TEXT, build=fields("context", context=TEXT, dockerfile=TEXT, args=ANNOTATIONS), command=many(TEXT),
            environment=ANNOTATIONS, ports=many(TEXT), volumes=many(TEXT),
            stop_grace_period=DURATION, restart={"enum": ["no", "always", "on-failure", "unless-stopped"]},
            depends_on=many(TEXT),
        ),
    },
    volumes={"type": "object", "additionalProperties": fields()},
)  # fmt: skip
PROMETHEUS = fields(
    "scrape_configs",
    **{"global": fields(scrape_interval=DURATION)},
    scrape_configs=many(
        fields("job_name", job_name=TEXT, metrics_path=TEXT, static_configs=many(fields("targets", targets=many(TEXT))))
    ),
)
