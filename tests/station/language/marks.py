"""Finds what pages and scripts show and nobody has marked for the catalogues."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from jinja2 import Environment, nodes

SHOWN_ATTRIBUTES = ("aria-label", "title", "alt", "placeholder", "label")
NOT_SHOWN = ("code", "kbd", "script", "style")
"""Elements whose text is the same in every language: commands, keys."""
WORD = re.compile(r"[^\W\d_]{2,}")
SAME_EVERYWHERE = {"Flawline", "UTC", "px", "PDF"}
"""Names and units."""
MARKS = {"_", "gettext", "ngettext", "pgettext", "npgettext"}
MARK = "\x00{}\x00"
INSIDE_MARKS = re.compile("\x00(\\d+)\x00")
NAMES_OF_FIELDS = {"choice": (0,), "step": (0,), "person": (0,), "replace": (0,)}
"""Macros whose arguments at these places are shown to nobody: the name of a field, the kind of a link or form."""
HIDDEN_KEYWORDS = {"mark"}
BLOCKS_OF_TAGS = ("at", "refresh")
"""Blocks of the base page that stand inside a tag."""


class Visible(HTMLParser):
    """Collects what a page shows: texts, and the attributes that are read or seen."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.texts += [value for name, value in attrs if name in SHOWN_ATTRIBUTES and value]

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not set(self._open) & set(NOT_SHOWN):
            self.texts.append(data)


def shown(html: str) -> list[str]:
    """Return what a page shows."""
    parser = Visible()
    parser.feed(html)
    parser.close()
    return parser.texts


def words(text: str) -> list[str]:
    """Return the words of a text that a language has."""
    return [word for word in WORD.findall(text) if word not in SAME_EVERYWHERE]


def unmarked(source: str) -> list[str]:
    """Return the texts of a template that are shown and not marked, also those inside expressions."""
    environment = Environment(extensions=["jinja2.ext.i18n"], trim_blocks=True, lstrip_blocks=True, autoescape=True)
    expressions: list[nodes.Node] = []
    html = "".join(_parts(environment.parse(source), expressions))
    problems = []
    for text in shown(html):
        problems += words(INSIDE_MARKS.sub(" ", text))
        for number in INSIDE_MARKS.findall(text):
            for constant in _constants(expressions[int(number)]):
                problems += words(constant)
    return problems


def _parts(node: nodes.Node, expressions: list[nodes.Node]) -> Iterator[str]:
    """Yield the HTML of a template, every branch of it, with a number in place of each expression."""
    if isinstance(node, nodes.TemplateData):
        yield node.data
    elif isinstance(node, nodes.Expr):
        expressions.append(node)
        yield MARK.format(len(expressions) - 1)
    elif isinstance(node, nodes.Block) and node.name in BLOCKS_OF_TAGS:
        return
    elif isinstance(node, nodes.Assign):
        # What is set here is shown there: it is judged as if it were shown at once.
        yield from _parts(node.node, expressions) if _is_text(node.target) else ()
    else:
        inner = getattr(node, "nodes", None) or getattr(node, "body", [])
        for child in [*inner, *getattr(node, "elif_", []), *getattr(node, "else_", [])]:
            yield from _parts(child, expressions)
            if isinstance(child, nodes.Macro):
                yield " "


def _is_text(target: nodes.Node) -> bool:
    return isinstance(target, nodes.Name) and target.name in ("title", "words")


def _constants(node: nodes.Node) -> Iterator[str]:
    """Yield the strings that an expression may show; those that are marked, compared or keys are left out."""
    if isinstance(node, nodes.Const):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, nodes.CondExpr):
        yield from _constants(node.expr1)
        if node.expr2 is not None:
            yield from _constants(node.expr2)
    elif isinstance(node, nodes.Filter):
        if node.node is not None and node.name not in ("word", "known", "urlencode"):
            yield from _constants(node.node)
    elif isinstance(node, nodes.Call):
        name = node.node.attr if isinstance(node.node, nodes.Getattr) else getattr(node.node, "name", "")
        if name not in MARKS:
            hidden = NAMES_OF_FIELDS.get(name, ())
            for place, argument in enumerate(node.args):
                if place not in hidden:
                    yield from _constants(argument)
            for keyword in node.kwargs:
                if keyword.key not in HIDDEN_KEYWORDS:
                    yield from _constants(keyword.value)
    elif isinstance(
        node, (nodes.Or, nodes.And, nodes.Add, nodes.Concat, nodes.Tuple, nodes.List, nodes.MarkSafeIfAutoescape)
    ):
        for child in node.iter_child_nodes():
            yield from _constants(child)


def hidden_from_the_catalogue(source: str) -> list[str]:
    """Return the marked texts of a Python file that no tool finds: those inside of an f-string."""
    return [
        ast.unparse(node)
        for string in ast.walk(ast.parse(source))
        if isinstance(string, ast.JoinedStr)
        for node in ast.walk(string)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in MARKS | {"N_"}
    ]


SENTENCE = re.compile(r"[A-Za-z]{2,},? [a-z]{2,}")
"""Two words in a row: no selector, no attribute and no key of these scripts has them, but those below."""
NO_TEXTS = {
    "xMidYMid meet", "input, select", "input, select, textarea", "select, [type=checkbox]", ".view svg",
    "var(--back, var(--card))", "kind of frame",
}  # fmt: skip
ASSIGNED = re.compile(r"\b(textContent|title|placeholder) = $")
MARKED = re.compile(r"\b(?:_|ngettext)\($|\bngettext\((?:\"[^\"]*\"), $")
TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/|(?P<text>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`)", re.DOTALL
)


def unmarked_of_script(file: Path) -> list[str]:
    """Return the strings of a script that look like texts for people and are not marked."""
    source, problems = file.read_text("utf-8"), []
    for token in TOKEN.finditer(source):
        if token["text"] is None:
            continue
        text, before = (
            re.sub(r"\$\{[^}]*\}", "", token["text"][1:-1]),
            source[max(0, token.start() - 200) : token.start()],
        )
        is_shown = SENTENCE.search(text) or (ASSIGNED.search(before) and words(text))
        if is_shown and not MARKED.search(before) and text not in NO_TEXTS:
            line = source.count("\n", 0, token.start()) + 1
            problems.append(f"{file.name}:{line}: {text}")
    return problems
