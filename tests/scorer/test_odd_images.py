"""What is odd among the good images is named before a fit, and left out when told so."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.messages import Codec
from flawline.settings.scorer import ScorerSettings
from scorer import artefact, commands, odd_images
from scorer.features.dataset import LazyImages, unread_folders
from scorer.load import load_detector
from scorer.odd_images import odd_looks
from scorer.small_parts import small_part
from tests.scorer.conftest import SIDE, draw

COUNT = 30


def write(folder: Path, count: int = COUNT, bits: int = 8) -> list[Path]:
    """Write so many images of one product as PNG, with so many bits, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for i, path in enumerate(paths):
        image = draw("cloth", i)
        path.write_bytes(imaging.encode(image if bits == 8 else image.astype(np.uint16) << (bits - 8), Codec.PNG))
    return paths


def add_odd(folder: Path) -> dict[str, Path]:
    """Add a single pixel, a strip, a 12-bit copy, a 1-bit copy and a part of another product; return their paths."""
    cloth = draw("cloth", 500)
    images = {
        "pixel": cloth[:1, :1],
        "strip": np.repeat(np.repeat(cloth[:1, :1], 40, axis=0), 9000, axis=1),
        "deep": cloth.astype(np.uint16) << 4,
        "other": draw("board", 500),
    }
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(imaging.encode(image, Codec.PNG))
    cv2.imwrite(
        str(folder / "bilevel.png"), (cloth[:, :, 0] > 127).astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1]
    )
    return {name: folder / f"{name}.png" for name in (*images, "bilevel")}


def test_headers_alone_name_what_is_odd_and_nothing_else(tmp_path: Path) -> None:
    paths = write(tmp_path)
    assert odd_images.survey(paths) == odd_images.Survey((8,), [])
    added = add_odd(tmp_path)
    paths += added.values()
    survey = odd_images.survey(paths)
    reasons = {paths[item.number].stem: item.reason for item in survey.odd}
    assert set(reasons) == {"pixel", "strip", "deep", "bilevel"}
    assert "1x1 px, 64x64 are usual" in reasons["pixel"] and "9000x40" in reasons["strip"]
    assert "has 16 bits a sample, 8 are usual" in reasons["deep"]
    assert "has 1 bits a sample" in reasons["bilevel"]
    assert survey.sample_bits == (8, 12)


