"""Whatever damage does to a message or an image, a reader takes it or refuses it in one line.

The short form of `python -m benchmarks.fuzz`.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline import imaging, messages
from flawline.imaging import ImageError
from flawline.messages import DeadLetterReason, SchemaError
from flawline.settings.tree import FrameSettings
from tests.support.example_messages import example
from tests.support.mutations import OF_IMAGES, OF_MESSAGES, images, mutated

seeds = st.integers(0, 1 << 64)


@pytest.mark.parametrize("cls", messages.Message.__args__)
def test_damaged_message_is_a_message_or_a_refusal_of_one_line(cls: Any) -> None:
    @given(seeds)
    @settings(max_examples=150)
    def check(seed: int) -> None:
        data = mutated(random.Random(seed), messages.encode(example(cls)), OF_MESSAGES)
        try:
            message = messages.decode(cls, data)
        except SchemaError as error:
            assert error.reason in (DeadLetterReason.UNDECODABLE, DeadLetterReason.WRONG_SCHEMA)
            assert len(str(error)) < 1_000 and "\n" not in str(error)
            return
        assert messages.decode(cls, messages.encode(message)) == message or "nan" in repr(message)

    check()


@given(seeds, st.integers(0, len(images()) - 1))
@settings(max_examples=200)
def test_damaged_image_is_pixels_of_its_size_or_a_refusal_of_one_line(seed: int, number: int) -> None:
    data = mutated(random.Random(seed), images()[number], OF_IMAGES)
    try:
        plan = imaging.plan(data, None, memory_limit_bytes=FrameSettings().decoded_limit_bytes)
        pixels = imaging.pixels(plan)
    except ImageError as error:
        assert len(str(error)) < 1_000 and "\n" not in str(error)
        return
    assert pixels.shape == (plan.header.height, plan.header.width, 3) and pixels.dtype == np.uint8
    assert pixels.nbytes <= plan.memory_bytes
