"""How every role and command writes its log."""

from __future__ import annotations

import logging
import sys
import time


def configure_logging(level: str, role: str = "") -> None:
    """Logs go to stderr, one line each, with UTC stamps."""
    logging.Formatter.converter = time.gmtime
    name = f" {role}" if role else ""
    logging.basicConfig(
        level=level, stream=sys.stderr, force=True, format=f"%(asctime)sZ{name} %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("faiss").setLevel(logging.WARNING)  # tells which of its libraries it tried
    # Below WARNING the client's loggers write every frame's bytes. A command that is no role says in one line of its
    # own that the broker is away, so the client's many are left out.
    logging.getLogger("kafka").setLevel(logging.WARNING if role else logging.CRITICAL)
