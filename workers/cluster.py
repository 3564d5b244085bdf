"""Ray: started on this machine, small, or joined where it runs."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from typing import Any

from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 << 20
"""Close to the least that Ray accepts: frames travel through Kafka only, never through Ray's object store."""

_starting = threading.Lock()


def start_ray(settings: Settings) -> None:
    """Start Ray for this line's actors, or join the cluster at `worker.ray_address`; harmless when it runs already.

    May be called early and from another thread, to overlap its seconds with other work. Raises FlawlineError.
    """
    # Read by Ray when it is imported: no reports to its makers, and no warning about actors without a GPU.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _starting:
        import ray

        if ray.is_initialized():
            return
        handlers = _handlers()
        try:
            ray.init(log_to_driver=True, logging_level=logging.ERROR, **_options(settings))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"cluster {settings.worker.ray_address}" if settings.worker.ray_address else "on this machine"
            raise FlawlineError(f"Ray cannot be started ({where}): {' '.join(str(error).split())[:300]}") from error
        finally:
            # Ray ends the process at SIGTERM; the line wants to finish its frames first.
            for number, handler in handlers.items():
                signal.signal(number, handler)


def stop_ray() -> None:
    """Stop what `start_ray` started."""
    with _starting:
        import ray

        ray.shutdown()


def check_room(settings: Settings, actors: int) -> None:
    """Raise UsageError when so many actors do not fit on this machine's Ray, which would wait for room for ever.

    A cluster may grow, so nothing is said about one.
    """
    import ray

    worker = settings.worker
    if worker.ray_address:
        return
    there = ray.cluster_resources()
    for name, each in (("CPU", worker.num_cpus), ("GPU", worker.num_gpus)):
        if actors * each > there.get(name, 0) + 1e-6:
            raise UsageError(
                f"worker.num_{name.lower()}s = {each:g} for {actors} actors needs {actors * each:g} {name}s and Ray "
                f"has {there.get(name, 0):g}: lower it, or run fewer actors"
            )


def _options(settings: Settings) -> dict[str, Any]:
    worker = settings.worker
    if worker.ray_address:
        return {"address": worker.ray_address}
    # Ray places actors by this number only. On fewer CPUs they share, which is slow but works, while Ray would wait.
    cpus = max(os.cpu_count() or 1, math.ceil(worker.actors * worker.num_cpus))
    options: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "num_cpus": cpus,
    }
    if worker.num_gpus == 0:
        options["num_gpus"] = 0  # looking for GPUs takes time
    return options


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    return {number: handler for number, handler in found.items() if handler is not None}
