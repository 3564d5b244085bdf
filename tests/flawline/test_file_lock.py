"""A file that is locked cannot be locked again until its holder closes it or dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flawline.file_lock import holder, try_lock


def test_second_lock_is_refused_and_the_holder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = try_lock(path)
    assert first is not None
    assert try_lock(path) is None
    assert holder(path) == str(os.getpid())
    first.close()
    second = try_lock(path)
    assert second is not None
    second.close()


@pytest.mark.system
def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from flawline.file_lock import try_lock;"
        "file = try_lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert try_lock(path) is None
        assert holder(path) == str(process.pid)
        process.kill()
    file = try_lock(path)
    assert file is not None
    file.close()


def test_lock_on_a_removed_file_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = try_lock(path)
    assert first is not None
    path.unlink()
    second = try_lock(path)
    assert second is not None
    first.close()
    assert try_lock(path) is None
    second.close()


def test_folder_that_is_missing_is_an_error_and_its_holder_unknown(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "missing" / "lock")
    assert holder(tmp_path / "missing" / "lock") == "unknown"
