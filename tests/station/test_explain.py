"""`flawline explain`: the nearest good patch of each region, and a page to look at."""

from __future__ import annotations

import base64
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from discovery.pictures.keeper import picture_store
from discovery.store import schema
from discovery.store.store import Batch, Store, TakenDefect
from flawline import imaging
from flawline.errors import FlawlineError, UsageError
from flawline.messages import Codec, Decision, Tensor
from flawline.settings.scorer import LayerSettings, ScorerSettings
from flawline.settings.tree import load_settings
from scorer import artefact, commands
from scorer.detector import CoresetDetector
from scorer.explain import GoodPatch, Reason, reasons
from scorer.load import load_detector
from scorer.scores import Scores
from scorer.search.bank import unit_rows
from station import explanation
from station.cli.main import app
from station.web.good_patches import GAP_PX, SIDE_PX, GoodPatches
from station.web.live import Pictures
from station.web.models import Models, QuietThread
from tests.discovery import factories
from tests.discovery.pictures import photos
from tests.scorer.conftest import SIDE, draw

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with good images of two products, and the model that was fitted on them."""
    root = tmp_path_factory.mktemp("explained")
    for product in ("cloth", "board"):
        (root / "data" / product / "train/good").mkdir(parents=True)
        for i in range(24):
            cv2.imwrite(str(root / "data" / product / f"train/good/{i:02}.png"), draw(product, i)[:, :, ::-1])
    layers = (
        LayerSettings(size=SIDE, stride=8, rows=200, rows_per_image=20),
        LayerSettings(size=SIDE, stride=16, rows=100, rows_per_image=10, neighbours=5),
    )
    settings = ScorerSettings(layers=layers, threads=2, runtime="openvino", alarm_rate=0.05)
    commands.fit(root / "data", root / "model", settings, report=False)
    spoiled = draw("board", 700)
    spoiled[8:18, 30:40] = (250, 60, 200)
    cv2.imwrite(str(root / "spoiled.png"), spoiled[:, :, ::-1])
    cv2.imwrite(str(root / "fine.png"), draw("board", 701)[:, :, ::-1])
    return root


def explain(line: Path, image: str, out: Path, *more: str):  # type: ignore[no-untyped-def]
    arguments = ["explain", str(line / "model"), str(line / image), "-o", str(out), *more]
    return CliRunner().invoke(app, arguments)


def test_region_stands_beside_the_good_patch_that_its_score_comes_from(line: Path, tmp_path: Path) -> None:
    target = tmp_path / "why.json"
    assert explain(line, "spoiled.png", tmp_path / "page.html", "--json-file", str(target)).exit_code == 0
    report = json.loads(target.read_text())
    assert report["decision"] in ("review", "reject")
    (region, *_) = report["regions"]
    x, y = region["hottest"]
    assert abs(x - 35) <= 10
    assert abs(y - 13) <= 10
    near = region["nearest"]
    assert Path(near["image"]).parent == line / "data/board/train/good"
    # The distance is that of the two patches themselves, computed anew from the two files.
    loaded = load_detector(line / "model")
    index = [layer.stride for layer in loaded.model.layers].index(region["layer"]["stride"])
    ours = loaded.features(cv2.imread(str(line / "spoiled.png"))[:, :, ::-1])[index]
    good = loaded.features(cv2.imread(near["image"])[:, :, ::-1])[index]
    grid = ours.shape[0]
    here = unit_rows(ours[int(y / SIDE * grid), int(x / SIDE * grid)])
    there = unit_rows(good[round(near["box"][1] * grid), round(near["box"][0] * grid)])
    assert near["distance"] == pytest.approx(float(np.linalg.norm(here - there)), abs=2e-3)
    assert near["distance"] <= np.linalg.norm(unit_rows(good.reshape(-1, good.shape[2])) - here, axis=1).min() + 0.2
    pictures = pictures_of((tmp_path / "page.html").read_text())
    assert len(pictures) == 3 + 2 * len(report["regions"])
    assert pictures[0].shape == (SIDE, SIDE, 3)
    assert all(picture.std() > 5 for picture in pictures)


def test_accepted_image_shows_its_hottest_place_and_no_region(line: Path, tmp_path: Path) -> None:
    result = explain(line, "fine.png", tmp_path / "page.html")
    assert result.exit_code == 0
    assert "fine.png: accept" in result.stdout
    assert "no defect; hottest at" in result.stdout
    assert "no defect" in (tmp_path / "page.html").read_text()


def test_pictures_stay_in_the_model_when_the_data_is_gone(line: Path, tmp_path: Path) -> None:
    moved = line / "elsewhere"
    (line / "data").rename(moved)
    try:
        loaded = load_detector(line / "model")
        image = cv2.imread(str(line / "spoiled.png"))[:, :, ::-1]
        (reason,) = reasons(loaded, image, [(0.5, 0.2)])
        assert reason.shown.picture is not None
        assert reason.shown.picture.shape == (SIDE, SIDE, 3)
        assert reason.shown.distance >= reason.nearest.distance
        assert explain(line, "spoiled.png", tmp_path / "page.html").exit_code == 0
    finally:
        moved.rename(line / "data")


def test_evidence_names_every_bank_row_and_is_bounded(line: Path) -> None:
    stored = artefact.load(line / "model")
    evidence = stored.evidence()
    assert evidence is not None
    assert len(evidence.names) == 48
    for k, layers in enumerate(evidence.sources):
        for i, rows in enumerate(layers):
            assert len(rows) == len(stored.model.banks[k][i])
            assert rows.min() >= 0
            assert (stored.model.groups[rows[:, 0]] == k).all()
    assert len(evidence.pictures) <= 12 * 2


def test_what_cannot_be_explained_is_one_line(line: Path, tmp_path: Path) -> None:
    picture = explain(line, "spoiled.png", tmp_path / "page.png").exception
    assert isinstance(picture, UsageError)
    assert ".html" in str(picture)
    gone = explain(line, "nothing.png", tmp_path / "page.html").exception
    assert isinstance(gone, UsageError)
    assert "nothing.png: no such file" in str(gone)
    nowhere = explain(line, "spoiled.png", tmp_path / "none" / "page.html").exception
    assert isinstance(nowhere, FlawlineError)
    assert "cannot be written" in str(nowhere)
    loaded = load_detector(line / "model")
    bare = CoresetDetector(loaded.model, loaded._graphs, loaded._backbone)
    with pytest.raises(FlawlineError, match="does not know where its patches came from"):
        reasons(bare, draw("board", 1), [(0.5, 0.5)])


def test_part_of_a_large_image_and_the_good_tile_are_shown_at_one_scale() -> None:
    whole = np.random.default_rng(0).integers(0, 255, (600, 800, 3)).astype(np.uint8)
    tile = whole[200:400, 400:600]
    nearest = GoodPatch(0, "a.png#xywh=400,200,200,200", (0.45, 0.45, 0.1, 0.1), 0.5, 2.0, tile)
    box = ((400 + 90) / 800, (200 + 90) / 600, 20 / 800, 20 / 600)
    scores = Scores(0, 1.0, 1.0, 0.01, Decision.REJECT, np.ones((8, 8), np.float32))
    place = explanation.Place((490, 290, 20, 20), (500.0, 300.0), 1.0)
    reason = Reason(256, 8, box, nearest, nearest)
    explained = explanation.Explanation("x.png", whole, scores, (place,), (reason,), "v", field_px=200)
    here, good = explanation.crops(explained.pixels, explained.field_px, place, reason)
    assert good is not None
    np.testing.assert_array_equal(here.pixels, good.pixels)
    assert here.box == pytest.approx(good.box)
    assert here.pixels.std() > 20


def test_page_shows_hostile_names_as_text_and_loads_nothing() -> None:
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(2)>.png'
    pixels = np.full((40, 60, 3), 128, np.uint8)
    nearest = GoodPatch(0, hostile, (0.4, 0.4, 0.2, 0.2), 0.5, 2.0, pixels)
    scores = Scores(0, 1.0, 1.0, 0.01, Decision.REJECT, np.ones((8, 8), np.float32))
    place = explanation.Place((10, 10, 20, 20), (20.0, 20.0), 1.0)
    reason = Reason(256, 8, (0.2, 0.2, 0.3, 0.3), nearest, nearest)
    page = explanation.page(explanation.Explanation(hostile, pixels, scores, (place,), (reason,), hostile))
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 3
    addresses = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)


def pictures_of(page: str) -> list[np.ndarray]:
    """Return the pictures of a page, uint8 (H, W, 3) RGB, in their order."""
    encoded = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', page)
    return [imaging.decode(base64.b64decode(data), Codec.JPEG) for data in encoded]


def test_station_shows_the_worst_place_of_a_frame_beside_the_nearest_good_patch(line: Path, tmp_path: Path) -> None:
    (tmp_path / "line.toml").touch()
    settings = load_settings(tmp_path / "line.toml", data_dir=str(tmp_path), worker={"model": str(line / "model")})
    detector = load_detector(line / "model", threads=1)
    data = imaging.encode(imaging.decode((line / "spoiled.png").read_bytes(), Codec.PNG), Codec.PNG)
    (scores,) = detector.score([imaging.decode(data, Codec.PNG)])
    vectors = factories.directions(1)
    made = factories.defect(0, vectors[0], model_version=detector.version, group=scores.group)
    region = replace(made.regions[0], box=(30, 8, 10, 10))
    made = replace(made, heatmap=Tensor.of(scores.heatmap, "float16"), regions=(region,), height=SIDE, width=SIDE)
    place = picture_store(settings)
    place.create()
    key = place.put(data)
    with closing(Store(settings.store_url)) as store:
        verdict = replace(photos.scored(0), model_version=detector.version)
        store.ingest(Batch(verdicts=[verdict], defects=[TakenDefect(made, (None,))]))
        photos.keep(store, verdict, keys=(key,), size_bytes=len(data))
        with store.transaction() as connection:
            connection.execute(update(schema.frame_pictures).values(codec="png"))
        patches = GoodPatches(settings, Models(settings), Pictures())
        patches.thread = QuietThread("good patches", cpu_share=1.0)
        assert patches.of(store, verdict.frame_id) is None  # it is being made
        patches.of(store, "cam-1:1:9")
        patches.thread.submit(lambda: None).result(timeout=60)
        patch = patches.of(store, verdict.frame_id)
        assert patch is not None and patch.problem is None and patch.jpeg is not None
        pair = imaging.decode(patch.jpeg, Codec.JPEG)
        assert pair.shape == (SIDE_PX, 2 * SIDE_PX + GAP_PX, 3)
        (expected,) = reasons(detector, imaging.decode(data, Codec.PNG), [hottest_share(scores.heatmap, region.box)])
        assert (patch.distance, patch.times_usual) == (expected.nearest.distance, expected.nearest.ratio)
        pink = (np.abs(pair.astype(int) - (250, 60, 200)).max(axis=2) < 40).mean(axis=0)
        assert pink[:SIDE_PX].max() > 0.2 > pink[SIDE_PX + GAP_PX :].max()  # the blot is in the frame alone
        accepted = patches.of(store, "cam-1:1:9")
        assert accepted is not None and accepted.jpeg is None and "no heat map" in (accepted.problem or "")


def hottest_share(heatmap: np.ndarray, box: tuple[int, int, int, int]) -> tuple[float, float]:
    x, y = explanation.hottest(heatmap.astype(np.float16), box, SIDE, SIDE)
    return x / SIDE, y / SIDE
