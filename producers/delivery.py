"""What a failed delivery means: try again, with another client, or give the frame up for a reason."""

from __future__ import annotations

from dataclasses import dataclass

from kafka import errors

from flawline.messages import DropReason


class NotConnected(errors.KafkaError):
    """There is no connection to the broker yet."""


@dataclass(frozen=True)
class Fate:
    """`drop` is the reason to give the frame up, None to try again; `renew` asks for a new client.

    `counts` says that the broker answered: a frame that it refuses again and again is given up at last. A broker that
    is away never costs a frame.
    """

    drop: DropReason | None = None
    renew: bool = False
    counts: bool = True


_OVERSIZE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
_NOT_AUTHORISED = (
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.SaslAuthenticationFailedError,
)
_CLIENT_STATE_LOST = (
    # The broker lost its log, forgot this producer, or another took its id: only a new producer id helps.
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
    errors.InvalidRequiredAcksError,
)
_AWAY = (NotConnected, errors.RetriableError, OSError)  # OSError: the claim check store


def fate(error: BaseException) -> Fate:
    """The fate of a frame whose delivery failed with `error`."""
    if isinstance(error, _OVERSIZE):
        return Fate(DropReason.OVERSIZE)
    if isinstance(error, _NOT_AUTHORISED):
        # After a refusal at cluster level the idempotent client never sends again, whatever is granted later.
        return Fate(DropReason.NOT_AUTHORISED, renew=not isinstance(error, errors.TopicAuthorizationFailedError))
    if isinstance(error, _CLIENT_STATE_LOST):
        return Fate(renew=True)
    if isinstance(error, _REFUSED):
        return Fate(DropReason.BROKER_REFUSED)
    return Fate(counts=not isinstance(error, _AWAY))
