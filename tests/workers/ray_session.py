"""Ray for tests: one start for the session, and supervisors on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flawline.settings.tree import Settings
from flawline.settings.workers import WorkerSettings
from tests.workers.line import load_plain, wait_until
from workers.autoscale import bounds
from workers.inspector import Load
from workers.supervisor import Supervisor, start_ray, stop_ray


@contextmanager
def running_ray() -> Iterator[None]:
    """Run Ray on this machine with room for the tests' actors, each of half a CPU."""
    start_ray(Settings(data_dir=Path("data"), worker=WorkerSettings(actors=4, num_cpus=0.5)))
    yield
    stop_ray()


@contextmanager
def supervising(settings: Settings, load: Load = load_plain) -> Iterator[Supervisor]:
    """Yield a supervisor whose actors are ready and have answered."""
    supervisor = Supervisor(settings, load=load)
    try:
        assert supervisor.start()
        wait_until(lambda: len(supervisor.actor_pids()) == bounds(settings).fewest)
        yield supervisor
        supervisor.check()
    finally:
        supervisor.stop()
