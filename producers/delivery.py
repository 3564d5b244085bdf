"""What a failed delivery means: try again, with another client, or give the frame up for a reason. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kafka import errors

from flawline.checked_producer import CLIENT_STATE_LOST
from flawline.kafka_clients import is_refusal
from flawline.messages import DropReason


class NotConnected(errors.KafkaError):
    """There is no connection to the broker yet."""


@dataclass(frozen=True)
class Failure:
    """Holds the kind of an error of delivery.

    `drop` is the reason to give the frame up, None to try again. `breaks` says that the client cannot be used any more:
    for kafka-python 3.0 every error that is not retriable is fatal to an idempotent client, which then fails all its
    frames with that error. So only the first frame that fails with it is to blame, unless the error is `shared`: then
    it concerns every frame of the topic. `counts` says that the broker answered: a frame that it refuses
    `REFUSAL_LIMIT` times without a known reason is given up. A broker that is away never costs a frame.
    """

    drop: DropReason | None = None
    breaks: bool = True
    shared: bool = False
    counts: bool = True


@dataclass(frozen=True)
class Retry:
    """Sends the frame again; `refusals` is how often the broker has refused it so far."""

    refusals: int


@dataclass(frozen=True)
class Drop:
    """Gives the frame up."""

    reason: DropReason


REFUSAL_LIMIT = 5
"""A frame that the broker answers so often with an unexplained error is dropped, since it blocks the frames behind it.
A judgement, not measured."""

_OVERSIZE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
_REFUSED = (
    errors.InvalidTopicError,
    errors.InvalidRecordError,
    errors.PolicyViolationError,
    errors.UnsupportedVersionError,
)
_AWAY = (NotConnected, errors.RetriableError, OSError)  # OSError: the claim check store


def classify(error: BaseException, topic: str) -> Failure:
    """Return the kind of `error`, with which the delivery of a frame to `topic` failed."""
    if isinstance(error, _AWAY):
        return Failure(breaks=False, counts=False)
    if isinstance(error, _OVERSIZE):
        return Failure(DropReason.OVERSIZE)
    if isinstance(error, errors.TopicAuthorizationFailedError) and error.args and topic not in str(error.args[0]):
        return Failure(counts=False)  # of another topic that the client writes
    if is_refusal(error):
        return Failure(DropReason.NOT_AUTHORISED, shared=True)
    if isinstance(error, CLIENT_STATE_LOST):
        return Failure(counts=False)
    return Failure(DropReason.BROKER_REFUSED if isinstance(error, _REFUSED) else None)


def decide(failure: Failure, *, is_first_report: bool, refusals: int) -> Retry | Drop:
    """Return what becomes of a frame whose delivery failed.

    `is_first_report` tells that no other frame reported this error of the client before; `refusals` is how often the
    broker has refused this frame so far.
    """
    is_to_blame = is_first_report or failure.shared
    if failure.drop is not None and is_to_blame:
        return Drop(failure.drop)
    refusals += failure.counts and is_to_blame
    return Drop(DropReason.BROKER_REFUSED) if refusals >= REFUSAL_LIMIT else Retry(refusals)
