"""How every role and command writes its log."""

from __future__ import annotations

import logging
import sys
import time

from flawline.redaction import redact_output, remember, secrets_in
from flawline.settings.tree import Settings


def configure_logging(settings: Settings, role: str = "") -> None:
    """Send the log to stderr: one line an event, with UTC stamps, the name of the `role` and no secret.

    A `role` has the level of the settings, a command that is none logs warnings. No output of this process shows a
    secret of `settings` from now on.
    """
    remember(secrets_in(settings.model_dump()))
    redact_output()
    logging.Formatter.converter = time.gmtime
    name = f" {role}" if role else ""
    logging.basicConfig(
        level=settings.log_level if role else "WARNING",
        stream=sys.stderr,
        force=True,
        format=f"%(asctime)sZ{name} %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("faiss").setLevel(logging.WARNING)  # below, it lists the libraries that it tries
    # Below WARNING the Kafka client logs the bytes of every frame. A command that is no role reports in one line that
    # the broker is away, so the client's own lines are left out.
    logging.getLogger("kafka").setLevel(logging.WARNING if role else logging.CRITICAL)
