"""The errors that a user may see: one line each, which names the thing, its value and the remedy."""

from __future__ import annotations

ONE_LINE_CHARACTERS = 300


class FlawlineError(Exception):
    """The work failed for a reason that a person can act on; the message is one line."""

    exit_code = 1


class UsageError(FlawlineError):
    """The command line or the configuration is wrong, so nothing was started."""

    exit_code = 2


def one_line(error: BaseException, *, with_type: bool = False) -> str:
    """Return the message of an exception on one line of at most 300 characters, the name of its type when it has none.

    `with_type` puts the type in front, for unexpected errors; that of a FlawlineError is left out.
    """
    text = " ".join(str(error).split())[:ONE_LINE_CHARACTERS]
    if with_type and text and not isinstance(error, FlawlineError):
        return f"{type(error).__name__}: {text}"
    return text or type(error).__name__
