"""The errors a user may see: one line each, naming the thing, its value and the mend."""


class FlawlineError(Exception):
    """The work failed for a reason that a person can act on; the message is one line."""

    exit_code = 1


class UsageError(FlawlineError):
    """The command line or the configuration is wrong, so nothing was started."""

    exit_code = 2
