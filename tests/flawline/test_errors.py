"""An error is one line, whatever its message looks like."""

from __future__ import annotations

import pytest

from flawline.errors import FlawlineError, one_line


@pytest.mark.parametrize(
    ("error", "text", "with_type"),
    [
        (ValueError("two\n  lines"), "two lines", "ValueError: two lines"),
        (ValueError(), "ValueError", "ValueError"),
        (FlawlineError("name the thing"), "name the thing", "name the thing"),
        (FlawlineError(), "FlawlineError", "FlawlineError"),
        (ValueError("x" * 5000), "x" * 300, "ValueError: " + "x" * 300),
    ],
)
def test_message_is_one_line_of_bounded_length(error: Exception, text: str, with_type: str) -> None:
    assert one_line(error) == text
    assert one_line(error, with_type=True) == with_type
