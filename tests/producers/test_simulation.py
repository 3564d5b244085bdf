"""The simulated line: its pictures are a pure function of its settings, and agree with its truth."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flawline.errors import FlawlineError, UsageError
from flawline.settings.producers import SimulatedCamera
from producers.simulated import SimulatedLineCamera, line_settings
from producers.simulation import DEFECTS, PRODUCTS, VARIED_PRODUCTS, LineSettings, SimulatedLine, Truth, write_dataset

QUIET = LineSettings(variation=0)
"""No noise, no blur and even light: any difference of two pictures of one part is the defect's."""

EDGE_PX = 2
"""Defects are drawn with soft edges; so far beyond its mask a defect may still tint a pixel."""

TRUTH_OF_SEED_1 = [
    ("brick", "crack"),
    ("gravel", "stain"),
    ("board", "deformation"),
    ("brick", "stain"),
    ("board", None),
    ("board", None),
]


def every_kind() -> list[tuple[str, str]]:
    varied = itertools.product(VARIED_PRODUCTS, (*DEFECTS, "mismatch"))
    return [*itertools.product(PRODUCTS, DEFECTS), *varied]


def digest(line: SimulatedLine) -> str:
    """Return a hash of pictures, masks and truth of some parts of two cameras and of the good series."""
    total = hashlib.sha256()
    parts = [line.render(camera, index) for camera in ("a", "b") for index in (0, 3, 2**40)]
    for part in [*parts, *line.good_parts(3)]:
        total.update(part.image.tobytes() + part.mask.tobytes() + f"{part.product}/{part.defect}".encode())
    return total.hexdigest()


@pytest.mark.system
def test_same_part_in_another_process_and_in_any_order() -> None:
    # given
    program = (
        "from tests.producers.test_simulation import LineSettings, SimulatedLine, digest;"
        "line = SimulatedLine(LineSettings(seed=11, defect_rate=0.5)); line.render('z', 99); print(digest(line))"
    )
    # when
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()
    # then
    assert digest(SimulatedLine(LineSettings(seed=11, defect_rate=0.5))) == other


def test_truth_is_the_same_on_every_platform() -> None:
    # Written down once: a change of numpy, of Python's hash seed or of the code must not move what a seed means.
    line = SimulatedLine(LineSettings(seed=1, defect_rate=0.5))
    seen = [line.truth("camera-1", index) for index in range(6)]
    assert [(truth.product, truth.defect) for truth in seen] == TRUTH_OF_SEED_1


def test_seeds_and_cameras_show_different_parts() -> None:
    line, other = SimulatedLine(LineSettings(seed=1)), SimulatedLine(LineSettings(seed=2))
    first = line.render("a", 0).image
    for another in (line.render("b", 0), line.render("a", 1), other.render("a", 0)):
        assert not np.array_equal(first, another.image)


def test_good_parts_have_no_defect_cover_every_product_and_are_not_those_of_a_camera() -> None:
    line = SimulatedLine(LineSettings(seed=3, defect_rate=1.0, height=64, width=64))
    good = list(line.good_parts(2 * len(PRODUCTS)))
    assert [part.product for part in good] == 2 * list(PRODUCTS)
    assert all(part.defect is None and not part.mask.any() for part in good)
    later = next(line.good_parts(1, start=5))
    assert np.array_equal(later.image, good[5].image)
    assert not np.array_equal(next(line.good_parts(1, seed=4)).image, good[0].image)
    assert not any(np.array_equal(line.flawless(name, 0).image, good[0].image) for name in ("good", "a"))


@given(
    seed=st.integers(0, 2**63 - 1),
    camera=st.text(min_size=1, max_size=20),
    index=st.integers(0, 2**63 - 1),
    sides=st.tuples(st.integers(64, 200), st.integers(64, 200)),
    size=st.floats(0.25, 4),
    contrast=st.floats(0.05, 1),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
)
@hypothesis_settings(max_examples=60)
def test_any_settings_give_a_picture_whose_truth_agrees(
    seed: int, camera: str, index: int, sides: tuple[int, int], size: float, contrast: float, rate: float
) -> None:
    height, width = sides
    line = SimulatedLine(LineSettings(seed, defect_rate=rate, size=size, contrast=contrast, height=height, width=width))
    part = line.render(camera, index)
    assert line.truth(camera, index) == Truth(part.product, part.defect)
    assert part.image.shape == (height, width, 3)
    assert part.image.dtype == np.uint8
    assert part.mask.shape == (height, width)
    assert part.mask.any() == (part.defect is not None)
    if rate in (0.0, 1.0):
        assert (part.defect is not None) == bool(rate)


