"""The page about the embedded broker agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import embedded_broker
from embedded_broker import UNSUPPORTED

PAGE = Path(__file__).parents[2] / "docs" / "embedded-broker.md"


def rows_of(section: str) -> list[list[str]]:
    """Return the rows of the table in a section of the page, without its head."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


def test_the_page_lists_exactly_the_unsupported_features() -> None:
    assert dict(rows_of("What only Apache Kafka has")) == dict(UNSUPPORTED)


def test_the_page_names_every_module() -> None:
    named = re.findall(r"`(\w+)`", " ".join(names for names, _ in rows_of("How it works")))
    modules = {file.stem for file in Path(str(embedded_broker.__file__)).parent.glob("*.py")}
    assert sorted(named) == sorted(modules - {"__init__", "__main__", "unsupported"})
