"""Ray: started on this machine, small, or joined where it runs."""

from __future__ import annotations

import math
import os
from typing import Any

from flawline import ray_session
from flawline.errors import UsageError
from flawline.settings.tree import Settings
from workers.autoscale import bounds

OBJECT_STORE_BYTES = 80 << 20
"""Close to the least that Ray accepts: frames travel through Kafka only, never through Ray's object store."""


def start_ray(settings: Settings) -> None:
    """Start Ray for this line's actors, or join the cluster at `worker.ray_address`; harmless when it runs already.

    May be called early and from another thread, to overlap its seconds with other work. Raises FlawlineError.
    """
    ray_session.start_ray(settings.worker.ray_address, log_to_driver=True, **_local_options(settings))


def check_room(settings: Settings, actors: int) -> None:
    """Raise UsageError when so many actors do not fit on this machine's Ray, which would wait for room for ever.

    A cluster may grow, so it is not checked.
    """
    import ray

    worker = settings.worker
    if worker.ray_address:
        return
    resources = ray.cluster_resources()
    for name, share in (("CPU", worker.num_cpus), ("GPU", worker.num_gpus)):
        if actors * share > resources.get(name, 0) + 1e-6:
            raise UsageError(
                f"worker.num_{name.lower()}s = {share:g} for {actors} actors needs {actors * share:g} {name}s and Ray "
                f"has {resources.get(name, 0):g}: lower it, or run fewer actors"
            )


def _local_options(settings: Settings) -> dict[str, Any]:
    worker = settings.worker
    # Ray places actors by this number only. On fewer CPUs they share, which is slow but works, while Ray would wait.
    cpus = max(os.cpu_count() or 1, math.ceil(bounds(settings).most * worker.num_cpus))
    options: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "num_cpus": cpus}
    if worker.num_gpus == 0:
        options["num_gpus"] = 0  # looking for GPUs takes time
    return options