def test_every_product_and_defect_occurs_at_its_rate() -> None:
    line = SimulatedLine(LineSettings(defect_rate=0.3))
    seen = [line.truth("a", index) for index in range(4000)]
    for product in PRODUCTS:
        assert sum(truth.product == product for truth in seen) == pytest.approx(4000 / len(PRODUCTS), rel=0.2)
    for defect in DEFECTS:
        assert sum(truth.defect == defect for truth in seen) == pytest.approx(1200 / len(DEFECTS), rel=0.3)


def test_only_the_named_products_and_defects_occur() -> None:
    line = SimulatedLine(LineSettings(products=("disc", "label"), defects=("hole",), defect_rate=0.5))
    seen = {line.truth("a", index) for index in range(200)}
    assert {truth.product for truth in seen} == {"disc", "label"}
    assert {truth.defect for truth in seen} == {None, "hole"}


@pytest.mark.parametrize(("product", "defect"), every_kind())
def test_defect_changes_its_mask_and_only_its_mask(product: str, defect: str) -> None:
    line = SimulatedLine(QUIET)
    inside, outside = [], []
    for index in range(3):
        good = line.part(Truth(product, None), index).image.astype(int)
        bad = line.part(Truth(product, defect), index)
        changed = np.abs(bad.image.astype(int) - good).max(axis=2)
        near = cv2.dilate(bad.mask.astype(np.uint8), np.ones((2 * EDGE_PX + 1, 2 * EDGE_PX + 1))) > 0
        inside.append(np.median(changed[bad.mask]))
        outside.append(changed[~near].max())
        assert 0.002 < bad.mask.mean() < 0.08
    assert min(inside) >= 12, f"median change inside the mask {inside} of 255"
    # The faintest fringe of a stain and a component's soft shadow are no part of the mask.
    assert max(outside) <= (40 if defect in ("missing", "misplaced") else 16)


@pytest.mark.parametrize("defect", DEFECTS)
def test_flawless_twin_differs_by_the_defect_alone(defect: str) -> None:
    line = SimulatedLine(LineSettings(seed=5, defects=(defect,), defect_rate=1))
    part, twin = line.render("a", 0), line.flawless("a", 0)
    assert (part.product, twin.defect, twin.mask.any()) == (twin.product, None, False)
    changed = (part.image != twin.image).any(axis=2)
    near = cv2.dilate(part.mask.astype(np.uint8), np.ones((19, 19))) > 0  # lens blur and shadows reach a little further
    assert changed[part.mask].mean() > 0.5
    assert not changed[~near].any()


@pytest.mark.parametrize(("product", "defect"), every_kind())
def test_more_contrast_makes_a_defect_more_visible_with_the_same_mask(product: str, defect: str) -> None:
    changes, masks = [], []
    for contrast in (0.1, 0.4, 0.7, 1.0):
        line = SimulatedLine(replace(QUIET, contrast=contrast))
        good, bad = line.part(Truth(product, None), 1), line.part(Truth(product, defect), 1)
        changes.append(np.abs(bad.image.astype(int) - good.image)[bad.mask].mean())
        masks.append(bad.mask)
    assert changes == sorted(changes)
    assert changes[-1] > 2 * changes[0]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("defect", DEFECTS)
def test_larger_size_gives_a_defect_more_area(defect: str) -> None:
    areas = []
    for size in (0.25, 0.5, 0.9, 1.3):
        line = SimulatedLine(replace(QUIET, size=size))
        areas.append(np.mean([line.part(Truth("disc", defect), index).mask.mean() for index in range(6)]))
    assert areas == sorted(areas)
    assert areas[-1] > 1.3 * areas[0]


def test_area_in_units_of_the_picture_does_not_depend_on_resolution() -> None:
    small, large = (
        SimulatedLine(LineSettings(height=side, width=side)).part(Truth("board", "stain"), 2).mask.mean()
        for side in (128, 512)
    )
    assert small == pytest.approx(large, rel=0.25)