def test_files_that_cannot_be_read_are_left_to_the_fit(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert odd_images.survey([tmp_path / "broken.png", tmp_path / "gone.png"]) == odd_images.Survey((8,), [])


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_depth_of_16_bit_files_is_that_of_their_data(tmp_path: Path, bits: int) -> None:
    assert odd_images.survey(write(tmp_path, bits=bits)).sample_bits == (bits,)


def test_one_image_of_full_depth_among_12_bit_ones_is_odd_and_does_not_decide_the_depth(tmp_path: Path) -> None:
    paths = [*write(tmp_path, bits=12), tmp_path / "full.png"]
    paths[-1].write_bytes(imaging.encode(draw("cloth", 99).astype(np.uint16) << 8, Codec.PNG))
    survey = odd_images.survey(paths)
    assert survey.sample_bits == (12,)
    assert [(item.number, item.reason) for item in survey.odd] == [(COUNT, "uses 16 bits, the others 12")]


def test_two_products_of_two_shapes_and_depths_are_not_odd(tmp_path: Path) -> None:
    paths = write(tmp_path / "a", 12) + write(tmp_path / "b", 12, bits=12)
    for path in write(tmp_path / "c", 12):
        path.write_bytes(imaging.encode(np.repeat(draw("board", 1), 4, axis=1), Codec.PNG))
        paths.append(path)
    assert odd_images.survey(paths) == odd_images.Survey((8, 12), [])


@pytest.mark.parametrize("block", [512, 7])
def test_up_to_nine_alike_images_of_another_look_are_odd_and_a_spread_of_looks_is_not(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(odd_images, "_BLOCK", block)
    rng = np.random.default_rng(0)
    usual = rng.normal(size=64) + 0.3 * rng.normal(size=(60, 64))
    others = rng.normal(size=64) + 0.05 * rng.normal(size=(9, 64))
    embeddings = np.concatenate([usual, others])
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    odd = odd_looks(embeddings, np.zeros(69, dtype=np.int64))
    assert [item.number for item in odd] == list(range(60, 69))
    assert odd_looks(embeddings[:60], np.zeros(60, dtype=np.int64)) == []
    same = np.repeat(embeddings[:1], 20, axis=0)
    assert odd_looks(same, np.zeros(20, dtype=np.int64)) == []


@pytest.mark.system
def test_fit_names_the_odd_ones_and_leaves_them_out_when_told_so(
    tmp_path: Path, settings: ScorerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    good = tmp_path / "data" / "cloth" / "train" / "good"
    write(good)
    added = {str(path) for path in add_odd(good).values()}
    write(good / "monday", 3)
    with caplog.at_level(logging.WARNING):
        report = commands.fit(tmp_path / "data", tmp_path / "model", settings, leave_out_odd=True)
    assert {name for name, _ in report["odd"]} == added
    assert report["good_images"] == COUNT and report["odd_left_out"]
    for name in added:
        assert f"odd among the good images: {name}" in caplog.text
    assert f"{good / 'monday'}: 3 images in this folder are not read" in caplog.text
    kept = commands.fit(tmp_path / "data", tmp_path / "kept", settings)
    assert {name for name, _ in kept["odd"]} == added
    assert kept["good_images"] == COUNT + len(added) and not kept["odd_left_out"]


@pytest.mark.system
def test_model_of_12_bit_images_reads_12_bits_and_refuses_other_depths(
    tmp_path: Path, settings: ScorerSettings
) -> None:
    write(tmp_path / "data", bits=12)
    report = commands.fit(tmp_path / "data", tmp_path / "deep", settings)
    assert report["sample_bits"] == [12]
    loaded = load_detector(tmp_path / "deep")
    assert loaded.sample_bits == (12,)
    seen = LazyImages(sorted((tmp_path / "data").iterdir()), None, loaded.sample_bits)
    np.testing.assert_array_equal(seen[0], draw("cloth", 0))
    assert loaded.evidence is not None
    np.testing.assert_array_equal(loaded.evidence.picture(0), draw("cloth", 0))
    (path,) = write(tmp_path / "others", 1)
    with pytest.raises(FlawlineError, match="samples of 8 bits, and the good images of the model have 12"):
        LazyImages([path], None, loaded.sample_bits)[0]
    path.write_bytes(imaging.encode(np.full((8, 8, 3), 60_000, np.uint16), Codec.PNG))
    with pytest.raises(FlawlineError, match="take 16 bits, and images of 12 bits"):
        LazyImages([path], None, loaded.sample_bits)[0]


def test_model_of_format_2_is_read_with_the_depths_of_its_time(model_path: Path, tmp_path: Path) -> None:
    import json
    import shutil

    old = tmp_path / "old"
    shutil.copytree(model_path, old)
    manifest = json.loads((old / "manifest.json").read_text())
    assert manifest.pop("sample_bits") == [8]
    manifest["format"] = 2
    manifest.pop("checksum")
    manifest["checksum"] = artefact._digest(manifest)
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert artefact.load(old).model.sample_bits == (8, 16)


def test_folders_that_no_fit_reads_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train" / "good", 2)
    write(tmp_path / "a" / "train" / "good" / "later" / "today", 3)
    write(tmp_path / "b", 4)
    (tmp_path / "c").mkdir()
    assert unread_folders(tmp_path) == [(tmp_path / "a" / "train" / "good" / "later", 3), (tmp_path / "b", 4)]
    assert unread_folders(tmp_path / "b") == []


def test_part_on_a_small_share_of_a_uniform_frame_is_found_with_its_place() -> None:
    rng = np.random.default_rng(1)

    def frame(seed: int) -> np.ndarray:
        image = np.clip(180 + rng.normal(0, 2, (4 * SIDE, 4 * SIDE, 3)), 0, 255).astype(np.uint8)
        image[64:160, 96:192] = cv2.resize(draw("cloth", seed), (96, 96))
        return image

    part = small_part([frame(i) for i in range(8)], 3)
    assert part is not None and part.group == 3 and 0.1 < part.share < 0.25
    assert part.left <= 96 / 256 and part.top <= 64 / 256 and part.right >= 192 / 256 and part.bottom >= 160 / 256
    assert len(part.polygon) == 4
    assert small_part([draw("cloth", i) for i in range(8)], 0) is None
    assert small_part([np.full((64, 64, 3), 90, np.uint8)] * 4, 0) is None
