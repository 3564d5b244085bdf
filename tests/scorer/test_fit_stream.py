"""A fit that works on disk: the same model after a kill, and one line when the disk is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.settings.scorer import ScorerSettings
from scorer.cache import cache_dir
from scorer.features.conversion import prepare
from scorer.features.dataset import LazyImages
from scorer.features.workfolder import PatchFile, WorkFolder
from scorer.fit import fit_detector
from tests.scorer.conftest import good_images

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for i, image in enumerate(good_images(20)):
        path = folder / f"{i:03}.png"
        path.write_bytes(imaging.encode(image, imaging.Codec.PNG))
        paths.append(path)
    paths.insert(5, folder / "broken.png")
    paths[5].write_bytes(b"\x89PNG, but not for long")
    return paths


@pytest.fixture
def cache(settings: ScorerSettings) -> Path:
    """Return the cache, with the converted backbone in it, and nothing of another fit."""
    prepare(settings)
    shutil.rmtree(cache_dir() / "fits", ignore_errors=True)
    return cache_dir()


class Stopped(Exception):
    """Stands for whatever ends a fit in the middle."""


class Counted(LazyImages):
    """Counts what is read until the banks are begun; later reads are of pictures to be shown."""

    reads = 0
    counting = True

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        Counted.reads += Counted.counting
        return super().__getitem__(index)


def fitted(files: list[Path], settings: ScorerSettings, stop_at: tuple[str, int] | None = None) -> str:
    """Return the scores of a fit as text; `stop_at` ends it after that many steps of a stage."""

    def progress(stage: str, done: int, total: int) -> None:
        Counted.counting = stage != "banks"
        if (stage, done) == stop_at:
            raise Stopped

    Counted.counting = True
    skipped: list[int] = []
    fitted = fit_detector(Counted(files), settings, progress, lambda index, error: skipped.append(index))
    assert skipped == [5]
    return repr((fitted.model.log_scores.tolist(), [bank.tobytes() for banks in fitted.model.banks for bank in banks]))


@pytest.mark.parametrize("stop_at", [("features", 17), ("banks", 2)])
def test_a_stopped_fit_goes_on_where_it_was_and_ends_the_same(
    stop_at: tuple[str, int], files: list[Path], settings: ScorerSettings, cache: Path
) -> None:
    whole = fitted(files, settings)
    assert not list((cache / "fits").iterdir()), "a finished fit leaves nothing"
    with pytest.raises(Stopped):
        fitted(files, settings, stop_at)
    Counted.reads = 0
    assert fitted(files, settings) == whole
    assert Counted.reads <= len(files) - min(stop_at[1], 17) if stop_at[0] == "features" else Counted.reads == 0


def test_other_images_or_settings_start_afresh(files: list[Path], settings: ScorerSettings, cache: Path) -> None:
    with pytest.raises(Stopped):
        fitted(files, settings, ("banks", 2))
    for paths, wanted in ((files[:-1], settings), (files, settings.model_copy(update={"seed": 1}))):
        Counted.reads = 0
        fitted(paths, wanted)
        assert Counted.reads == len(paths)
    os.utime(files[0])  # the file may have changed
    Counted.reads = 0
    fitted(files, settings)
    assert Counted.reads == len(files)


def test_a_killed_process_is_taken_up_by_the_next(files: list[Path], settings: ScorerSettings, cache: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom scorer.fit import fit_detector\n"
        "from scorer.features.dataset import LazyImages\nfrom flawline.settings.scorer import ScorerSettings\n"
        "def progress(stage, done, total):\n    if stage == 'banks': os.kill(os.getpid(), signal.SIGKILL)\n"
        "settings = ScorerSettings.model_validate_json(sys.argv[1])\n"
        "fit_detector(LazyImages([Path(p) for p in sys.argv[2:]]), settings, progress, lambda *_: None)\n"
    )
    arguments = [settings.model_dump_json(), *map(str, files)]
    result = subprocess.run([sys.executable, "-c", program, *arguments], env=os.environ.copy(), check=False)
    assert result.returncode == -9
    Counted.reads = 0
    fitted(files, settings)
    assert Counted.reads == 0


def test_a_torn_journal_and_cut_files_cost_work_but_no_correctness(
    files: list[Path], settings: ScorerSettings, cache: Path
) -> None:
    whole = fitted(files, settings)
    for damage in (lambda text: text[:-20], lambda text: text):
        with pytest.raises(Stopped):
            fitted(files, settings, ("features", 30))
        (journal,) = (cache / "fits").glob("*/done.jsonl")
        journal.write_text(damage(journal.read_text()))
        if damage("x" * 40) == "x" * 40:
            PatchFile(journal.parent / "0.f16", 64, 40).cut(3)
        assert fitted(files, settings) == whole


def test_a_full_disk_is_one_line(
    files: list[Path], settings: ScorerSettings, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(FlawlineError, match=r"0\.0 GB are free, the fit needs 0\.3 GB.*free space") as caught:
        fitted(files, settings)
    assert "\n" not in str(caught.value)


def test_two_fits_of_one_key_do_not_share_a_folder_and_old_remains_go(tmp_path: Path) -> None:
    first, second = WorkFolder(tmp_path, "same"), WorkFolder(tmp_path, "same")
    assert first.path != second.path
    second.close(remove=False)
    assert not second.path.exists(), "nobody could find a private folder again"
    first.put("step", numbers=np.arange(3))
    first.close(remove=False)
    again = WorkFolder(tmp_path, "same")
    assert again.path == first.path
    stored = again.get("step")
    assert stored is not None
    assert stored["numbers"].tolist() == [0, 1, 2]
    again.close(remove=False)
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(first.path, (long_ago, long_ago))
    WorkFolder(tmp_path, "other").close()
    assert not list(tmp_path.iterdir())


def test_patches_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((7, 6, 5)).astype(np.float16)
    file = PatchFile(tmp_path / "x", 6, 5)
    for rows in vectors:
        file.append(rows)
    assert file.shape == (7, 6, 5)
    np.testing.assert_array_equal(file[np.asarray([6, 0, 3])], vectors[[6, 0, 3]])
    with pytest.raises(FlawlineError, match="ends early"):
        file[np.asarray([7])]
    file.close()
