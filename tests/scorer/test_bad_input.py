"""Folders, files and places that cannot be used are refused in one line, before the work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from flawline import imaging
from flawline.errors import FlawlineError, UsageError
from flawline.settings.scorer import ScorerSettings
from scorer import artefact, commands
from tests.scorer.conftest import draw


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """Return a folder of files with names of images; a test that reads them fails."""
    folder = tmp_path / "unreadable"
    folder.mkdir()
    for i in range(24):
        (folder / f"{i:02}.png").write_bytes(b"x")
    return folder


def one_defect(folder: Path, mask: bytes | None) -> Path:
    """Write a product with one defective test image and its ground truth."""
    for name in ("test/blot", "ground_truth/blot"):
        (folder / "board" / name).mkdir(parents=True)
    cv2.imwrite(str(folder / "board/test/blot/0.png"), draw("board", 0, defect=True)[:, :, ::-1])
    if mask is not None:
        (folder / "board/ground_truth/blot/0_mask.png").write_bytes(mask)
    return folder


def png(mask: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", mask)[1])


def test_place_that_cannot_take_a_model_is_refused_before_the_images_are_read(
    unreadable: Path, settings: ScorerSettings, model_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlawlineError, match="none of the images can be read"):
        commands.fit(unreadable, tmp_path / "model", settings)
    assert not (tmp_path / "model").exists()
    file = tmp_path / "a.txt"
    file.write_text("not to be lost")
    for place, message in (
        (file, "a.txt: exists and is no model"),
        (unreadable, "unreadable: exists and is no model"),
        (file / "model", r"model: cannot be written, since .*a.txt is no writable folder"),
    ):
        with pytest.raises(UsageError, match=message):
            commands.fit(unreadable, place, settings)
        with pytest.raises(UsageError, match=message):
            commands.extend(model_path, unreadable, place)
    assert file.read_text() == "not to be lost"


def test_too_few_images_and_a_file_for_a_folder_are_named(
    unreadable: Path, settings: ScorerSettings, tmp_path: Path
) -> None:
    for path in list(unreadable.iterdir())[:5]:
        path.unlink()
    with pytest.raises(UsageError, match="unreadable: holds 19 good images: at least 20 are needed"):
        commands.fit(unreadable, tmp_path / "model", settings)
    with pytest.raises(UsageError, match=r"00.png: is a file: give the folder|.png: is a file: give the folder"):
        commands.fit(next(unreadable.iterdir()), tmp_path / "model", settings)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (b"x", "0_mask.png: is no image"),
        (png(np.zeros((30, 40), np.uint8)), r"0_mask.png: mask of 40x30 px does not fit its image of 64x64 px"),
    ],
)
def test_ground_truth_that_does_not_fit_is_refused_before_anything_is_scored(
    mask: bytes, message: str, model_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(FlawlineError, match=message):
        commands.evaluate(model_path, one_defect(tmp_path / "data", mask))


def test_smaller_ground_truth_of_the_same_shape_serves(model_path: Path, tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 255
    report = commands.evaluate(model_path, one_defect(tmp_path / "data", png(mask)))
    assert report["images"] == 1


def test_place_for_scores_is_checked_before_anything_is_scored(model_path: Path, tmp_path: Path) -> None:
    data = one_defect(tmp_path / "data", None)
    with pytest.raises(UsageError, match=r"--scores .*nowhere/scores.csv: cannot be written"):
        commands.evaluate(model_path, data, scores=tmp_path / "nowhere" / "scores.csv")


def test_folders_without_a_model_and_newer_models_are_refused(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match="missing: is no folder: give the folder of a model"):
        artefact.load(tmp_path / "missing")
    with pytest.raises(FlawlineError, match=r"holds no manifest.json, so it is no model"):
        artefact.load(tmp_path)
    newer = tmp_path / "newer"
    shutil.copytree(model_path, newer)
    manifest = json.loads((newer / "manifest.json").read_text()) | {"format": artefact.FORMAT + 1}
    manifest["checksum"] = artefact._digest({k: v for k, v in manifest.items() if k != "checksum"})
    (newer / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FlawlineError, match=r"written by a newer release than this one.*: update flawline"):
        artefact.load(newer)


def test_size_of_a_file_is_read_from_its_header(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tiff"):
        Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(tmp_path / name)
        assert imaging.image_size(tmp_path / name) == (9, 5)
    with pytest.raises(imaging.ImageError, match=r"none.png: cannot be read: No such file"):
        imaging.image_size(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(imaging.ImageError, match=r"text.png: file of 4 bytes is no image, or of a kind"):
        imaging.read_image(tmp_path / "text.png")
