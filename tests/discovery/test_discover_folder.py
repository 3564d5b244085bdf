"""Classes of a folder of images: by maps of another detector and by a model, k given or not, and what is wrong."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from discovery.offline import discover_folder
from flawline.errors import FlawlineError, UsageError
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer.fit import fit_detector
from station.cli.main import main
from tests.discovery.drawings import KINDS, draw, write_folder

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def settings(vit_weights):
    """Return settings with a tiny, untrained transformer for crops; it can tell colours and shapes apart."""
    return DiscoverySettings(device="cpu", class_limit=6, crop_backbone="test_vit", crop_weights=vit_weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures"), 12, good=4)


def test_maps_of_another_detector_give_the_kinds(folder, settings, tmp_path):
    report = discover_folder.run(folder, settings, maps=folder.parent / "maps", k=3, out=tmp_path)
    assert (report["images"], report["k"]["found"], report["k"]["true"]) == (40, 3, 3)
    assert report["agreement"]["defects"]["accuracy"] >= 0.9
    assert report["agreement"]["defects"]["images"] == 36
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert len(rows) == 40
    assert [row["class"] for row in rows if row["kind"] == "good"].count("") >= 3
    assert json.loads((tmp_path / "classes.json").read_text())["regions"] == report["regions"]
    sheet = (tmp_path / "classes.html").read_text()
    assert all(entry["id"] in sheet for entry in report["classes"])
    assert sheet.count("<img") == report["regions"]


def test_number_of_classes_is_estimated_when_none_is_given(folder, settings):
    report = discover_folder.run(folder, settings, maps=folder.parent / "maps")
    assert report["k"]["given"] is None
    assert report["k"]["found"] == len(report["classes"]) >= 2
    assert report["k"]["proposals"].keys() >= {"silhouette", "density", "stability"}
    assert report["agreement"]["defects"]["nmi"] >= 0.5


def test_learned_mode_keeps_clear_kinds(folder, settings):
    learned = settings.model_copy(update={"mode": "learned", "learning_epochs": 2})
    report = discover_folder.run(folder, learned, maps=folder.parent / "maps", k=3)
    assert report["mode"] == "learned"
    assert report["agreement"]["defects"]["accuracy"] >= 0.9


def test_model_finds_the_defects_and_leaves_good_images_without_a_class(folder, tmp_path, capsys):
    rng = np.random.default_rng(9)
    layers = (LayerSettings(size=64, stride=8, rows=300, rows_per_image=20),)
    small = ScorerSettings(layers=layers, threads=2, runtime="openvino", alarm_rate=0.05)
    fit_detector([draw("good", rng)[0] for _ in range(40)], small).save(tmp_path / "model")
    arguments = ["discover", "--once", str(folder), "--model", str(tmp_path / "model"), "--k", "3"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json-file", str(tmp_path / "found.json")])
    assert ended.value.code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "found.json").read_text())
    assert report["images_with_regions"] >= 30
    assert report["agreement"]["all"]["images"] == 40
    assert sum(entry["kinds"].get("good", 0) for entry in report["classes"]) <= 1
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": None}, "give either --model MODEL, or --maps DIR"),
        ({"k": 0}, "--k 0"),
        ({"k": 99}, "only .* regions were found"),
        ({"k": None}, "6 images .at most 4 regions each. are too few to tell how many kinds"),
        ({"data": "nowhere"}, "no such folder"),
        ({"data": "empty"}, "holds no images"),
        ({"maps": "elsewhere"}, "no anomaly map for"),
        ({"spoilt": np.full((4, 4), np.nan)}, "NaN or infinity"),
        ({"spoilt": np.zeros((2, 3, 4))}, "is no anomaly map"),
        ({"spoilt": np.array(["x"])}, "is no anomaly map"),
        ({"constant": True}, "all maps peak at 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, settings, change, message):
    data = write_folder(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    maps = tmp_path / "maps"
    for path in maps.glob("*/*"):
        if change.get("constant"):
            np.save(path, np.ones((8, 8)))
    if "spoilt" in change:
        np.save(maps / KINDS[0] / "0.npy", change["spoilt"])
    options = {"maps": maps, "k": change.get("k", 2)} | {name: change[name] for name in ("maps",) if name in change}
    if isinstance(options["maps"], str):
        options["maps"] = tmp_path / options["maps"]
    source = tmp_path / change["data"] if "data" in change else data
    with pytest.raises((UsageError, FlawlineError), match=message) as raised:
        discover_folder.run(source, settings, **options)
    assert "\n" not in str(raised.value)


def test_too_few_regions_are_refused_as_soon_as_that_is_known(tmp_path, settings):
    data = write_folder(tmp_path, 10)  # each image has one region, but for those made empty
    seen = []
    for path in (tmp_path / "maps").glob("*/[0-5].npy"):
        np.save(path, np.zeros((8, 8)))
    with pytest.raises(FlawlineError, match=r"regions so far, and \d images .* to come, are too few"):
        discover_folder.run(data, settings, maps=tmp_path / "maps", progress=lambda done, *_: seen.append(done))
    assert 0 < len(seen) < 29


def test_place_that_cannot_be_written_is_said_before_the_work(folder, settings, tmp_path):
    (tmp_path / "taken").write_text("a file")
    seen = []
    with pytest.raises(FlawlineError, match=r"--out .*taken: cannot be written: .*: choose another folder"):
        discover_folder.run(
            folder,
            settings,
            maps=folder.parent / "maps",
            out=tmp_path / "taken",
            progress=lambda done, *_: seen.append(done),
        )
    assert not seen


def test_options_of_once_alone_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["discover", "--k", "3"])
    assert ended.value.code == 2
    assert "belong to discover --once" in capsys.readouterr().err
