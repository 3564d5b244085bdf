"""What a line needs follows from its load by arithmetic, and docs/scale.md shows what the arithmetic gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flawline import messages, topics
from flawline.settings.tree import Settings
from station import sizing
from station.cli.main import main
from station.sizing import Load, Machine, size
from tests.support import example_messages

DOCS = Path(__file__).parents[2] / "docs"
CLUSTER = {"kafka": {"bootstrap_servers": "kafka:9092", "replication_factor": 3, "min_insync_replicas": 2}}


def settings(**sections: object) -> Settings:
    return Settings.model_validate(CLUSTER | sections)


def test_a_line_is_the_sum_of_its_cameras():
    needs = size(Load(cameras=100, rate_hz=5, frame_bytes=200e3), settings(), Machine())
    assert (needs.frames_s, needs.bytes_s) == (500, 100e6)
    assert needs.worker_cores == 13  # 500 frames/s: 10 ms to score, 2.8 ms to decode, half of each core used
    assert (needs.actors, needs.camera_partitions) == (10, 40)
    assert needs.replicas_of_partitions == 40 * 3 * 3  # topics per camera, copies
    assert needs.broker_writes_bytes_s == 500 * (200e3 + sizing.RECORD_BYTES) * 3
    assert needs.frames_disk_bytes == 100e6 * 6 * 3600 * 3
    assert needs.spool_bytes_per_hour == 100e6 * 3600


@pytest.mark.parametrize("factor", [2, 10])
def test_what_grows_with_the_cameras_grows_in_proportion(factor):
    few, many = (size(Load(count, 5, 200e3), settings(), Machine()) for count in (100, 100 * factor))
    assert many.frames_disk_bytes == factor * few.frames_disk_bytes
    assert many.actors == factor * few.actors
    assert many.brokers >= few.brokers
    assert many.machines == pytest.approx({name: factor * count for name, count in few.machines.items()})


def test_a_small_line_still_needs_one_of_each_and_a_broker_for_each_copy():
    needs = size(Load(1, 0.1, 1e3), settings(), Machine())
    assert (needs.worker_cores, needs.actors, needs.producers, needs.brokers, needs.gpus) == (1, 1, 1, 3, 0)


def test_settings_change_what_is_needed():
    load, machine = Load(100, 5, 200e3), Machine()
    plain = size(load, settings(), machine)
    assert size(load, settings(worker={"num_cpus": 5}), machine).actors == 2
    assert size(load, settings(scorer={"profile": "accurate"}), machine).actors == 5 * plain.actors
    assert size(load, settings(), machine, precision="bf16").actors == 8
    half = size(load, settings(retention={"frames_hours": 3}), machine)
    assert half.frames_disk_bytes == plain.frames_disk_bytes / 2


def test_gpus_take_the_place_of_cores():
    worker = {"num_gpus": 0.5}
    needs = size(Load(1000, 5, 200e3), settings(worker=worker), Machine())
    assert (needs.gpus, needs.worker_cores, needs.actors) == (2, 28, 4)  # cores that decode
    assert "worker.decode_threads = 1: 7 or more" in sizing.remedies(needs, settings(worker=worker))
    transformer = settings(worker=worker, scorer={"profile": "foundation"})
    assert size(Load(1000, 5, 200e3), transformer, Machine()).gpus == 5


def test_large_frames_go_to_the_bucket_where_there_is_one():
    load, frames = Load(100, 1, 4e6), {"objects_url": "s3://line/objects"}
    beside = size(load, settings(frames=frames), Machine())
    assert beside.bucket_bytes == 400e6 * 6 * 3600 and beside.frames_disk_bytes == 0
    assert beside.broker_writes_bytes_s == 100 * 2 * sizing.RECORD_BYTES * 3
    assert size(load, settings(), Machine()).bucket_bytes == 0
    assert size(Load(100, 1, 200e3), settings(frames=frames), Machine()).bucket_bytes == 0


def test_the_bottleneck_is_what_fills_most_machines():
    load = Load(100, 5, 200e3)
    assert size(load, settings(), Machine(cores=1)).bottleneck == "cores of workers"
    assert size(load, settings(), Machine(disk_bytes=1e11)).bottleneck == "disks of brokers"
    assert size(load, settings(), Machine(network_bytes_s=1e7)).bottleneck == "network of workers"
    assert size(load, settings(retention={"frames_hours": 1}), Machine()).bottleneck == "what brokers write"


def test_settings_that_are_too_small_are_named_with_what_they_should_be():
    line = settings()
    needs = size(Load(100, 5, 200e3), line, Machine())
    named = sizing.remedies(needs, line)
    assert "kafka.camera_partitions = 8: 40 or more" in named
    assert f"retention.frames_limit_bytes = {16 << 30}: 2160000000000 or more" in named
    assert not sizing.remedies(size(Load(1, 0.1, 1e4), line, Machine()), line)


def test_a_record_without_an_image_is_not_larger_than_assumed():
    for kind in (messages.Verdict, messages.Frame):
        example = example_messages.example(kind)
        headers = sum(len(name) + len(value) for name, value in messages.headers(example))
        assert len(messages.encode(example)) + headers < sizing.RECORD_BYTES
    assert sum(topic.per_camera for topic in topics.ALL) == 3


# The command


def test_the_command_sizes_the_configured_line_or_another(tmp_path, capsys):
    file = tmp_path / "line.toml"
    file.write_text('[[cameras]]\nname = "a"\nkind = "simulated"\nrate_hz = 4\n')
    with pytest.raises(SystemExit) as ended:
        main(["size", "--config", str(file), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["frames_s"] == 4
    with pytest.raises(SystemExit):
        main(["size", "--config", str(file), "--cameras", "100", "--rate-hz", "5"])
    printed = capsys.readouterr().out
    assert "100 cameras, 5 frames/s each, 200 kB a frame" in printed
    assert "runs short first: what brokers write" not in printed and "runs short first: " in printed
    assert "too small: kafka.camera_partitions = 8: 40 or more" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--cameras: no cameras are configured"),
        (["--cameras", "3"], "--rate-hz: a camera has no rate_hz"),
        (["--cameras", "3", "--rate-hz", "0"], "--rate-hz 0"),
        (["--cameras", "3", "--rate-hz", "1", "--precision", "f8"], "--precision f8: choose from f32, bf16"),
    ],
)
def test_a_load_that_is_not_known_is_an_error_of_one_line(arguments, message, tmp_path, capsys):
    file = tmp_path / "line.toml"
    file.write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["size", "--config", str(file), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# docs/scale.md


LOADS = {
    "5 frames/s of 200 kB": (5, 200e3, {}),
    "the same, on GPUs, ViT-S/14": (5, 200e3, {"worker": {"num_gpus": 0.5}, "scorer": {"profile": "foundation"}}),
    "1 frame/s of 4 MB, in a bucket": (1, 4e6, {"frames": {"objects_url": "s3://line/objects"}}),
}


def rows() -> list[str]:
    """Return the table of docs/scale.md."""
    lines = []
    for name, (rate_hz, frame_bytes, sections) in LOADS.items():
        for cameras in (10, 100, 300, 1000):
            needs = size(Load(cameras, rate_hz, frame_bytes), settings(**sections), Machine())
            cells = [
                name,
                f"{cameras:,}",
                f"{needs.bytes_s / 1e6:,.0f} MB/s",
                f"{needs.worker_cores}",
                f"{needs.gpus}",
                f"{needs.actors:,}",
                f"{needs.camera_partitions:,}",
                f"{needs.brokers}",
                f"{(needs.frames_disk_bytes + needs.verdicts_disk_bytes) / 1e12:,.1f} TB",
                f"{needs.bucket_bytes / 1e12:,.1f} TB",
                f"{needs.producers}",
                f"{needs.bottleneck} ({needs.machines[needs.bottleneck]:.1f})",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def test_the_table_of_the_docs_is_what_the_arithmetic_gives():
    text = (DOCS / "scale.md").read_text()
    for row in rows():
        assert row in text
    assert len(re.findall(r"^\| (?:5 frames/s|the same|1 frame/s)", text, re.MULTILINE)) == len(rows())
