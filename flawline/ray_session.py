"""Ray, joined where it runs or started on this machine; imported only when it is needed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Final

from flawline.errors import FlawlineError, one_line

log = logging.getLogger(__name__)

START_LIMIT_S = 180.0
"""Longest time that Ray may take to start. A judgement: it takes 3 s, and took 70 s on two cores at a load of 35."""

SETTINGS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no reports to its makers
    "RAY_COLOR_PREFIX": "0",  # logs go to files
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about actors without a GPU
    # Else `ray.init` waits for the first worker processes, and without end when one of them dies or is too slow.
    "RAY_prestart_worker_first_driver": "0",
    # Ray starts another worker process after 60 s: on a busy machine none would ever be quick enough.
    "RAY_worker_register_timeout_seconds": f"{START_LIMIT_S:.0f}",
}
"""Variables that Ray reads when it is imported, and its processes when they start. Those that are set already stay."""

_starting = threading.Lock()


def start_ray(address: str | None, *, log_to_driver: bool, **local: Any) -> None:
    """Join the Ray cluster at `address`, or start Ray on this machine with the options `local` when it is None.

    Ray on this machine listens on loopback only.
    Does nothing when this process has a session already. May be called from any thread. Raises FlawlineError. A start
    that takes longer than START_LIMIT_S ends the process.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not address:
        # Ray 2.60 replaces 127.0.0.1 by the machine's address and listens on all of them, unless it believes that this
        # system has no clusters: then it listens on loopback only, which one machine needs.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    options = {"address": address} if address else {"address": "local", "include_dashboard": False, **local}
    with _starting:
        try:
            import ray

            if not ray.is_initialized():
                with _kept_signal_handlers(), _ended_after(START_LIMIT_S):
                    ray.init(log_to_driver=log_to_driver, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises bare ones, such as for a machine that is too slow for its time limits
            if address:
                raise FlawlineError(
                    f"Ray cluster {address} cannot be joined: {one_line(error)}: see that it runs, or correct "
                    "worker.ray_address"
                ) from error
            raise FlawlineError(
                f"Ray cannot be started on this machine: {one_line(error)}: free memory and disk, or name a cluster in "
                "worker.ray_address"
            ) from error


def stop_ray() -> None:
    """Stop what `start_ray` started, or leave the cluster that it joined."""
    with _starting:
        import ray

        ray.shutdown()


@contextlib.contextmanager
def _ended_after(limit_s: float) -> Iterator[None]:
    """End this process when the block takes longer: Ray's core waits without end, and no exception reaches it there."""
    timer = threading.Timer(limit_s, _end, [limit_s])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(limit_s: float) -> None:
    log.critical("Ray has not started within %.0f s, so this process ends: free memory and processor time", limit_s)
    os._exit(1)


@contextlib.contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Keep our handlers of SIGTERM and SIGINT while Ray starts and after that: Ray's own end the process at once.

    In the main thread Ray sets a handler when it begins, and its core sets others below Python's when it is up. Started
    from another thread, Ray's processes would end together with that thread.
    """
    from ray._private import utils

    in_main = threading.current_thread() is threading.main_thread()  # only there can Ray, or we, set a handler
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT) if in_main}
    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
