"""Limits how often somebody may try to log in: guessing a password must take years, not nights."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator

from flawline.clock import Monotonic, monotonic

WINDOW_S = 300.0
ONE_NAME_FROM_ONE_ADDRESS = 5
ONE_ADDRESS = 20
ONE_NAME = 100
"""Attempts within the window. Judgements, not measured: a person mistypes a few times, a shift shares one terminal, and
nobody locks another person out from a single machine. 100 in 5 minutes are 1e7 a year, which finds no password."""

KEYS_LIMIT = 10_000
"""Names and addresses that are remembered; the oldest are forgotten, so that a flood of them takes no memory."""


class Attempts:
    """Counts the attempts of the last minutes by name and by address. Safe for several threads."""

    def __init__(self, now: Monotonic = monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._times: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def begin(self, name: str, address: str) -> float:
        """Count an attempt and return 0, or return how many seconds to wait before the next, which is not counted."""
        now = self._now()
        with self._lock:
            waits = [self._wait_s(key, limit, now) for key, limit in _keys(name, address)]
            if max(waits) > 0:
                return max(waits)
            for key, _ in _keys(name, address):
                self._times.setdefault(key, deque()).append(now)
                self._times.move_to_end(key)
            while len(self._times) > KEYS_LIMIT:
                self._times.popitem(last=False)
        return 0.0

    def succeeded(self, name: str, address: str) -> None:
        """Forget the attempts of a person who has logged in; those on other names from this address still count."""
        with self._lock:
            for key, _ in _keys(name, address):
                times = self._times.get(key)
                if times:
                    times.pop()
            self._times.pop(next(_keys(name, address))[0], None)

    def _wait_s(self, key: Hashable, limit: int, now: float) -> float:
        times = self._times.get(key, deque())
        while times and times[0] <= now - WINDOW_S:
            times.popleft()
        return times[-limit] + WINDOW_S - now if len(times) >= limit else 0.0


def _keys(name: str, address: str) -> Iterator[tuple[Hashable, int]]:
    place = _network(address)
    yield (name, place), ONE_NAME_FROM_ONE_ADDRESS
    yield ("address", place), ONE_ADDRESS
    yield ("name", name), ONE_NAME


def _network(address: str) -> str:
    """Return what one machine cannot leave: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
