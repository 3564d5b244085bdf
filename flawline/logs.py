"""How every role and command writes its log."""

from __future__ import annotations

import logging
import sys
import time

from flawline import clock
from flawline.redaction import redact, redact_output, remember, secrets_in
from flawline.settings.tree import Settings

KAFKA = "kafka"
KAFKA_INTERVAL_S = 30.0
"""A Kafka client without its broker logs 130 lines a second, most with a traceback; the roles report it themselves."""

KAFKA_LINE_LENGTH = 300  # a judgement, not measured


class KafkaSummary(logging.Filter):
    """Lets one record of the Kafka client pass per `interval_s`, as one line that counts those left out since."""

    def __init__(self, interval_s: float = KAFKA_INTERVAL_S, now: clock.Monotonic = clock.monotonic) -> None:
        super().__init__(KAFKA)
        self._interval_s = interval_s
        self._now = now
        self._next_s = now()
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a record of the Kafka client that comes too soon after the last one."""
        if not super().filter(record):
            return True  # of another logger
        now = self._now()
        if now < self._next_s:
            self._left_out += 1
            return False
        self._next_s = now + self._interval_s
        text = redact(record.getMessage()).partition("\n")[0][:KAFKA_LINE_LENGTH]
        record.msg, record.args = (f"{text} ({self._left_out} more before)" if self._left_out else text), ()
        record.exc_info = record.exc_text = record.stack_info = None
        self._left_out = 0
        return True


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
    summary = KafkaSummary()
    for handler in logging.getLogger().handlers:
        handler.addFilter(summary)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # below, it lists the libraries that it tries
    # Below WARNING the Kafka client logs the bytes of every frame. A command that is no role reports in one line that
    # the broker is away, so the client's own lines are left out.
    logging.getLogger(KAFKA).setLevel(logging.WARNING if role else logging.CRITICAL)
    # It warns whenever the CPU was busy with something else.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
