"""How every role and command writes its log."""

from __future__ import annotations

import logging
import sys
import time


def configure_logging(level: str, role: str = "") -> None:
    """Send the log to stderr: one line an event, with UTC stamps and, where it is given, the name of the `role`."""
    logging.Formatter.converter = time.gmtime
    name = f" {role}" if role else ""
    logging.basicConfig(
        level=level, stream=sys.stderr, force=True, format=f"%(asctime)sZ{name} %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("faiss").setLevel(logging.WARNING)  # below, it lists the libraries that it tries
    # Below WARNING the Kafka client logs the bytes of every frame. A command that is no role reports in one line that
    # the broker is away, so the client's own lines are left out.
    logging.getLogger("kafka").setLevel(logging.WARNING if role else logging.CRITICAL)
