"""Who may read the files that a role left behind."""

from __future__ import annotations

from pathlib import Path


def open_to_others(folder: Path) -> list[str]:
    """Return the files and folders in a folder that users outside their group may read, or that the group may write.

    Sockets and links are left out: a link has no mode of its own.
    """
    paths = [path for path in folder.rglob("*") if not path.is_symlink() and (path.is_file() or path.is_dir())]
    assert paths, folder
    return [
        f"{path.relative_to(folder)} {path.stat().st_mode & 0o777:o}" for path in paths if path.stat().st_mode & 0o027
    ]
