"""Who may read what Flawline writes: images of parts and what was found in them are not for every user of a machine."""

from __future__ import annotations

import os

HIDDEN_FROM_OTHERS = 0o027
"""Files are made 0640 and folders 0750: the group may read, as a backup or a role under another user does."""


def keep_files_private() -> None:
    """Let this process and its children make no file that other users may read, nor any that the group may write.

    A process that is stricter already stays so.
    """
    os.umask(os.umask(0o077) | HIDDEN_FROM_OTHERS)
