"""A dead letter can be made of any record that a broker can hold, and is never larger than its topic takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline import messages
from flawline.messages import DeadLetter, DeadLetterReason
from workers.dead_letters import HEADERS_BYTES, KEY_BYTES, dead_letter

LIMIT_BYTES = 200_000


def letter_of(record: Any, error: str = "why") -> tuple[DeadLetter, int]:
    """Return the dead letter of a record as a reader sees it, and the bytes that the broker gets for it."""
    sent = dead_letter(record, DeadLetterReason.CHECKSUM, error, 5, topic="dead", limit_bytes=LIMIT_BYTES).record
    size_bytes = len(sent.value) + len(sent.key or b"") + sum(len(name) + len(value) for name, value in sent.headers)
    return messages.decode(DeadLetter, sent.value), size_bytes


def record(**fields: Any) -> Any:
    return SimpleNamespace(
        **{"topic": "frames", "partition": 0, "offset": 7, "key": b"cam", "value": b"v", "headers": []} | fields
    )


any_text = st.text(st.characters(), max_size=40) | st.just("x" * 100_000)
any_bytes = st.none() | st.binary(max_size=40) | st.just(b"x" * 300_000)


@given(any_bytes, any_bytes, st.lists(st.tuples(any_text, any_bytes), max_size=6), any_text)
@settings(deadline=None)
def test_any_key_value_headers_and_error_become_a_letter_that_fits(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], error: str
) -> None:
    letter, size_bytes = letter_of(record(key=key, value=value, headers=headers), error)
    assert size_bytes < LIMIT_BYTES
    assert (letter.reason, letter.offset) == (DeadLetterReason.CHECKSUM, 7)


def test_what_fits_is_kept_as_it_is_and_the_error_says_nothing_more() -> None:
    headers = [("schema", b"frame/1"), ("frame-id", b"cam:1:2"), ("empty", None)]
    letter, _ = letter_of(record(headers=headers))
    assert (letter.key, letter.value, letter.error) == (b"cam", b"v", "why")
    assert letter.headers == (("schema", b"frame/1"), ("frame-id", b"cam:1:2"), ("empty", b""))
    assert letter.frame_id == "cam:1:2"


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"value": b"v" * 300_000}, "of 300000 bytes are kept"),
        ({"key": b"k" * 5_000}, f"only the first {KEY_BYTES} of 5000 bytes of the key are kept"),
        ({"headers": [("a", b"x" * HEADERS_BYTES), ("b", b"")]}, "2 headers are left out"),
        ({"headers": [("a\nb", b"x"), ("b", b"")]}, "1 headers are left out"),
        ({"headers": [("n" * 257, b"x")]}, "1 headers are left out"),
    ],
)
def test_what_is_cut_or_left_out_is_named(change: dict[str, Any], remark: str) -> None:
    assert remark in letter_of(record(**change))[0].error
