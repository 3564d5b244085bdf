"""Clocks, passed as arguments so that policies can be tested without waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

Monotonic = Callable[[], float]
"""Seconds from an arbitrary start; for durations."""

UtcNs = Callable[[], int]
"""Nanoseconds UTC; for stamps that leave the process."""

monotonic: Monotonic = time.monotonic
utc_ns: UtcNs = time.time_ns

NS = 1e-9
"""One nanosecond in seconds."""
