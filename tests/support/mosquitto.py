"""A real MQTT broker for tests: the Debian package mosquitto."""

from __future__ import annotations

import contextlib
import queue
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import reserved_port


class Mosquitto:
    """Runs the broker of the Debian package mosquitto on a port of this machine."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self._config = folder / "mosquitto.conf"
        self.configure("allow_anonymous true")

    def configure(self, *lines: str) -> None:
        """Write its configuration, for the next start."""
        self._config.write_text("\n".join([f"listener {self.port} 127.0.0.1", "persistence false", *lines, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", self._config], stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """Give a broker that is not started yet; skip where it is not installed."""
    pytest.importorskip("paho.mqtt")
    if not shutil.which("mosquitto") and not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("mosquitto is not installed (Debian package mosquitto)")
    broker = Mosquitto(reserved_port(), tmp_path)
    yield broker
    broker.stop()


@contextlib.contextmanager
def mqtt_client(port: int) -> Iterator[Any]:
    """Give a client that is connected; what it subscribes to comes into its queue `received`."""
    from paho.mqtt import client as mqtt

    client, connected = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2), queue.Queue()
    client.received = queue.Queue()
    client.on_connect = lambda *_: connected.put(True)
    client.on_message = lambda _client, _data, message: client.received.put(message)
    client.reconnect_delay_set(0.05, 0.05)
    client.connect_async("127.0.0.1", port)
    client.loop_start()
    connected.get(timeout=30)
    yield client
    client.disconnect()
    client.loop_stop()
