"""The rules of the house, read from the code: which room may import which, no circles, and names that are nouns."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "flawline": set(),
    "producers": {"flawline"},
    "ledger": {"flawline"},
    "embedded_broker": {"flawline"},
    "scorer": {"flawline"},
    "workers": {"flawline", "scorer"},
    "discovery": {"flawline", "scorer", "ledger"},
    "station": {"flawline", "producers", "ledger", "embedded_broker", "scorer", "workers", "discovery"},
    "benchmarks": {"flawline", "producers", "ledger", "embedded_broker", "scorer", "workers", "discovery", "station"},
}
"""For each room, the rooms that it may import. Imports only ever go down, so the lists hold no circle."""

SCORER_MAY_IMPORT = (
    "flawline",
    "flawline.errors",
    "flawline.file_lock",
    "flawline.imaging",
    "flawline.messages",
    "flawline.settings",
)
"""What the scorer may use of the contract: it knows no Kafka client, no object store and no metrics."""

NOT_IN_SCORER = {"kafka", "ray", "sqlalchemy", "psycopg", "sqlite3", "rich", "typer"}

EMPTY_NAMES = {
    "one", "each", "own", "found", "given", "said", "whoever", "mend", "mends", "mended", "fate", "fates", "its",
    "his", "yours", "this", "that", "these", "those", "such", "got", "whom", "whose", "whichever", "whatever",
    "someone", "somebody", "something", "anything", "everyone", "thing", "stuff", "foo", "baz", "dummy", "misc",
    "tmp", "temp", "obj", "elem", "arr", "lst", "var", "val", "ret", "res", "util", "utils", "helper",
}  # fmt: skip
"""Words that do not say what a variable, argument, attribute, function or class holds or does."""


@cache
def modules() -> dict[str, Path]:
    """Map the dotted name of every module of every room to its file."""
    files = (file for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@cache
def imports(module: str) -> frozenset[str]:
    """Return the dotted names that a module imports, at the top, inside functions and for type checking alike."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute in this house"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in modules() else str(node.module))
    return frozenset(names)


def assigned_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of every variable, argument, attribute, function and class that a source text names."""
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler | ast.MatchAs):
            name = node.name
        if name is not None and hasattr(node, "lineno"):
            yield node.lineno, name


def empty_names(tree: ast.AST) -> list[tuple[int, str]]:
    """Return line and name where a name is one of EMPTY_NAMES, whatever its case and its underscores."""
    return [(line, name) for line, name in assigned_names(tree) if name.strip("_").lower() in EMPTY_NAMES]


def is_inside(name: str, package: str) -> bool:
    """Tell whether a dotted name is a package or lies in it."""
    return name == package or name.startswith(package + ".")


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the circles of a graph as lists of nodes (strongly connected components of more than one; Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in graph[node]:
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                components.append(sorted(component))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return components


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    upward = [
        f"{module} imports {name}"
        for module in modules()
        if is_inside(module, room)
        for name in imports(module)
        if (target := name.split(".")[0]) in MAY_IMPORT and target != room and target not in MAY_IMPORT[room]
    ]
    assert not upward


def test_no_room_imports_the_tests() -> None:
    """The benchmarks stand on the roof and may use the tests' brokers and doubles."""
    rooms = [module for module in modules() if not is_inside(module, "benchmarks")]
    assert not [module for module in rooms for name in imports(module) if is_inside(name, "tests")]


def test_the_scorer_is_pure() -> None:
    impure = []
    for module in modules():
        if is_inside(module, "scorer"):
            for name in imports(module):
                foreign = name.split(".")[0] in NOT_IN_SCORER
                beyond = is_inside(name, "flawline") and not any(
                    name == allowed or (allowed != "flawline" and is_inside(name, allowed))
                    for allowed in SCORER_MAY_IMPORT
                )
                if foreign or beyond:
                    impure.append(f"{module} imports {name}")
    assert not impure


def test_every_imported_module_exists() -> None:
    names = {name for module in modules() for name in imports(module) if name.split(".")[0] in MAY_IMPORT}
    assert names - modules().keys() == set()


def test_no_import_runs_in_a_circle() -> None:
    graph = {module: {name for name in imports(module) if name in modules()} - {module} for module in modules()}
    assert circles(graph) == []


def test_the_contract_stays_small() -> None:
    lines = sum(
        len(file.read_text(encoding="utf-8").splitlines())
        for module, file in modules().items()
        if is_inside(module, "flawline") and not is_inside(module, "flawline.settings")  # those are descriptions
    )
    assert lines < 4_650, "flawline/ is the contract only: what does the new code do here?"


@pytest.mark.parametrize("folder", [*sorted(MAY_IMPORT), "tests", "deploy"])
def test_names_are_nouns_of_the_field(folder: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, name in empty_names(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not wrong, "say what it holds: frame, region, bank, score, rows, message, ..."


def test_an_empty_name_is_seen_wherever_it_is_given() -> None:
    source = """
for one in parts:
    self.found = lambda given: [frame for _each in one]
def own(frame, *said): ...
try: ...
except OSError as fate: ...
frame.found(one, given=own)
"""
    assert sorted(name for _, name in empty_names(ast.parse(source))) == [
        "_each", "fate", "found", "given", "one", "own", "said",
    ]  # fmt: skip


def test_the_glossary_has_at_most_thirty_terms() -> None:
    rows = [row for row in (ROOT / "docs/glossary.md").read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    assert 10 < len(rows) - 1 <= 30, "a reader learns no more: put a rare word where it is used"


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []
