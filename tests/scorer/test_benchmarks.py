"""The benchmarks measure what the product does, with the one thing changed that they name."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import frontier, report, scorer_ablations, scorer_growth, scorer_search
from flawline.settings.scorer import ScorerSettings
from scorer.detector import CoresetDetector
from tests.scorer.conftest import draw, good_images

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def figures(settings: ScorerSettings) -> dict[str, float]:
    test = [(p, bad, draw(p, 700 + i, defect=bad)) for p in ("cloth", "board") for bad in (0, 1) for i in range(10)]
    products, defects, images = zip(*test, strict=True)
    return scorer_ablations.ablations(good_images(), images, products, [bool(bad) for bad in defects], settings)


def test_the_products_cell_is_the_product(figures: dict[str, float], fitted: CoresetDetector) -> None:
    images = [draw(p, 700 + i, defect=bad) for p in ("cloth", "board") for bad in (False, True) for i in range(10)]
    aligned = [scores.aligned for scores in fitted.score(images)]
    is_defect = np.tile(np.repeat([False, True], 10), 2)
    assert figures["ablation.product.cross_fit.pooled"] == pytest.approx(roc_auc_score(is_defect, aligned))


def test_cells_differ_by_what_they_are_named_after(figures: dict[str, float]) -> None:
    assert len(figures) == len(scorer_ablations.ROWS) * len(scorer_ablations.COLUMNS) * 6
    assert all(0 <= value <= 1 for value in figures.values())
    for row in scorer_ablations.ROWS:
        # Scores against banks that hold the image itself are too low, so that every good part to come is alarmed.
        leak = figures[f"ablation.{row}.in_sample.alarm_rate"] - figures[f"ablation.{row}.cross_fit.alarm_rate"]
        assert leak > 0.3
    for figure in ("pooled", "macro"):  # one level for all shifts all scores alike
        assert figures[f"ablation.flat.cross_fit.{figure}"] == figures[f"ablation.flat.raw.{figure}"]
        assert figures[f"ablation.neighbour.raw.{figure}"] == figures[f"ablation.grouped.raw.{figure}"]
    table = scorer_ablations.table(figures).splitlines()
    assert [line.split("|")[1].strip() for line in table[4:]] == list(scorer_ablations.ROWS)
    assert f"{figures['ablation.product.head.pooled']:.3f}" in table[-1]


def test_head_predicts_what_the_embedding_tells_and_not_the_pasted_defect() -> None:
    rng = np.random.default_rng(0)
    looks = rng.standard_normal((200, 6)).astype(np.float32)
    log_scores = 2 * looks[:, 0] + 0.05 * rng.standard_normal(200)
    defect = rng.standard_normal(200).astype(np.float32)
    clean, changed = (np.column_stack([looks, column]).astype(np.float32) for column in (np.zeros(200), defect))
    good, wanted = scorer_ablations.head(log_scores, clean, changed, changed[:50])
    assert np.abs(good - log_scores).mean() < 0.2
    assert np.abs(wanted - log_scores[:50]).mean() < 0.2


def test_simulated_fit_images_are_the_same_each_time_and_of_so_many_products() -> None:
    drawn = scorer_growth.Drawn(40)
    np.testing.assert_array_equal(drawn[21], scorer_growth.Drawn(80)[21])
    assert drawn[0].shape == (scorer_growth.FIT_SIDE, scorer_growth.FIT_SIDE, 3)
    gap = [np.abs(drawn[a].mean(axis=(0, 1)) - drawn[b].mean(axis=(0, 1))).max() for a, b in ((0, 20), (0, 1))]
    assert gap[0] < 2 < gap[1]
    with pytest.raises(IndexError):
        drawn[40]


def test_search_is_exact_on_the_patches_of_images_and_the_8_bit_index_is_not(fitted: CoresetDetector) -> None:
    figures = scorer_search.compare(fitted, [draw("cloth", 700), draw("board", 701, defect=True)])
    assert figures["search_exact_share_ours"] == figures["search_exact_share_faiss_flat"] == 1
    assert figures["search_worst_loss_ours"] <= scorer_search.TOLERANCE
    assert figures["search_worst_loss_faiss_8bit"] > scorer_search.TOLERANCE
    for name in ("faiss_flat", "faiss_8bit"):
        ratio = figures[f"search_ms_per_image_{name}"] / figures["search_ms_per_image_ours"]
        assert figures[f"search_times_{name}"] == pytest.approx(ratio)
    lines = scorer_search.table(figures).splitlines()
    assert [line.split("|")[1].split()[0] for line in lines[2:]] == ["ours", "faiss", "faiss"]


def test_report_for_people_names_goals_versions_and_seeds(tmp_path: Path) -> None:
    content = report.emit(
        "b", {"speed": 3.0, "share": 0.5}, {"share": (">=", 0.8)}, tmp_path / "b.json", details={"seed": 7}
    )
    text = report.markdown(content, {"Parts": "| a |\n|---|\n| 1 |"})
    assert "| share | 0.5 | >= 0.8 | no |" in text
    assert "| speed | 3.0 |  |  |" in text
    assert "| seed | 7 |" in text
    assert "## Parts\n\n| a |" in text
    assert all(f"| {name} | " in text for name in ("python", "cpu", "cores", "openvino", "numpy", "faiss-cpu", "torch"))


@pytest.mark.parametrize(("words", "file"), [([], None), (["--json"], None), (["--json", "b.json"], Path("b.json"))])
def test_report_is_asked_for_with_or_without_a_file(words: list[str], file: Path | None) -> None:
    parser = argparse.ArgumentParser()
    report.add_json_option(parser)
    assert parser.parse_args(words).json == file


def test_figure_of_the_frontier_has_every_point_in_its_place() -> None:
    figures = {
        f"{name}.{figure}": value
        for name, milliseconds, auroc in (("fast", 5.0, 0.92), ("accurate", 20.0, 0.94))
        for figure, value in (
            ("processor_ms_per_image", milliseconds),
            ("pooled_image_auroc", auroc),
            ("macro_image_auroc", auroc + 0.01),
        )
    }
    root = ElementTree.fromstring(frontier.drawing(figures, ["fast", "accurate"]))
    marks = [element for element in root.iter() if element.tag.endswith("circle") and "." in element.attrib["cx"]]
    (fast, accurate), _ = [[(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in marks[i : i + 2]] for i in (0, 2)]
    assert accurate[0] < fast[0], "the faster one is to the right"
    assert accurate[1] < fast[1], "the better one is higher"


WITHOUT_SERVERS = """
import sys

