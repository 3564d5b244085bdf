"""Group leaders that divide only what they know.

kafka-python 3.0.12 lets a leader divide partitions before it has the topic's metadata: a response that was asked for
before subscribe() ends the wait for the one asked for after it. Then nobody gets anything until some later rebalance.
"""

from __future__ import annotations

from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import RetriableError


class TopicNotKnownYetError(RetriableError):
    """The leader has no metadata yet of a topic that it is to divide."""


class PatientCooperativeSticky(CooperativeStickyAssignor):
    """KIP-429's assignor, whose leader waits until it knows every topic that the group reads."""

    def assign(self, cluster: Any, members: Any) -> Any:
        """Divide the partitions among the members.

        Raises TopicNotKnownYetError while a topic is unknown. The client has just asked for it, and answers a
        retriable error by joining again after `retry_backoff_ms`; the broker then repeats its list of members.
        """
        require_metadata(cluster, members)
        return super().assign(cluster, members)


def require_metadata(cluster: Any, members: Any) -> None:
    """TopicNotKnownYetError unless the cluster's metadata has all topics of the members."""
    topics = {topic for member in members for topic in member.metadata.topics}
    if unknown := sorted(topic for topic in topics if not cluster.partitions_for_topic(topic)):
        raise TopicNotKnownYetError(f"no metadata yet of {', '.join(unknown)}")
