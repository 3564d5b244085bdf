"""Renders the Helm chart with `deploy/kubernetes/render.py`, and knows what Kubernetes and the operators accept."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
CHART = FOLDER / "flawline"
EXAMPLES = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((FOLDER / "examples").glob("*.yaml"))}
VARIANTS: dict[str, dict[str, Any]] = {"defaults": {}} | EXAMPLES

VERSIONS = ("1.27", "1.36")
"""The oldest Kubernetes that the chart allows, and a new one."""

SCHEMAS = "https://kubernetes.io/api/"
"""What the identifiers of Kubernetes' schemas begin with."""

Manifest = dict[str, Any]


def _load_renderer() -> Any:
    spec = importlib.util.spec_from_file_location("flawline_chart_renderer", FOLDER / "render.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


renderer = _load_renderer()


@dataclass(frozen=True)
class Pod:
    """A pod template: the manifest that holds it and the template itself."""

    owner: str
    template: Manifest

    @property
    def labels(self) -> dict[str, str]:
        return self.template["metadata"]["labels"]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def spec(self) -> Manifest:
        return self.template["spec"]

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def volume(self, name: str) -> Manifest | None:
        return next((volume for volume in self.spec["volumes"] if volume["name"] == name), None)


class Rendered:
    """The manifests of one rendering."""

    def __init__(self, *values: Mapping[str, Any]) -> None:
        self.manifests: list[Manifest] = renderer.render(*values)

    def of_kind(self, kind: str) -> dict[str, Manifest]:
        return {item["metadata"]["name"]: item for item in self.manifests if item["kind"] == kind}

    def pods(self) -> dict[str, Pod]:
        """Return every pod template by the name of what makes it; those of a Ray cluster have their group behind it."""
        return {pod.owner: pod for item in self.manifests for pod in _pods(item)}

    @property
    def line_toml(self) -> str:
        return self.of_kind("ConfigMap")["flawline-line"]["data"]["line.toml"]


def _pods(manifest: Manifest) -> Iterator[Pod]:
    name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
    if manifest["kind"] == "RayCluster":
        yield Pod(f"{name}/head", spec["headGroupSpec"]["template"])
        for group in spec["workerGroupSpecs"]:
            yield Pod(f"{name}/{group['groupName']}", group["template"])
    elif "template" in spec:
        yield Pod(name, spec["template"])


def variables(container: Manifest) -> dict[str, str]:
    """Return the variables of a container that have a value of their own."""
    return {item["name"]: item["value"] for item in container["env"] if "value" in item}


def validator(manifest: Manifest, version: str) -> Validator:
    """Return the strict schema of a manifest: Kubernetes' own, or the structure that an operator documents."""
    if manifest["kind"] in CUSTOM:
        return _validator(json.dumps(CUSTOM[manifest["kind"]]), version)
    group = manifest["apiVersion"].replace("/", "-").split(".")[0]
    version_of_group = manifest["apiVersion"].rpartition("/")[2]
    name = group if "-" in group or "/" not in manifest["apiVersion"] else f"{group}-{version_of_group}"
    return _validator((_schemas(version) / f"{manifest['kind'].lower()}-{name}.json").read_text(), version)


@functools.cache
def _validator(text: str, version: str) -> Validator:
    schema = json.loads(text)
    return validator_for(schema)(schema, registry=_definitions(version))


@functools.cache
def _definitions(version: str) -> Registry:
    content = json.loads((_schemas(version) / "_definitions.json").read_text())
    return Registry().with_resource(f"{SCHEMAS}_definitions.json", Resource.from_contents(content))


def _schemas(version: str) -> Path:
    """Return the folder of Kubernetes' schemas, as the package kubernetes-validate ships them (Apache-2.0)."""
    spec = importlib.util.find_spec("kubernetes_validate")
    assert spec and spec.origin, "install the test packages: pip install -e '.[test]'"
    return Path(spec.origin).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"


# Custom resources: no package ships the schemas of the operators, so this is what their documentation says, strict
# about names. Pod templates inside are Kubernetes' own.

_POD = {"$ref": f"{SCHEMAS}_definitions.json#/$defs/io.k8s.api.core.v1.PodTemplateSpec"}
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(required),
        "properties": {**required, **(optional or {})},
    }


def _resource(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _object({"name": _TEXT, "labels": _TEXTS}, {"annotations": _TEXTS})
    required = {"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_object(required)}


_COUNT = {"type": "integer", "minimum": 0}
_NODES = {"groupName": _TEXT, "replicas": _COUNT, "minReplicas": _COUNT, "maxReplicas": _COUNT}
_BEHAVIOR = _object(
    {"stabilizationWindowSeconds": _COUNT},
    {
        "policies": {
            "type": "array",
            "items": _object({"type": {"enum": ["Pods", "Percent"]}, "value": _COUNT, "periodSeconds": _COUNT}),
        }
    },
)
CUSTOM = {
    "RayCluster": _resource(
        "ray.io/v1",
        "RayCluster",
        _object(
            {
                "rayVersion": _TEXT,
                "headGroupSpec": _object({"rayStartParams": _TEXTS, "template": _POD}),
                "workerGroupSpecs": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object({**_NODES, "rayStartParams": _TEXTS, "template": _POD}),
                },
            }
        ),
    ),
    "ScaledObject": _resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _object(
            {
                "scaleTargetRef": _object({"apiVersion": _TEXT, "kind": _TEXT, "name": _TEXT}),
                "minReplicaCount": _COUNT,
                "maxReplicaCount": _COUNT,
                "pollingInterval": _COUNT,
                "advanced": _object(
                    {
                        "horizontalPodAutoscalerConfig": _object(
                            {"behavior": _object({"scaleUp": _BEHAVIOR, "scaleDown": _BEHAVIOR})}
                        )
                    }
                ),
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object(
                        {
                            "type": {"const": "kafka"},
                            "metadata": _object(
                                {
                                    "bootstrapServers": _TEXT,
                                    "consumerGroup": _TEXT,
                                    "topic": _TEXT,
                                    "lagThreshold": {"type": "string", "pattern": "^[1-9][0-9]*$"},
                                    "offsetResetPolicy": {"enum": ["latest", "earliest"]},
                                    "tls": {"enum": ["enable", "disable"]},
                                },
                                {"sasl": {"enum": ["plaintext", "scram_sha256", "scram_sha512"]}},
                            ),
                        },
                        {"authenticationRef": _object({"name": _TEXT})},
                    ),
                },
            }
        ),
    ),
    "TriggerAuthentication": _resource(
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
        _object(
            {
                "secretTargetRef": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object(
                        {
                            "parameter": {"enum": ["username", "password", "ca", "cert", "key"]},
                            "name": _TEXT,
                            "key": _TEXT,
                        }
                    ),
                }
            }
        ),
    ),
    "PodMonitor": _resource(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        _object(
            {
                "selector": _object({"matchLabels": _TEXTS}),
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": _object(
                        {
                            "port": _TEXT,
                            "path": _TEXT,
                            "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                            "relabelings": {
                                "type": "array",
                                "items": _object(
                                    {"targetLabel": _TEXT},
                                    {"sourceLabels": {"type": "array", "items": _TEXT}, "replacement": _TEXT},
                                ),
                            },
                        }
                    ),
                },
            }
        ),
    ),
}
