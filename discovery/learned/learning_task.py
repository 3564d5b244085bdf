"""Runs a learning round beside intake: in a separate process, or as a task on a Ray cluster.

Job and result travel as msgpack in both cases. Every failure there becomes a LearningFailed of one line here.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgpack
import numpy as np

from flawline import ray_session
from flawline.child_process import ChildProcess, exit_text, last_line
from flawline.errors import FlawlineError, one_line
from flawline.settings.tree import Settings
from flawline.stopping import follow_parent

log = logging.getLogger(__name__)

NICENESS = 10


class LearningFailed(FlawlineError):
    """A learning round failed; the classes stay as they were."""


@dataclass(frozen=True, eq=False)
class Job:
    """The input of a learning round: `learning.Task` with crops as the store encodes them, and the backbone's name.

    `ids` are the ids of the n regions; `scores` is empty without pseudo-label correction.
    """

    ids: tuple[int, ...]
    crops: tuple[bytes, ...]
    masks: tuple[bytes, ...]
    vectors: np.ndarray
    start: tuple[int, ...]
    confirmed: tuple[bool, ...]
    scores: tuple[float, ...]
    epochs: int
    seed: int
    backbone: str
    weights: str | None
    device: str

    def encode(self) -> bytes:
        """Return the job as msgpack."""
        values = vars(self) | {"vectors": self.vectors.astype("<f4").tobytes()}
        return msgpack.packb(values, use_bin_type=True)

    @classmethod
    def decode(cls, data: bytes) -> Job:
        """Return the job in `data`, msgpack of `encode`."""
        values = msgpack.unpackb(data, use_list=False)
        vectors = np.frombuffer(values.pop("vectors"), "<f4").reshape(len(values["ids"]), -1)
        return cls(vectors=vectors, **values)


@dataclass(frozen=True)
class Result:
    """The kind of each region by its id, -1 for no defect; the last loss, and how long the round took."""

    labels: dict[int, int]
    loss: float
    seconds: float


class Running(Protocol):
    """A started job."""

    def poll(self) -> Result | None:
        """Return the result, None while the job runs. Raises LearningFailed."""
        ...

    def cancel(self) -> None:
        """End the job at once; does nothing when it has ended."""
        ...


def start(job: Job, settings: Settings) -> Running:
    """Start a job where `discovery.learning_runner` says. Raises LearningFailed when it cannot start."""
    runner = settings.discovery.learning_runner
    if runner == "ray" or (runner == "auto" and settings.worker.ray_address):
        return RayTask(job, settings)
    return LearningProcess(job)


def work(data: bytes) -> bytes:
    """Run an encoded job and return its encoded result. Uses all of torch's threads."""
    from discovery.learned import augment, crop_backbone, learning

    started = time.monotonic()
    job = Job.decode(data)
    backbone = crop_backbone.load(job.backbone, Path(job.weights) if job.weights else None, job.device)
    task = learning.Task(
        crops=[augment.decode(crop, mask) for crop, mask in zip(job.crops, job.masks, strict=True)],
        vectors=job.vectors,
        start=np.array(job.start),
        confirmed=np.array(job.confirmed),
        scores=np.array(job.scores) if job.scores else None,
        epochs=job.epochs,
        seed=job.seed,
    )
    learned = learning.learn(task, backbone)
    labels = [int(label) for label in learned.labels]
    result: bytes = msgpack.packb([list(job.ids), labels, learned.loss, time.monotonic() - started])
    return result


def _result(data: bytes) -> Result:
    ids, labels, loss, seconds = msgpack.unpackb(data)
    return Result(dict(zip(ids, labels, strict=True)), loss, seconds)


class LearningProcess:
    """A job in a separate process, which ends when this process ends."""

    def __init__(self, job: Job) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="flawline-job-")
        folder = Path(self._folder.name)
        self._done, self._log = folder / "result", folder / "log"
        (folder / "job").write_bytes(job.encode())
        command = [sys.executable, "-m", "discovery.learned.learning_task", str(folder / "job"), str(self._done)]
        try:
            with self._log.open("wb") as log_file:
                self._process = ChildProcess(command, stdout=log_file, stderr=log_file)
        except OSError as error:
            self._folder.cleanup()
            raise LearningFailed(f"a process for learning cannot be started: {error.strerror}") from error

    def poll(self) -> Result | None:
        code = self._process.poll()
        if code is None:
            return None
        try:
            if code == 0:
                return _result(self._done.read_bytes())
            reason = last_line(self._log)[:300] or "it printed nothing"
            raise LearningFailed(f"the learning process ended with {exit_text(code)}: {reason}")
        finally:
            self._folder.cleanup()

    def cancel(self) -> None:
        self._process.kill()
        self._folder.cleanup()


class RayTask:
    """A job as a Ray task: on the cluster of `worker.ray_address`, else on a local cluster."""

    def __init__(self, job: Job, settings: Settings) -> None:
        try:
            import ray

            gpus = {} if settings.discovery.learning_gpus else {"num_gpus": 0}
            ray_session.start_ray(settings.worker.ray_address, log_to_driver=False, num_cpus=1, **gpus)
            self._ray: Any = ray
            task = ray.remote(work).options(
                num_cpus=1, num_gpus=settings.discovery.learning_gpus, max_retries=0, name="learning-round"
            )
            self._reference = task.remote(job.encode())
        except (FlawlineError, ImportError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise LearningFailed(f"Ray cannot take a learning round: {one_line(error)}") from error

    def poll(self) -> Result | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return _result(self._ray.get(self._reference))
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise LearningFailed(f"the learning task failed: {one_line(cause)}") from error

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=True)


def main(arguments: list[str]) -> int:
    """Run the job in the first file and write its result to the second. A failure is one line on stderr."""
    follow_parent()
    os.nice(NICENESS)  # frames come first
    job, done = (Path(argument) for argument in arguments)
    try:
        result = work(job.read_bytes())
    except (FlawlineError, MemoryError, RuntimeError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 1
    part = done.with_suffix(".part")
    part.write_bytes(result)
    part.rename(done)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
