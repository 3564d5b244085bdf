"""Apache Kafka with three nodes on this machine, whose topics have three copies."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.support.ports import reserved_port

NODES: Final = 3
START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 60.0


class KafkaCluster:
    """Runs nodes that are broker and controller at once, from a folder of Apache Kafka 4."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._classpath = f"{home}/libs/*"
        self._folder = folder
        self._ports = [reserved_port() for _ in range(NODES)]
        self._controllers = [reserved_port() for _ in range(NODES)]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * NODES

    @property
    def bootstrap(self) -> str:
        """The addresses of all nodes."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    @property
    def running(self) -> bool:
        """Whether every node's process is alive."""
        return all(process is not None and process.poll() is None for process in self._processes)

    def start(self) -> KafkaCluster:
        """Start the nodes that do not run, and return when all of them listen."""
        if not (self._folder / "1").exists():
            self._format()
        for number in range(NODES):
            if (process := self._processes[number]) is None or process.poll() is not None:
                self._start(number)
        deadline = time.monotonic() + START_TIMEOUT_S
        for port in self._ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"a node does not listen: see {self._folder}") from None
                    time.sleep(0.1)
        return self

    def stop(self) -> None:
        """Stop all nodes in order."""
        for process in self._processes:
            if process is not None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            if process is not None:
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:  # the last nodes have no quorum any more to ask
                    process.kill()
                    process.wait()

    def kill(self, nodes: int = NODES) -> None:
        """Kill the first of the nodes, or all of them."""
        for process in self._processes[:nodes]:
            if process is not None:
                process.kill()
                process.wait()

    def _format(self) -> None:
        tool = ["java", "-cp", self._classpath, "kafka.tools.StorageTool"]
        cluster = subprocess.run([*tool, "random-uuid"], check=True, capture_output=True, text=True).stdout.split()[-1]
        for number in range(NODES):
            folder = self._folder / str(number + 1)
            folder.mkdir(parents=True)
            properties = folder / "server.properties"
            properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties(number).items()))
            subprocess.run([*tool, "format", "-t", cluster, "-c", str(properties)], check=True, capture_output=True)

    def _properties(self, number: int) -> dict[str, object]:
        voters = ",".join(f"{i + 1}@127.0.0.1:{port}" for i, port in enumerate(self._controllers))
        listeners = f"PLAINTEXT://127.0.0.1:{self._ports[number]},CONTROLLER://127.0.0.1:{self._controllers[number]}"
        return {
            "process.roles": "broker,controller",
            "node.id": number + 1,
            "controller.quorum.voters": voters,
            "listeners": listeners,
            "advertised.listeners": listeners.partition(",")[0],
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self._folder / str(number + 1) / "data",
            "offsets.topic.replication.factor": NODES,
            "offsets.topic.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
            "message.max.bytes": 16 << 20,
            "socket.request.max.bytes": 128 << 20,
        }

    def _start(self, number: int) -> None:
        folder = self._folder / str(number + 1)
        java = [
            "java",
            "-Xmx384m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            self._classpath,
            "kafka.Kafka",
        ]
        with (folder / "kafka.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(
                [*java, str(folder / "server.properties")], stdout=log, stderr=log, start_new_session=True
            )
