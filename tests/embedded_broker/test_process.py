"""The broker as a process: how it starts, refuses to start, ends, and ends with its parent."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from kafka.protocol.consumer import FetchRequest

from embedded_broker import READY_PREFIX, EmbeddedBroker
from embedded_broker.protocol import ErrorCode
from flawline.errors import FlawlineError
from tests.embedded_broker.contract.clients import CLIENTS, wait_until
from tests.support.wire import Wire, frame_of, record_batch

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-m", "embedded_broker"]


def refused(*arguments: str) -> tuple[int, str]:
    """Run the broker that cannot start; return its exit code and its only line of output."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def test_a_data_directory_in_use_is_refused_and_its_holder_named(fresh_broker: EmbeddedBroker) -> None:
    code, line = refused("--data", str(fresh_broker.data_dir), "--port", "0")
    assert code == 1
    assert str(fresh_broker.data_dir) in line
    assert f"process {fresh_broker.pid}" in line


def test_a_port_in_use_is_refused(fresh_broker: EmbeddedBroker, tmp_path: Path) -> None:
    code, line = refused("--data", str(tmp_path / "other"), "--port", str(fresh_broker.port))
    assert code == 1
    assert str(fresh_broker.port) in line
    with pytest.raises(FlawlineError, match=str(fresh_broker.port)):
        EmbeddedBroker(tmp_path / "third", port=fresh_broker.port).start()


@pytest.mark.parametrize("host", ["0.0.0.0", "no.such.host.invalid"])
def test_an_address_that_is_not_loopback_is_bad_usage(tmp_path: Path, host: str) -> None:
    code, line = refused("--data", str(tmp_path), "--port", "0", "--host", host)
    assert code == 2
    assert host in line
    assert "127.0.0.1" in line


def test_a_data_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, line = refused("--data", str(tmp_path / "file" / "below"), "--port", "0")
    assert code == 1
    assert str(tmp_path / "file") in line


def test_a_metadata_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metadata.sqlite").write_bytes(b"this is no database" * 500)
    code, line = refused("--data", str(tmp_path), "--port", "0")
    assert code == 1
    assert str(tmp_path) in line


def test_remote_clients_need_the_explicit_option(tmp_path: Path) -> None:
    options = ("--allow-remote", "--advertised-host", "127.0.0.1")
    with EmbeddedBroker(tmp_path, host="0.0.0.0", options=options) as broker:
        client = CLIENTS["kafka-python"](f"127.0.0.1:{broker.port}")
        client.create_topic("topic")
        client.close()


def test_remote_clients_must_be_told_an_address(tmp_path: Path) -> None:
    code, line = refused("--data", str(tmp_path), "--port", "0", "--host", "0.0.0.0", "--allow-remote")
    assert code == 2
    assert "--advertised-host" in line


@pytest.mark.parametrize(
    "arguments",
    [("--port", "70000"), ("--port", "x"), ("--fsync", "sometimes"), ("--fsync-interval", "0"), ("--partitions", "0")],
    ids=" ".join,
)
def test_options_out_of_range_are_bad_usage(tmp_path: Path, arguments: tuple[str, str]) -> None:
    done = subprocess.run([*COMMAND, "--data", str(tmp_path), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert arguments[0] in last
    assert arguments[1] in last


def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--data", str(tmp_path), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(READY_PREFIX)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors == ""


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from embedded_broker import EmbeddedBroker;"
        "broker = EmbeddedBroker(Path(sys.argv[1])).start(); print(broker.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", "the broker's end")


def test_start_and_stop_can_be_called_twice_and_the_port_stays(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    with pytest.raises(FlawlineError):
        _ = broker.pid
    broker.start()
    port, pid = broker.port, broker.pid
    assert broker.start().pid == pid
    broker.restart()
    assert broker.port == port
    assert broker.pid != pid
    broker.stop()
    broker.stop()
    assert not broker.running


def test_importing_the_handle_is_cheap() -> None:
    script = (
        "import sys; import embedded_broker; "
        "print(sorted({'kafka', 'numpy', 'torch', 'ray', 'asyncio', 'sqlite3'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_full_disk_is_an_error_and_the_producer_goes_on_once_there_is_room(tmp_path: Path) -> None:
    limit_bytes = 3 << 20

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))

    process = subprocess.Popen(
        [*COMMAND, "--data", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=small_disk,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix(READY_PREFIX).strip()
        client = CLIENTS["kafka-python"](address)
        client.create_topic("full")
        batch = record_batch([os.urandom(200_000)], timestamp=int(time.time() * 1000))
        with Wire(address) as wire:
            answers = [wire.produce("full", batch) for _ in range(20)]
            fitting = sum(code == 0 for code, _ in answers)
            assert 10 <= fitting < 16
            assert {code for code, _ in answers[fitting:]} == {ErrorCode.KAFKA_STORAGE_ERROR}
            with client.consumer() as consumer:  # what is there can still be read
                consumer.assign("full", [0])
                assert len(consumer.read(fitting)) == fitting
            with client.producer() as producer:
                waiting = [producer.send("full", b"%d" % index + bytes(200_000)) for index in range(5)]
                time.sleep(0.5)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert [confirm() for confirm in waiting] == list(range(fitting, fitting + 5))
        client.close()
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.count("File too large") == 1  # not once per attempt
    assert "written again" in errors
    assert "Traceback" not in errors


def test_client_that_leaves_in_the_middle_of_an_answer_leaves_no_traceback(fresh_broker: EmbeddedBroker) -> None:
    """The broker reads the end of the client's bytes while its answer waits to be sent, and asyncio then closes."""
    client = CLIENTS["kafka-python"](fresh_broker.bootstrap)
    client.create_topic("topic")
    client.close()
    partition = FetchRequest.FetchTopic.FetchPartition(
        partition=0, fetch_offset=0, log_start_offset=-1, partition_max_bytes=16 << 20
    )
    fetch = FetchRequest(
        replica_id=-1,
        max_wait_ms=0,
        min_bytes=0,
        max_bytes=16 << 20,
        isolation_level=0,
        topics=[FetchRequest.FetchTopic(topic="topic", partitions=[partition])],
    )
    batch = record_batch([bytes(1 << 20)], timestamp=int(time.time() * 1000))
    with Wire(fresh_broker.bootstrap) as wire:
        for _ in range(8):  # more than the buffers of the two sockets hold
            assert wire.produce("topic", batch)[0] == 0
    with Wire(fresh_broker.bootstrap, receive_buffer_bytes=16 << 10) as wire:
        wire.send(frame_of(fetch, 4))
        wire.receive(100)
        wire.finish_sending()
        while wire.receive(64 << 10):
            pass
    fresh_broker.stop()
    assert "Traceback" not in (fresh_broker.data_dir / "broker.log").read_text()
