"""A Ray cluster whose nodes are processes of this machine, each in a folder of its own, to be killed and added."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flawline.ray_session import SETTINGS

OBJECT_STORE_BYTES = 80 << 20
"""Close to the least that Ray accepts."""


@dataclass(frozen=True)
class RayNode:
    """A node: its folder, which is the working directory of its actors, and its raylet's process."""

    folder: Path
    raylet: psutil.Process
    node: Any

    def holds(self, pid: int) -> bool:
        """Return whether a process is one of the node's workers."""
        try:
            return bool(psutil.Process(pid).ppid() == self.raylet.pid)
        except psutil.NoSuchProcess:
            return False


class RayCluster:
    """Runs nodes with `cpus` each below `folder`; the first one is the head, which must not be killed."""

    def __init__(self, folder: Path, cpus: float) -> None:
        # Before Ray is imported. A session on one machine may have left the second one in the environment.
        os.environ.update(SETTINGS)
        os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
        from ray.cluster_utils import Cluster

        self._folder = folder
        self._options = {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
        self._cluster = Cluster()
        self.nodes: list[RayNode] = []

    @property
    def address(self) -> str:
        """Return the value of `worker.ray_address`."""
        return str(self._cluster.address)

    def add(self) -> RayNode:
        """Start a node and return it when the cluster has it."""
        folder = self._folder / f"node-{len(self.nodes)}"
        folder.mkdir(parents=True)
        head_only = {} if self.nodes else {"include_dashboard": False}
        with _working_in(folder):
            node = self._cluster.add_node(wait=True, **self._options, **head_only)
        raylet = node.all_processes["raylet"][0].process
        self.nodes.append(RayNode(folder, psutil.Process(raylet.pid), node))
        return self.nodes[-1]

    def kill(self, node: RayNode) -> None:
        """Kill all processes of a node at once, as a machine that loses its power."""
        processes = [node.raylet, *node.raylet.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()  # none notices that another one is gone
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.remove(node)

    def stop(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
