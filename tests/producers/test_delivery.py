"""An outage costs no frame: a broker or an object store that is away means another try."""

from __future__ import annotations

import pytest
from kafka import errors

from flawline.object_store import StoreAway
from producers.delivery import Fate, NotConnected, fate


@pytest.mark.parametrize(
    "error", [NotConnected(), errors.KafkaTimeoutError(), StoreAway("object store bucket/frames is away")]
)
def test_outage_is_tried_again_with_the_same_client_and_never_counts_as_a_refusal(error: Exception) -> None:
    assert fate(error, "frames") == Fate(drop=None, breaks=False, counts=False)
