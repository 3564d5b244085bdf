"""The demo as a user runs it: a process of its own, its JSON, its artefacts, and what a killed actor changes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.running import DEADLINE_S, finish, start_demo, verdict_rows, verdicts_so_far
from tests.support.brokers import ApacheKafka
from tests.support.modes import open_to_others

FRAMES = 320


def verdicts(result: dict[str, Any]) -> dict[tuple[str, int], tuple[float, str]]:
    return {(row["camera"], row["sequence"]): (row["score"], row["decision"]) for row in verdict_rows(result)}


def actors_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    actors = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith("ray::Inspector"):
                actors.append(child)
        except psutil.NoSuchProcess:
            continue
    return actors


def wait_for_verdicts(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    """Wait until the running demo's line has published `count` verdicts."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        if verdicts_so_far(folder / "run" / "line.toml") >= count:
            return
        time.sleep(0.3)
    pytest.fail(f"{count} verdicts did not come: " + (folder / "stderr.txt").read_text()[-2000:])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return finish(start_demo(folder, "--frames", str(FRAMES)), folder)


@pytest.mark.timeout(320)
def test_demo_reports_a_balanced_ledger_and_good_figures(undisturbed: dict[str, Any]) -> None:
    ledger = undisturbed["ledger"]
    assert ledger["balanced"] and ledger["gaps"] == 0
    assert ledger["captured"] == ledger["scored"] == FRAMES
    assert undisturbed["quality"]["pooled_image_auroc"] >= 0.97
    assert undisturbed["alarm_rate"]["measured"] <= 0.05
    assert undisturbed["classes"]["found"] >= 2, undisturbed["classes"]
    assert undisturbed["peak_rss_bytes"] < 6 << 30


@pytest.mark.timeout(320)
def test_what_a_demo_writes_is_hidden_from_other_users(undisturbed: dict[str, Any]) -> None:
    folder = Path(undisturbed["artefacts"]["verdicts"]).parent
    assert (folder / "line.toml").is_file()
    assert open_to_others(folder) == []
    assert len(verdicts(undisturbed)) == FRAMES
    for artefact in ("page", "model", "verdicts", "config"):
        assert Path(undisturbed["artefacts"][artefact]).exists()
    page = Path(undisturbed["artefacts"]["page"]).read_text()
    assert "data:image/jpeg;base64," in page and "balanced" in page


@pytest.mark.timeout(320)
def test_killing_an_actor_changes_no_verdict(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    process = start_demo(tmp_path, "--frames", str(FRAMES))
    try:
        wait_for_verdicts(tmp_path, process, FRAMES // 4)
        victims = actors_of(process)
        assert victims, "no actor process was found to kill"
        victims[0].send_signal(signal.SIGKILL)
        result = finish(process, tmp_path)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert result["ledger"]["balanced"] and result["ledger"]["gaps"] == 0
    before, after = verdicts(undisturbed), verdicts(result)
    assert before.keys() == after.keys()
    for identity, (score, decision) in before.items():
        assert after[identity][0] == pytest.approx(score, rel=1e-6, abs=1e-6), identity
        assert after[identity][1] == decision


@pytest.mark.timeout(320)
def test_demo_on_apache_kafka_embeds_nothing(apache_kafka: ApacheKafka, tmp_path: Path) -> None:
    frames = FRAMES // 2
    process = start_demo(tmp_path, "--frames", str(frames), FLAWLINE_KAFKA__BOOTSTRAP_SERVERS=apache_kafka.bootstrap)
    result = finish(process, tmp_path)
    assert result["ledger"]["balanced"] and result["ledger"]["gaps"] == 0
    assert result["ledger"]["scored"] == frames
    assert not (tmp_path / "run" / "broker").exists()


def test_an_existing_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("keep me")
    process = start_demo(tmp_path)
    assert process.wait(60) == 2
    assert (tmp_path / "run" / "precious.txt").read_text() == "keep me"
    error = (tmp_path / "stderr.txt").read_text().strip()
    assert "name a new or empty folder" in " ".join(error.split())
    assert os.linesep.join(error.splitlines()[1:]) == ""


def test_missing_data_folder_is_one_line(tmp_path: Path) -> None:
    process = start_demo(tmp_path, "--data", str(tmp_path / "nowhere"))
    assert process.wait(60) == 2
    error = (tmp_path / "stderr.txt").read_text().strip()
    assert "no such folder" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
