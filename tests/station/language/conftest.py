"""The console of tests/station/web."""

from tests.station.web.conftest import accounts, client, filled_file, settings, store, watch

__all__ = ["accounts", "client", "filled_file", "settings", "store", "watch"]
