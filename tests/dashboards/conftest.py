"""Servers that the dashboards' queries run on."""

from tests.support.postgres import postgres_server

__all__ = ["postgres_server"]
