"""Render the Helm chart beside this file without Helm, as manifests for `kubectl apply -f -`.

    python deploy/kubernetes/render.py flawline --values plant.yaml | kubectl apply -n inspection -f -

Charts are Go templates. This file knows the part of the language that the chart uses, and stops at everything else, so
that it never renders in silence what Helm would render differently. It needs PyYAML and jsonschema.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema.validators import validator_for

CHART = Path(__file__).parent / "flawline"

ACTION = re.compile(r"\{\{(?P<left>- )?(?P<body>.*?)(?P<right> -)?\}\}", re.DOTALL)
TOKEN = re.compile(
    r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d+)|(?P<path>\$?[A-Za-z_]\w*(?:\.\w+)*|\$?(?:\.\w+)+|\$|\.)'
    r"|(?P<sign>:=|[=|(),]))"
)


class ChartError(Exception):
    """A template or values that cannot be rendered, in one line."""


def render(*values: Mapping[str, Any], release: str = "flawline", namespace: str = "default") -> list[dict[str, Any]]:
    """Return the chart's manifests for its defaults with each of `values` over them. Raises ChartError."""
    merged: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    for layer in values:
        merged = merge(merged, layer)
    _validate(merged)
    texts = _render_files(merged, release, namespace)
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def _render_files(merged: Mapping[str, Any], release: str, namespace: str) -> list[str]:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    templates = _Templates()
    files = sorted(path for path in (CHART / "templates").iterdir() if path.suffix in (".yaml", ".tpl"))
    bodies = {file.name: templates.parse(file.name, file.read_text()) for file in files}
    dot = {
        "Values": merged,
        "Release": {"Name": release, "Namespace": namespace, "Service": "Helm"},
        "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
    }
    return [templates.run(body, dot) for name, body in bodies.items() if name.endswith(".yaml")]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`; sections are merged, lists are replaced, and null removes a key."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _validate(values: Mapping[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    errors = sorted(validator_for(schema)(schema).iter_errors(values), key=lambda error: error.json_path)
    if errors:
        raise ChartError(f"values {errors[0].json_path.removeprefix('$.')}: {errors[0].message}")


# The tree of a template


@dataclass
class _Block:
    """An `if`, `range`, `with` or `define`, with its branches: (pipeline, nodes), an `else` having no pipeline."""

    kind: str
    branches: list[tuple[str, list[Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Action:
    text: str


class _Scope:
    """The dot and the variables of a block; a variable that is assigned changes where it was declared."""

    def __init__(self, dot: Any, parent: _Scope | None = None) -> None:
        self.dot = dot
        self._parent = parent
        self._variables: dict[str, Any] = {} if parent else {"$": dot}

    def declare(self, name: str, value: Any) -> None:
        self._variables[name] = value

    def assign(self, name: str, value: Any) -> None:
        self._holder(name)._variables[name] = value

    def get(self, name: str) -> Any:
        return self._holder(name)._variables[name]

    def _holder(self, name: str) -> _Scope:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope._variables:
                return scope
            scope = scope._parent
        raise ChartError(f"undefined variable {name}")


class _Templates:
    """All templates of a chart: those that `define` names, and the functions that they call."""

    def __init__(self) -> None:
        self._named: dict[str, list[Any]] = {}
        self._functions: dict[str, Callable[..., Any]] = {**FUNCTIONS, "include": self._include}

    def parse(self, name: str, text: str) -> list[Any]:
        """Return the nodes of a template and remember what it defines. Raises ChartError with the file's name."""
        root: list[Any] = []
        open_blocks: list[tuple[_Block | None, list[Any]]] = [(None, root)]
        for piece in _pieces(text):
            block, nodes = open_blocks[-1]
            if not isinstance(piece, _Action):
                nodes.append(piece)
                continue
            word, _, rest = piece.text.partition(" ")
            if word in ("if", "range", "with", "define"):
                inner = _Block(word, [(rest.strip(), [])])
                open_blocks.append((inner, inner.branches[0][1]))
            elif word == "else" and block:
                condition = rest.strip().removeprefix("if ")
                block.branches.append((condition, []))
                open_blocks[-1] = (block, block.branches[-1][1])
            elif word == "end" and block:
                open_blocks.pop()
                if block.kind == "define":
                    self._named[json.loads(block.branches[0][0])] = block.branches[0][1]
                else:
                    open_blocks[-1][1].append(block)
            elif word in ("else", "end", "template", "block", "break", "continue"):
                raise ChartError(f"{name}: {{{{ {piece.text} }}}} is not understood here")
            else:
                nodes.append(piece)
        if len(open_blocks) != 1:
            raise ChartError(f"{name}: a block has no end")
        return root

    def run(self, nodes: Sequence[Any], dot: Any) -> str:
        """Return the text of a template for a dot of its own."""
        return self._run(nodes, _Scope(dot))

    def _include(self, name: str, dot: Any) -> str:
        if name not in self._named:
            raise ChartError(f"no template is defined as {name}")
        return self.run(self._named[name], dot)

    def _run(self, nodes: Sequence[Any], scope: _Scope) -> str:
        return "".join(
            node if isinstance(node, str)
            else self._action(node.text, scope) if isinstance(node, _Action)
            else self._block(node, scope)
            for node in nodes
        )  # fmt: skip

    def _action(self, text: str, scope: _Scope) -> str:
        tokens = _tokens(text)
        if len(tokens) > 2 and tokens[1][1] in (":=", "="):
            value = self._value(tokens[2:], scope)
            (scope.declare if tokens[1][1] == ":=" else scope.assign)(tokens[0][1], value)
            return ""
        return _text(self._value(tokens, scope))

    def _block(self, block: _Block, scope: _Scope) -> str:
        for condition, nodes in block.branches:
            if block.kind == "range" and condition:
                items = list(self._items(condition, scope))
                if items:
                    return "".join(self._run(nodes, item) for item in items)
                continue
            inner = _Scope(scope.dot, scope)
            value = self._value(_tokens(condition), scope) if condition else None
            if not condition or value not in EMPTY:
                if block.kind == "with" and condition:
                    inner.dot = value
                return self._run(nodes, inner)
        return ""

    def _items(self, header: str, scope: _Scope) -> Iterator[_Scope]:
        """Yield a scope for each item of a range, maps in the order of their keys."""
        names, assigned, pipeline = header.rpartition(":=")
        variables = [name.strip() for name in names.split(",")] if assigned else []
        values = self._value(_tokens(pipeline), scope)
        pairs = sorted(values.items()) if isinstance(values, Mapping) else enumerate(values or ())
        for key, value in pairs:
            inner = _Scope(value, scope)
            for name, item in zip(variables, (key, value) if len(variables) == 2 else (value,), strict=False):
                inner.declare(name, item)
            yield inner

    # Pipelines

    def _value(self, tokens: Sequence[tuple[str, str]], scope: _Scope) -> Any:
        """Return the value of a pipeline: each command gets the value of the one before as its last argument."""
        value, has_value, start, depth = None, False, 0, 0
        for position in range(len(tokens) + 1):
            sign = tokens[position][1] if position < len(tokens) and tokens[position][0] == "sign" else ""
            depth += (sign == "(") - (sign == ")")
            if position == len(tokens) or (sign == "|" and depth == 0):
                value = self._command(tokens[start:position], scope, [value] if has_value else [])
                has_value, start = True, position + 1
        return value

    def _command(self, tokens: Sequence[tuple[str, str]], scope: _Scope, piped: list[Any]) -> Any:
        if not tokens:
            raise ChartError("a pipeline has an empty part")
        operands, position = [], 0
        name = tokens[0][1] if tokens[0][0] == "path" and tokens[0][1] in self._functions else None
        position = 1 if name else 0
        while position < len(tokens):
            if tokens[position] == ("sign", "("):
                end = _closing(tokens, position)
                operands.append(self._value(tokens[position + 1 : end], scope))
                position = end + 1
            else:
                operands.append(self._operand(tokens[position], scope))
                position += 1
        if name:
            return self._functions[name](*operands, *piped)
        if len(operands) != 1 or piped:
            raise ChartError(f"{tokens[0][1]} is no function that this renderer knows")
        return operands[0]

    def _operand(self, token: tuple[str, str], scope: _Scope) -> Any:
        kind, text = token
        if kind == "string":
            return json.loads(text)
        if kind == "number":
            return int(text)
        if kind != "path":
            raise ChartError(f"{text} is not understood here")
        if text in ("true", "false", "nil"):
            return {"true": True, "false": False, "nil": None}[text]
        first, *keys = text.split(".")
        if first and not first.startswith("$"):
            raise ChartError(f"{text} is no function that this renderer knows")
        value = scope.get(first) if first else scope.dot
        for key in filter(None, keys):
            if value is None:
                raise ChartError(f"{text}: nothing has a key {key}")
            if not isinstance(value, Mapping):
                raise ChartError(f"{text}: {key} is asked of {type(value).__name__}")
            value = value.get(key)
        return value


def _pieces(text: str) -> Iterator[str | _Action]:
    """Yield text and actions, with white space removed where an action's dash asks for it; comments are left out."""
    position, trim = 0, False
    for match in ACTION.finditer(text):
        plain = text[position : match.start()]
        plain = plain.lstrip() if trim else plain
        yield plain.rstrip() if match["left"] else plain
        body = match["body"].strip()
        if not (body.startswith("/*") and body.endswith("*/")):
            yield _Action(body)
        position, trim = match.end(), bool(match["right"])
    yield text[position:].lstrip() if trim else text[position:]


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = TOKEN.match(text, position)
        if not match:
            raise ChartError(f"{{{{ {text} }}}} is not understood at {text[position:]!r}")
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        position = match.end()
    return tokens


def _closing(tokens: Sequence[tuple[str, str]], start: int) -> int:
    depth = 0
    for position in range(start, len(tokens)):
        depth += {("sign", "("): 1, ("sign", ")"): -1}.get(tokens[position], 0)
        if depth == 0:
            return position
    raise ChartError("a bracket is not closed")


# Functions: those of Go's templates, of Sprig and of Helm that the chart uses

EMPTY: list[Any] = [None, False, 0, "", [], {}]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, (dict, list, float)):
        raise ChartError(f"{value!r} is printed as it is: use toYaml, toJson or quote")
    return str(value)


def _json(value: Any) -> str:
    """Return JSON as Go writes it: sorted keys, no spaces, whole numbers without a fraction, three signs escaped."""
    text = json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=False, allow_unicode=True, width=10_000)
    return text.rstrip("\n").removesuffix("\n...")


def _fail(message: str) -> Any:
    raise ChartError(message)


def _required(message: str, value: Any) -> Any:
    return _fail(message) if value in (None, "") else value


def _indent(width: int, text: str) -> str:
    return "\n".join(" " * width + line for line in text.split("\n"))


def _kind_is(kind: str, value: Any) -> bool:
    kinds = {"map": dict, "slice": list, "string": str, "bool": bool}
    if kind not in kinds:
        raise ChartError(f"kindIs {kind} is not known to this renderer")
    return isinstance(value, kinds[kind])


def _first_empty(values: Sequence[Any]) -> Any:
    return next((value for value in values if value in EMPTY), values[-1])


def _first_full(values: Sequence[Any]) -> Any:
    return next((value for value in values if value not in EMPTY), values[-1])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda *values: _first_empty(values),
    "append": lambda items, item: [*items, item],
    "base": lambda path: path.rpartition("/")[2],
    "contains": lambda part, text: part in text,
    "default": lambda other, value: other if value in EMPTY else value,
    "dict": lambda *pairs: dict(zip(pairs[::2], pairs[1::2], strict=True)),
    "eq": lambda first, *others: first in others,
    "fail": _fail,
    "gt": lambda first, second: first > second,
    "has": lambda item, items: item in items,
    "hasKey": lambda mapping, key: key in mapping,
    "int": int,
    "kindIs": _kind_is,
    "list": lambda *items: list(items),
    "lower": str.lower,
    "mul": lambda *numbers: math.prod(map(int, numbers)),
    "nindent": lambda width, text: "\n" + _indent(width, text),
    "not": lambda value: value in EMPTY,
    "or": lambda *values: _first_full(values),
    "printf": lambda form, *values: form % values,
    "quote": lambda value: json.dumps(_text(value), ensure_ascii=False),
    "replace": lambda old, new, text: text.replace(old, new),
    "required": _required,
    "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "ternary": lambda yes, no, condition: yes if condition else no,
    "toJson": _json,
    "toYaml": _yaml,
    "trunc": lambda length, text: text[:length],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the manifests; exit code 2 for values that the chart refuses."""
    parser = argparse.ArgumentParser(description="Render the Flawline chart as plain manifests.")
    parser.add_argument("release", help="name of the release, which the names of all objects begin with")
    parser.add_argument("--namespace", default="default", help="namespace of the release (default: default)")
    parser.add_argument("--values", type=Path, action="append", default=[], help="YAML file; may be repeated")
    options = parser.parse_args(arguments)
    try:
        layers = [yaml.safe_load(file.read_text()) or {} for file in options.values]
        documents = render(*layers, release=options.release, namespace=options.namespace)
    except (ChartError, OSError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(yaml.safe_dump_all(documents, sort_keys=False, width=120), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
