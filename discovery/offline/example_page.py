"""A page of examples of each class for people: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

EXAMPLES = 24


@dataclass(frozen=True)
class Example:
    """A crop (JPEG) and its title."""

    crop: bytes
    title: str

    @property
    def base64(self) -> str:
        """The crop as text."""
        return base64.b64encode(self.crop).decode()


def page(classes: Mapping[str, Sequence[Example]]) -> str:
    """Return the HTML of a page: up to 24 examples of each class, evenly over its members."""
    templates = Environment(
        loader=PackageLoader("discovery", "offline"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sections = [
        {"name": name, "regions": len(examples), "examples": _spread(examples)}
        for name, examples in sorted(classes.items())
    ]
    return templates.get_template("example_page.html").render(sections=sections)


def _spread(examples: Sequence[Example]) -> Sequence[Example]:
    step = max(1, len(examples) // EXAMPLES)
    return examples[::step][:EXAMPLES]
