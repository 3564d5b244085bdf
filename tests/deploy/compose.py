"""Reads docker-compose.yml as compose does, merge keys and variables included. There is no Docker engine to ask."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
GPU_FILE = ROOT / "deploy" / "compose.gpu.yml"
EXAMPLE = ROOT / ".env.example"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


class Refused(Exception):
    """What compose says instead of starting, when a required variable is unset or empty."""


def validator() -> Validator:
    """Return the JSON schema of the compose specification, as the package check-jsonschema ships it (Apache-2.0)."""
    text = (resources.files("check_jsonschema.builtin_schemas") / "vendor/compose-spec.json").read_text()
    schema = json.loads(text)
    return validator_for(schema)(schema)


def example_variables() -> dict[str, str]:
    """Return the variables that .env.example asks for."""
    return dict(line.split("=", 1) for line in EXAMPLE.read_text().splitlines() if re.match(r"[A-Z_]+=", line))


def load(path: Path = FILE, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the file's content, with the variables of an `environment` put in. Raises Refused where compose would."""
    content = yaml.safe_load(path.read_text())
    return content if environment is None else _interpolate(content, environment)


def _interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(inner, environment) for key, inner in value.items()}
    if isinstance(value, list):
        return [_interpolate(inner, environment) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _replacement(match, environment), value)
    return value


def _replacement(match: re.Match[str], environment: Mapping[str, str]) -> str:
    value = environment.get(match["name"])
    if value:
        return value
    if match["kind"] == "-":
        return match["rest"]
    raise Refused(f"required variable {match['name']} is missing a value: {match['rest']}")
