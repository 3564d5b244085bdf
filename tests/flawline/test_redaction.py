"""Credentials in URLs are hidden."""

from __future__ import annotations

import pytest

from flawline.redaction import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://admin:p%40ss@10.0.0.9:554/1", "rtsp://***@10.0.0.9:554/1"),
        ("rtsp://admin:p@ss@10.0.0.9/1", "rtsp://***@10.0.0.9/1"),
        ("rtsp://10.0.0.9/1?user=a&password=b&channel=2", "rtsp://10.0.0.9/1?user=***&password=***&channel=2"),
        ("could not open rtsp://a:b@c/d, nor http://e:f@g", "could not open rtsp://***@c/d, nor http://***@g"),
        ("rtsp://10.0.0.9/live", "rtsp://10.0.0.9/live"),
    ],
)
def test_credentials_are_redacted_wherever_a_url_holds_them(text: str, expected: str) -> None:
    assert redact(text) == expected
