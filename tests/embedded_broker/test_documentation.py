"""The page about the embedded broker says of it what the code says."""

from __future__ import annotations

from pathlib import Path

from embedded_broker import UNSUPPORTED

PAGE = Path(__file__).parents[2] / "docs" / "embedded-broker.md"


def test_the_page_lists_exactly_what_is_unsupported() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = {feature: meaning for feature, meaning in rows if feature != "feature"}
    assert listed == dict(UNSUPPORTED)
