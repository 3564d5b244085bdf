"""The decision about a failed delivery: its errors, and what each kind of error does to a frame and to the client."""

from __future__ import annotations

import pytest
from kafka import errors

from flawline.messages import DropReason
from flawline.object_store import StoreAway
from producers.delivery import REFUSAL_LIMIT, Drop, Failure, NotConnected, Retry, classify, decide


@pytest.mark.parametrize(
    "error",
    [
        NotConnected(),
        StoreAway("object store bucket/frames is away"),
        ConnectionResetError("reset by peer"),
        errors.KafkaTimeoutError(),
        errors.KafkaConnectionError(),
        errors.NodeNotReadyError(),
        errors.RequestTimedOutError(),
        errors.NotLeaderForPartitionError(),
        errors.LeaderNotAvailableError(),
        errors.NotEnoughReplicasError(),
        errors.NotEnoughReplicasAfterAppendError(),
        errors.UnknownTopicOrPartitionError(),
        errors.KafkaStorageError(),
        errors.ThrottlingQuotaExceededError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_outage_is_tried_again_with_the_same_client_and_never_counts_as_a_refusal(error: Exception) -> None:
    assert classify(error, "frames") == Failure(drop=None, breaks=False, counts=False)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        # The frame is too large for the topic or for the segment; the client must be replaced.
        (errors.MessageSizeTooLargeError(), Failure(DropReason.OVERSIZE)),
        (errors.RecordListTooLargeError(), Failure(DropReason.OVERSIZE)),
        # The user may not write: that holds for every frame.
        (errors.TopicAuthorizationFailedError("frames"), Failure(DropReason.NOT_AUTHORISED, shared=True)),
        (errors.TopicAuthorizationFailedError(), Failure(DropReason.NOT_AUTHORISED, shared=True)),
        (errors.ClusterAuthorizationFailedError(), Failure(DropReason.NOT_AUTHORISED, shared=True)),
        (errors.SaslAuthenticationFailedError(), Failure(DropReason.NOT_AUTHORISED, shared=True)),
        # The user may not write another topic of the same client, which breaks the client but blames no frame.
        (errors.TopicAuthorizationFailedError("ledger"), Failure(counts=False)),
        # The client has lost its state on the broker, which blames no frame either.
        (errors.OutOfOrderSequenceNumberError(), Failure(counts=False)),
        (errors.UnknownProducerIdError(), Failure(counts=False)),
        (errors.InvalidProducerEpochError(), Failure(counts=False)),
        (errors.ProducerFencedError(), Failure(counts=False)),
        (errors.IllegalStateError("the client is closed"), Failure(counts=False)),
        # The broker refuses this frame for good.
        (errors.InvalidTopicError(), Failure(DropReason.BROKER_REFUSED)),
        (errors.InvalidRecordError(), Failure(DropReason.BROKER_REFUSED)),
        (errors.PolicyViolationError(), Failure(DropReason.BROKER_REFUSED)),
        (errors.UnsupportedVersionError(), Failure(DropReason.BROKER_REFUSED)),
        (errors.IncompatibleBrokerVersion(), Failure(DropReason.BROKER_REFUSED)),
        # An answer without a known reason is tried again, and counts.
        (errors.UnknownError(), Failure()),
        (errors.CorruptRecordError(), Failure()),
        (errors.InvalidTimestampError(), Failure()),
        (ValueError("a fault of the client library"), Failure()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_is_classified_by_its_cause(error: Exception, failure: Failure) -> None:
    assert classify(error, "frames") == failure


def test_error_of_a_topic_with_a_prefix_is_told_from_one_of_another_line() -> None:
    refused = errors.TopicAuthorizationFailedError("line-2.frames")
    assert classify(refused, "line-2.frames").drop is DropReason.NOT_AUTHORISED
    assert classify(refused, "line-1.frames").drop is None


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
def test_failed_delivery_is_decided_by_kind_blame_and_refusals(
    failure: Failure, is_first_report: bool, refusals: int, decision: Retry | Drop
) -> None:
    assert decide(failure, is_first_report=is_first_report, refusals=refusals) == decision
