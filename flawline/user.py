"""Who runs this process."""

from __future__ import annotations

import getpass


def user_name() -> str | None:
    """Return the name of the operating system's user, None where the user has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
