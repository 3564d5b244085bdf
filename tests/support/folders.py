"""What may become of a folder that a store uses."""

from __future__ import annotations

from pathlib import Path


def remove(folder: Path) -> None:
    """Take a folder away; it stays beside its place, as `aside`."""
    folder.rename(folder.with_name("aside"))


def replace_by_a_file(folder: Path) -> None:
    """Put a file in a folder's place."""
    remove(folder)
    folder.write_text("no folder")


def unmount(folder: Path) -> None:
    """Put an empty folder in a folder's place, which is what stays when a volume is unmounted."""
    remove(folder)
    folder.mkdir()
