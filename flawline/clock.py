"""Clocks, injected so that policies can be tested without waiting."""

import time
from collections.abc import Callable

Monotonic = Callable[[], float]
"""Seconds from an arbitrary start; for durations."""

UtcNs = Callable[[], int]
"""Nanoseconds UTC; for stamps that leave the process."""

monotonic: Monotonic = time.monotonic
utc_ns: UtcNs = time.time_ns
