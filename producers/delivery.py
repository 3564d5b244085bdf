"""What a failed delivery means: try again, with another client, or give the frame up for a reason."""

from __future__ import annotations

from dataclasses import dataclass

from kafka import errors

from flawline.messages import DropReason


class NotConnected(errors.KafkaError):
    """There is no connection to the broker yet."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a frame whose delivery failed.

    `drop` is the reason to give it up, None to try again. `breaks` says that the client is of no more use: for
    kafka-python 3.0 every error that is not retriable is fatal to an idempotent client, which then fails all it holds
    with that same error. So only the first frame that fails with it is to blame, unless the error is `shared`: it
    holds for every frame of the topic. `counts` says that the broker answered: a frame that it refuses again and again
    without a known reason is given up at last. A broker that is away never costs a frame.
    """

    drop: DropReason | None = None
    breaks: bool = True
    shared: bool = False
    counts: bool = True


_OVERSIZE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
_NOT_AUTHORISED = (
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.SaslAuthenticationFailedError,
)
_CLIENT_STATE_LOST = (
    # The broker lost its log, forgot this producer, or another took its id; or the client was closed.
    errors.OutOfOrderSequenceNumberError,
    errors.UnknownProducerIdError,
    errors.InvalidProducerEpochError,
    errors.ProducerFencedError,
    errors.IllegalStateError,
)
_REFUSED = (
    errors.InvalidTopicError,
    errors.InvalidRecordError,
    errors.PolicyViolationError,
    errors.UnsupportedVersionError,
)
_AWAY = (NotConnected, errors.RetriableError, OSError)  # OSError: the claim check store


def fate(error: BaseException, topic: str) -> Fate:
    """The fate of a frame for `topic` whose delivery failed with `error`."""
    if isinstance(error, _AWAY):
        return Fate(breaks=False, counts=False)
    if isinstance(error, _OVERSIZE):
        return Fate(DropReason.OVERSIZE)
    if isinstance(error, errors.TopicAuthorizationFailedError) and error.args and topic not in str(error.args[0]):
        return Fate(counts=False)  # of another topic that the client writes
    if isinstance(error, _NOT_AUTHORISED):
        return Fate(DropReason.NOT_AUTHORISED, shared=True)
    if isinstance(error, _CLIENT_STATE_LOST):
        return Fate(counts=False)
    return Fate(DropReason.BROKER_REFUSED if isinstance(error, _REFUSED) else None)
