"""The folder camera: what is replayed, in which order, byte for byte."""

import functools
import operator
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline import imaging
from flawline.errors import UsageError
from flawline.messages import Codec
from flawline.settings.producers import FolderCamera
from producers.folder import FolderReplay, playlist
from producers.framing import to_frame
from tests.producers.doubles import picture


def folder_camera(path: Path, **options: object) -> FolderCamera:
    return FolderCamera(kind="folder", name="cam", path=path, **options)


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = Codec.JPEG if path.suffix == ".jpg" else Codec.PNG
    path.write_bytes(imaging.encode(picture(seed), codec))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a folder of two products in the MVTec layout."""
    seed = 0
    for product in ("cable", "screw"):
        for kind in ("train/good", "test/good", "test/scratch"):
            for number in range(4):
                write_image(tmp_path / product / kind / f"{number:03d}.png", seed := seed + 1)
        write_image(tmp_path / product / "ground_truth/scratch/000_mask.png")
    return tmp_path


def keys(path: Path, **options: object) -> list[str]:
    return [item.as_posix() for item in playlist(folder_camera(path, **options))]


def test_dataset_replays_the_test_images_of_all_products_in_the_same_shuffled_order_each_time(dataset: Path) -> None:
    shown = keys(dataset)
    expected = {f"{p}/test/{k}/{n:03d}.png" for p in ("cable", "screw") for k in ("good", "scratch") for n in range(4)}
    assert set(shown) == expected and len(shown) == len(expected)
    assert shown != sorted(shown)
    assert shown == keys(dataset) == keys(dataset, shuffle_seed=0)
    assert shown != keys(dataset, shuffle_seed=1)


def test_one_product_of_a_dataset_replays_its_test_images(dataset: Path) -> None:
    assert {key.split("/")[0] for key in keys(dataset / "cable")} == {"test"}


def test_shards_are_disjoint_and_complete_with_any_seeds(dataset: Path) -> None:
    shards = [keys(dataset, shard=shard, shards=3, shuffle_seed=shard) for shard in range(3)]
    assert sorted(functools.reduce(operator.iadd, shards, [])) == sorted(keys(dataset))


def test_plain_folder_replays_in_sorted_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "more/c.png", ".hidden/d.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert keys(tmp_path) == ["a.jpg", "b.png", "more/c.png"]


def test_jpeg_and_png_bytes_are_forwarded_untouched(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        write_image(tmp_path / name)
    camera = folder_camera(tmp_path)
    frames = [to_frame(capture, camera, 1, n) for n, capture in enumerate(FolderReplay(camera).frames())]
    assert [frame.data for frame in frames] == [(tmp_path / name).read_bytes() for name in ("a.jpg", "b.png")]
    assert [(frame.codec, frame.height, frame.width) for frame in frames] == [
        (Codec.JPEG, 48, 64),
        (Codec.PNG, 48, 64),
    ]


def test_other_kinds_of_files_arrive_with_the_pixels_that_an_offline_reader_sees(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.bmp"), picture(3))
    cv2.imwrite(str(tmp_path / "b.tiff"), (picture(4)[:, :, 0].astype(np.uint16) << 4))
    camera = folder_camera(tmp_path)
    for capture in FolderReplay(camera).frames():
        frame = to_frame(capture, camera, 1, 0)
        assert frame.codec is Codec.PNG  # lossless, although the camera's codec is jpeg
        sent = imaging.pixels(imaging.plan(frame.data, frame.codec))
        np.testing.assert_array_equal(sent, imaging.read_samples(tmp_path / capture.replay_key))
        assert sent.dtype == (np.uint16 if capture.replay_key == "b.tiff" else np.uint8)


def test_loop_starts_again_and_a_vanished_file_is_a_capture_without_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    frames = FolderReplay(folder_camera(tmp_path, loop=True)).frames()
    assert [next(frames).replay_key for _ in range(5)] == ["a.png", "b.png", "a.png", "b.png", "a.png"]
    (tmp_path / "b.png").unlink()
    gone = next(frames)
    assert (gone.replay_key, gone.data) == ("b.png", b"")
    with pytest.raises(imaging.ImageError):
        to_frame(gone, folder_camera(tmp_path), 1, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "does not exist"),
        (lambda path: path, "holds no images"),
        (lambda path: path / "file.png", "is no folder"),
    ],
)
def test_folder_without_images_is_refused_in_one_line_that_names_it(tmp_path: Path, make: object, message: str) -> None:
    path = make(tmp_path)
    if path.name == "file.png":
        write_image(path)
    with pytest.raises(UsageError, match=message) as caught:
        FolderReplay(folder_camera(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_more_shards_than_images_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(UsageError, match="use fewer shards"):
        playlist(folder_camera(tmp_path, shard=1, shards=2))