def test_products_look_different_and_parts_of_one_product_alike() -> None:
    line = SimulatedLine(LineSettings())
    colour = {
        product: np.array([line.part(Truth(product, None), i).image.mean((0, 1)) for i in range(6)])
        for product in PRODUCTS
    }
    spread = max(parts.std(axis=0).max() for parts in colour.values())
    nearest = min(np.linalg.norm(colour[a].mean(0) - colour[b].mean(0)) for a, b in itertools.combinations(PRODUCTS, 2))
    assert nearest > spread


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"height": 8}, "height is 8"),
        ({"width": 100_000}, "width is 100000"),
        ({"defect_rate": 1.5}, "defect_rate is 1.5"),
        ({"size": 0}, "size is 0"),
        ({"contrast": float("nan")}, "contrast is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"products": ("disc", "spoon")}, "'spoon'"),
        ({"defects": ()}, "defects is empty"),
        ({"defects": ("hole", "hole")}, "twice"),
        ({"products": ("bottle", "disc"), "defects": ("mismatch",)}, "disc has no variants"),
    ],
)
def test_wrong_setting_is_refused_in_one_line_that_names_it(wrong: dict, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        LineSettings(**wrong)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bottles_come_in_all_flavours_and_a_mismatch_shows_the_fruit_of_another() -> None:
    line = SimulatedLine(LineSettings(products=("bottle",), defects=("mismatch",), defect_rate=0.5))
    parts = [line.render("a", index) for index in range(40)]
    flavours = np.array([np.argmax(part.image[210:225, 90:160].mean((0, 1))) for part in parts])  # lime or not
    assert 0.15 < (flavours == 1).mean() < 0.6
    for index, part in enumerate(parts):
        if part.defect == "mismatch":
            good = line.flawless("a", index).image
            assert not np.array_equal(part.image[part.mask], good[part.mask])
            near = cv2.dilate(part.mask.astype(np.uint8), np.ones((19, 19))) > 0
            assert np.array_equal(part.image[~near], good[~near])


def test_dataset_has_the_mvtec_layout_and_its_masks_match(tmp_path: Path) -> None:
    settings = LineSettings(products=("disc", "label"), defects=("hole", "missing"), height=64, width=96)
    count = write_dataset(tmp_path / "data", settings, train=3, test_good=2, test_per_defect=2)
    assert count == 2 * (3 + 2 + 2 * 2)
    for product in ("disc", "label"):
        folder = tmp_path / "data" / product
        assert len(list((folder / "train/good").glob("*.png"))) == 3
        assert len(list((folder / "test/good").glob("*.png"))) == 2
        for picture in (folder / "test/hole").glob("*.png"):
            mask = cv2.imread(str(folder / "ground_truth/hole" / f"{picture.stem}_mask.png"), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (64, 96)
            assert set(np.unique(mask)) == {0, 255}
    with pytest.raises(FlawlineError, match="not an empty folder"):
        write_dataset(tmp_path / "data", settings)


def camera(**changes: object) -> SimulatedCamera:
    return SimulatedCamera.model_validate(
        {"name": "cam", "kind": "simulated", "seed": 7, "frames": 5, "height": 64, "width": 80, "defect_rate": 0.5}
        | changes
    )


def test_camera_shows_its_parts_in_order_stamped_before_rendering_and_ends() -> None:
    # given
    settings, stamps = camera(), itertools.count(1_000)
    source = SimulatedLineCamera(settings, now=lambda: next(stamps))
    # when
    source.open()
    captures = list(source.frames())
    # then
    line = SimulatedLine(line_settings(settings))
    assert [capture.captured_at for capture in captures] == [1_000, 1_001, 1_002, 1_003, 1_004]
    for index, capture in enumerate(captures):
        assert np.array_equal(capture.pixels, line.render("cam", index).image)


def test_capture_holds_nothing_of_the_truth() -> None:
    source = SimulatedLineCamera(camera(defect_rate=1.0, products=["disc"], defects=["hole"]))
    source.open()
    capture = next(source.frames())
    fields = [capture.part, capture.view, capture.lot, capture.trigger, capture.data, capture.codec]
    assert fields == [None] * len(fields)
    assert capture.replay_key == "0"


def test_endless_camera_ends_when_closed_and_starts_again_from_its_first_part() -> None:
    source = SimulatedLineCamera(camera(frames=None))
    source.open()
    shown = source.frames()
    first = next(shown)
    next(shown)
    source.close()
    assert next(shown, None) is None
    source.open()
    assert np.array_equal(next(source.frames()).pixels, first.pixels)


def test_camera_settings_reach_the_line() -> None:
    settings = camera(products=["label"], defects=["crack"], size=2.0, contrast=0.5)
    assert line_settings(settings) == LineSettings(
        seed=7, products=("label",), defects=("crack",), defect_rate=0.5, size=2.0, contrast=0.5, height=64, width=80
    )
    defaults = line_settings(SimulatedCamera(name="cam", kind="simulated"))
    assert (defaults.products, defaults.defects) == (PRODUCTS, DEFECTS)


def test_camera_with_an_unknown_product_does_not_start() -> None:
    with pytest.raises(UsageError, match="unknown name 'spoon' in products: choose from brick, "):
        SimulatedLineCamera(camera(products=["spoon"]))
