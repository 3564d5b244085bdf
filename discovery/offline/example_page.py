"""A page of examples of each class, to be looked at: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

EXAMPLES = 24

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #fff; color: #1c1c1c }
h2 { margin: 1.6rem 0 .4rem } small { color: #666; font-weight: normal }
section div { display: flex; flex-wrap: wrap; gap: 6px }
img { width: 96px; height: 96px; object-fit: contain; background: #eee }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #eee } img { background: #2a2a2a } }
"""


@dataclass(frozen=True)
class Example:
    """A crop (JPEG) and what it is called."""

    crop: bytes
    title: str


def page(classes: Mapping[str, Sequence[Example]]) -> str:
    """Return the HTML of a sheet: up to 24 examples of each class, evenly over its members."""
    parts = [_section(name, examples) for name, examples in sorted(classes.items())]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Defect classes</title><style>{_STYLE}</style>'
    return f"{head}<h1>Defect classes</h1>{''.join(parts)}</html>\n"


def _section(name: str, examples: Sequence[Example]) -> str:
    step = max(1, len(examples) // EXAMPLES)
    images = "".join(
        f'<img src="data:image/jpeg;base64,{base64.b64encode(example.crop).decode()}" '
        f'alt="{escape(example.title)}" title="{escape(example.title)}">'
        for example in examples[::step][:EXAMPLES]
    )
    return f"<section><h2>{escape(name)} <small>{len(examples)} regions</small></h2><div>{images}</div></section>"