for name in ("ray", "faiss", "openvino", "kafka", "sqlalchemy", "prometheus_client", "fastapi"):
    sys.modules[name] = None  # as if it were not installed
from benchmarks import gpu

gpu.GOOD_PER_PRODUCT, gpu.BATCHES = 12, (1, 4)
gpu.BACKBONES = {"lite0": ("tf_efficientnet_lite0", tuple(
    layer.model_copy(update={"size": 64, "rows": 64, "stride": stride, "earlier": False})
    for layer, stride in zip(gpu.PROFILES["fast"][:2], (8, 16))
))}
gpu.main(["--device", "cpu", "--minutes", "0.01", "--only", "lite0", "--json", sys.argv[1]])
"""


def test_the_benchmark_of_a_gpu_runs_on_a_machine_without_ray_faiss_and_openvino(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-c", WITHOUT_SERVERS, str(output)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    figures = json.loads(output.read_text())["figures"]
    assert figures["lite0.f32.scoring.4"] > 0
    assert figures["lite0.f32.off"] < 1e-2
    assert figures["lite0.f32.batches_off"] < 1e-3
    assert figures["lite0.f32.decisions"] == 0
    assert 0 < figures["lite0.f32.alarms"] < 1
    assert figures["search.torch_cpu.40"] > 0
    assert not [name for name in figures if "faiss" in name]
