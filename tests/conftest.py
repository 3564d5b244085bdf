"""Fixtures that every room's tests may use."""

from tests.support.brokers import apache_kafka, embedded_broker, fresh_broker

__all__ = ["apache_kafka", "embedded_broker", "fresh_broker"]
