"""An outage costs no frame: a broker or an object store that is away means another try."""

from __future__ import annotations

import pytest
from kafka import errors

from flawline.messages import DropReason
from flawline.object_store import StoreAway
from producers.delivery import REFUSAL_LIMIT, Drop, Failure, NotConnected, Retry, classify, decide


@pytest.mark.parametrize(
    "error", [NotConnected(), errors.KafkaTimeoutError(), StoreAway("object store bucket/frames is away")]
)
def test_outage_is_tried_again_with_the_same_client_and_never_counts_as_a_refusal(error: Exception) -> None:
    assert classify(error, "frames") == Failure(drop=None, breaks=False, counts=False)


@pytest.mark.parametrize(
    ("failure", "is_first_report", "refusals", "decision"),
    [
        # A broker that is away never costs a frame, however often it is asked.
        (Failure(breaks=False, counts=False), True, 0, Retry(0)),
        (Failure(breaks=False, counts=False), True, REFUSAL_LIMIT - 1, Retry(REFUSAL_LIMIT - 1)),
        # The first frame that reports an error of the client is to blame, those that fail along with it are not.
        (Failure(DropReason.OVERSIZE), True, 0, Drop(DropReason.OVERSIZE)),
        (Failure(DropReason.OVERSIZE), False, 0, Retry(0)),
        # An error that holds for every frame of the topic costs each of them.
        (Failure(DropReason.NOT_AUTHORISED, shared=True), False, 0, Drop(DropReason.NOT_AUTHORISED)),
        # An unexplained answer of the broker is counted, and is too much at last.
        (Failure(), True, 0, Retry(1)),
        (Failure(), False, 3, Retry(3)),
        (Failure(), True, REFUSAL_LIMIT - 1, Drop(DropReason.BROKER_REFUSED)),
        # A client that lost its state is made anew, and no frame is to blame.
        (Failure(counts=False), True, 2, Retry(2)),
    ],
)
def test_a_failed_delivery_is_decided_by_kind_blame_and_refusals(
    failure: Failure, is_first_report: bool, refusals: int, decision: Retry | Drop
) -> None:
    assert decide(failure, is_first_report=is_first_report, refusals=refusals) == decision
