"""Wall clocks that jump, for the processes of a line: a small library stands between them and the system's clock.

`wrong_clock.c` is compiled where the benchmark runs and loaded by LD_PRELOAD. (libfaketime 0.9.10 was tried first: with
it `time.sleep` of Python 3.11 fails now and then with EINVAL.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("wrong_clock.c")
ROLES: Final = ("up", "produce", "work", "discover", "ledger", "console", "broker")
_NS_PER_S: Final = 1_000_000_000


def compiler() -> str | None:
    """Return the path of the C compiler, None without one."""
    return shutil.which("cc")


class Clocks:
    """The clocks of the roles; actors live by that of `work`. Raises RuntimeError without a compiler."""

    def __init__(self, folder: Path) -> None:
        if (program := compiler()) is None:
            raise RuntimeError("clocks cannot be set: install a C compiler (Debian: apt-get install gcc)")
        self._folder = folder
        folder.mkdir(parents=True)
        self._library = folder / "wrong_clock.so"
        subprocess.run([program, "-O2", "-shared", "-fPIC", "-o", self._library, SOURCE, "-ldl"], check=True)
        for role in ROLES:
            (folder / role).write_bytes(bytes(8))

    def jump(self, role: str, offset_s: float) -> None:
        """Set the clock of a role `offset_s` before (or behind, below 0) the true time."""
        with (self._folder / role).open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", round(offset_s * _NS_PER_S)))

    @contextlib.contextmanager
    def of(self, role: str) -> Iterator[None]:
        """Let the processes that are started inside, and theirs, live by the clock of a role."""
        changes = {
            "LD_PRELOAD": str(self._library),
            "RAY_LD_PRELOAD_ON_WORKERS": "1",  # Ray takes the variable from its workers otherwise
            "WRONG_CLOCK": str(self._folder / role),
        }
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
