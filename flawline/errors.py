"""The errors that a user may see: one line each, which names the thing, its value and the remedy."""

from __future__ import annotations

from flawline.redaction import redact

ONE_LINE_CHARACTERS = 300  # a judgement, not measured


class FlawlineError(Exception):
    """The work failed for a reason that a person can act on; the message is one line and shows no secret."""

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redact(argument) if isinstance(argument, str) else argument for argument in arguments))


class UsageError(FlawlineError):
    """The command line or the configuration is wrong, so nothing was started."""

    exit_code = 2


def one_line(error: BaseException, *, with_type: bool = False) -> str:
    """Return the message of an exception on one line of at most 300 characters, the name of its type when it has none.

    It shows no secret. `with_type` puts the type in front, for unexpected errors; that of a FlawlineError is left out.
    """
    text = " ".join(redact(str(error)).split())[:ONE_LINE_CHARACTERS]
    if with_type and text and not isinstance(error, FlawlineError):
        return f"{type(error).__name__}: {text}"
    return text or type(error).__name__
