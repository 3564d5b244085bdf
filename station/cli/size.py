"""`flawline size`: what a line of so many cameras needs, by arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, settings_of

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from station.sizing import Load, Needs


def size(
    cameras: Annotated[
        int | None, typer.Option(min=1, help="Number of cameras; default: those of the configuration.")
    ] = None,
    rate_hz: Annotated[
        float | None, typer.Option(min=0.0, help="Frames of each camera in a second; default: as configured.")
    ] = None,
    frame_bytes: Annotated[float, typer.Option("--frame-bytes", min=1, help="Bytes of a frame as it is sent.")] = 200e3,
    precision: Annotated[str, typer.Option(help="f32 or bf16: of the model, on CPUs.")] = "f32",
    cores: Annotated[int, typer.Option(min=1, help="Cores of a machine.")] = 16,
    disk_bytes: Annotated[float, typer.Option("--disk-bytes", min=1, help="Disk of a machine.")] = 4e12,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Say what a line needs: cores or GPUs, partitions, brokers, disks, and what runs short first.

    The figures behind it were measured on other machines or are estimates: docs/scale.md says which.
    """
    from station import sizing, terminal

    settings = settings_of(config)
    if precision not in sizing.SCORED_PER_CORE_S:
        raise UsageError(f"--precision {precision}: choose from {', '.join(sizing.SCORED_PER_CORE_S)}")
    load = _load(settings, cameras, rate_hz, frame_bytes)
    needs = sizing.size(load, settings, sizing.Machine(cores, disk_bytes), precision=precision)
    too_small = sizing.remedies(needs, settings)
    if not terminal.emit_json(needs.as_dict() | {"too_small": too_small}, json, json_file):
        _show(load, needs, too_small)


def _load(settings: Settings, cameras: int | None, rate_hz: float | None, frame_bytes: float) -> Load:
    """Return the load of the options, or of the configured cameras. Raises UsageError when a rate is not known."""
    from station.sizing import Load

    count = cameras or len(settings.cameras)
    if not count:
        raise UsageError("--cameras: no cameras are configured: say how many there will be")
    if rate_hz is None:
        rates = [camera.rate_hz for camera in settings.cameras]
        if not rates or not all(rates):
            raise UsageError("--rate-hz: a camera has no rate_hz, or none is configured: say how many frames a second")
        rate_hz = sum(rates) / len(rates)
    if not rate_hz:
        raise UsageError("--rate-hz 0: no frames need nothing: give a rate above 0")
    return Load(count, rate_hz, frame_bytes)


def _show(load: Load, needs: Needs, too_small: list[str]) -> None:
    from rich.table import Table

    from station import terminal

    table = Table(
        title=f"{load.cameras} cameras, {load.rate_hz:g} frames/s each, {load.frame_bytes / 1e3:g} kB a frame"
    )
    table.add_column("what")
    table.add_column("needs", justify="right")
    rows = {
        "frames, bytes": f"{needs.frames_s:,.0f}/s, {needs.bytes_s / 1e6:,.0f} MB/s",
        "cores of workers, GPUs": f"{needs.worker_cores:,}, {needs.gpus:,}",
        "actors, their memory": f"{needs.actors:,}, {needs.actors_memory_bytes / 1e9:,.0f} GB",
        "kafka.camera_partitions (copies on all brokers)": (
            f"{needs.camera_partitions:,} ({needs.replicas_of_partitions:,})"
        ),
        "brokers, bytes written": f"{needs.brokers}, {needs.broker_writes_bytes_s / 1e6:,.0f} MB/s",
        "disks of brokers: frames, verdicts": (
            f"{needs.frames_disk_bytes / 1e12:,.2f} TB, {needs.verdicts_disk_bytes / 1e12:,.2f} TB"
        ),
        "bucket": f"{needs.bucket_bytes / 1e12:,.2f} TB",
        "processes of producers": f"{needs.producers}",
        "spools, for each hour without a broker": f"{needs.spool_bytes_per_hour / 1e9:,.0f} GB",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    out = terminal.out()
    out.print(table)
    machines = ", ".join(f"{name} {count:.1f}" for name, count in needs.machines.items())
    out.print(f"runs short first: {needs.bottleneck} (machines that each would fill: {machines})", highlight=False)
    for line in too_small:
        out.print(f"too small: {line}", highlight=False)
