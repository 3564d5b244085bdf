"""Fixtures that every room's tests may use."""

from tests.support.brokers import apache_kafka, embedded_broker, fresh_broker
from tests.support.lines import line, line_settings, settings_file
from tests.support.postgres import postgres_server

__all__ = [
    "apache_kafka",
    "embedded_broker",
    "fresh_broker",
    "line",
    "line_settings",
    "postgres_server",
    "settings_file",
]
