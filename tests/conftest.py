"""Fixtures that every room's tests may use."""

from tests.support.brokers import apache_kafka, embedded_broker, fresh_broker
from tests.support.postgres import postgres_server

__all__ = ["apache_kafka", "embedded_broker", "fresh_broker", "postgres_server"]
