"""The command `flawline`: one sub-command per role. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline import __version__
from flawline.errors import FlawlineError, UsageError
from station.cli.classes import app as classes_app
from station.cli.options import JSON_STDOUT, Config, Json, json_target, settings_of, until_stopped, with_json_target

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from ledger.replay import Filter

app = typer.Typer(
    name="flawline",
    help="Streaming visual inspection of a mixed line: every capture accounted for, defects grouped into classes.",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
dashboards_app = typer.Typer(help="Grafana dashboards as code.", no_args_is_help=True)
topics_app = typer.Typer(help="The line's Kafka topics.", no_args_is_help=True)

DEBUG_VARIABLE = "FLAWLINE_DEBUG"


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; also FLAWLINE_DEBUG=1.")] = False,
) -> None:
    # --debug is taken out of the arguments before they are parsed, so that it may stand anywhere.
    if version:
        print(__version__)
        raise typer.Exit


# Roles that run until they are told to stop


@app.command()
def up(config: Config = None) -> None:
    """Run every role of line.toml on this machine, and the embedded broker when no other is configured."""
    from station import up as supervisor

    settings = settings_of(config, "up")
    until_stopped(lambda stop: supervisor.run(settings, stop, config))


@app.command()
def broker(config: Config = None) -> None:
    """Run the embedded broker alone, in the foreground."""
    from embedded_broker import __main__ as embedded

    settings = settings_of(config, "broker")
    own = settings.embedded
    arguments = ["--data", str(settings.data_dir / "broker"), "--host", own.host, "--port", str(own.port)]
    code = embedded.main([*arguments, "--fsync", own.fsync, "--no-auto-create"])
    if code:
        raise typer.Exit(code)


@app.command()
def produce(
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be given again.")] = None,
    config: Config = None,
) -> None:
    """Publish the frames of the configured cameras."""
    settings = settings_of(config, "produce")
    _known_cameras(settings, camera)
    if not settings.cameras:
        raise UsageError("no cameras are configured: add a [[cameras]] section to line.toml")

    def run(stop: Any) -> None:
        from producers import service

        # It makes the topics itself, in the background: captures do not wait for a broker that is not up yet.
        service.run(settings, stop, cameras=camera or None)

    until_stopped(run)


@app.command()
def work(config: Config = None) -> None:
    """Score frames: Ray actors that are members of one consumer group."""
    settings = settings_of(config, "work")

    def run(stop: Any) -> None:
        from workers import supervisor

        _ensure_topics(settings)
        supervisor.run(settings, stop)

    until_stopped(run)


@app.command()
def discover(
    once: Annotated[
        Path | None, typer.Option("--once", metavar="DATA", help="Only this folder of images: no line, no store.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="With --once: the fitted model that finds the defects.")] = None,
    maps: Annotated[
        Path | None, typer.Option(help="With --once: another detector's maps (.npy, .png), named like the images.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="With --once: so many classes; default: estimated.")] = None,
    out: Annotated[Path | None, typer.Option(help="With --once: folder for report, table and sheet.")] = None,
    json: Json = None,
    config: Config = None,
) -> None:
    """Group defects into classes, and keep them in the store; with --once, those of a folder of images."""
    if once is not None:
        from station.cli import discover as discover_view

        discover_view.once(settings_of(config), once, model, maps, k, out, json_target(json))
        return
    if any(given is not None for given in (model, maps, k, out, json)):
        raise UsageError("--model, --maps, --k, --out and --json belong to discover --once DATA: name the folder")
    settings = settings_of(config, "discover")

    def run(stop: Any) -> None:
        from discovery import service

        _ensure_topics(settings)
        service.run(settings, stop)

    until_stopped(run)


@app.command()
def console(config: Config = None) -> None:
    """Serve the station in the browser: the ledger, the classes, the frames that were not accepted."""
    settings = settings_of(config, "console")

    def run(stop: Any) -> None:
        from station.web import service

        service.run(settings, stop)

    until_stopped(run)


# Models


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="Folder with <product>/train/good/*.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    codec: Annotated[
        str | None,
        typer.Option(
            help="Pass the images through what the cameras deliver: jpeg, or png and raw, which lose nothing."
        ),
    ] = None,
    quality: Annotated[int, typer.Option(min=30, max=100, help="Of the cameras' JPEG, with --codec jpeg.")] = 90,
    json: Json = None,
    config: Config = None,
) -> None:
    """Fit a model on good parts. Product folders are used for reporting only."""
    from station.cli import fitting

    fitting.fit(settings_of(config), data, out, json_target(json), codec, quality)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    data: Annotated[Path, typer.Argument(help="Folder with <product>/test/<good|defect>/*.")],
    scores: Annotated[Path | None, typer.Option(help="File for the scores of each image, .csv or .json.")] = None,
    scenarios: Annotated[
        bool,
        typer.Option(
            "--scenarios",
            help="Compare product labels known or not, at fit and at test: the model's recipe, fitted anew on DATA.",
        ),
    ] = False,
    json: Json = None,
    config: Config = None,
) -> None:
    """Score test images with a model and say how good it is."""
    from station.cli import fitting

    if scenarios:
        if scores is not None:
            raise UsageError("--scores goes without --scenarios, which has four scores for each image: leave one out")
        fitting.compare_scenarios(settings_of(config), model, data, json_target(json))
        return
    fitting.evaluate(settings_of(config), model, data, scores, json_target(json))


@app.command()
def extend(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    images: Annotated[Path, typer.Argument(help="Good parts: an image, a folder of images, or of products.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the extended model; default: MODEL-extended.")
    ] = None,
    bound: Annotated[
        float, typer.Option(min=0, max=1, help="How much the audit may worsen before the extension is refused.")
    ] = 0.02,
    json: Json = None,
    config: Config = None,
) -> None:
    """Add confirmed good parts (false alarms, a new product) to a model without fitting it again."""
    from station.cli import fitting

    fitting.extend(settings_of(config), model, images, out, bound, json_target(json))


@app.command()
def explain(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    image: Annotated[Path, typer.Argument(help="Image file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the page, .png, .jpg or .webp.")],
    json: Json = None,
    config: Config = None,
) -> None:
    """Show why an image was decided on as it was: its regions beside the good patches that are nearest to them."""
    from station.cli import explain as page

    page.run(settings_of(config), model, image, out, json_target(json))


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    role: Annotated[str, typer.Option(help="active or shadow.")] = "active",
    copy: Annotated[bool, typer.Option("--copy", help="Copy it into the data directory first.")] = False,
    uri: Annotated[str | None, typer.Option(help="Where workers find it, when that is another path or a URL.")] = None,
    json: Json = None,
    config: Config = None,
) -> None:
    """Make a model the one that workers use."""
    from station import terminal
    from workers.publish_model import publish_model

    if role not in ("active", "shadow"):
        raise UsageError(f"--role {role}: a model is active or shadow")
    target = json_target(json)
    pointer = publish_model(settings_of(config), model, role, copy=copy, uri=uri)
    if target:
        terminal.emit({"role": pointer.role, "version": pointer.version, "uri": pointer.uri}, target)
    else:
        terminal.out().print(f"{pointer.role} model is now {pointer.version} ({pointer.uri})", highlight=False)


# Reports


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Stream the test images of this folder; default: simulated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    frames: Annotated[int | None, typer.Option(min=1, help="Parts that pass the simulated cameras.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Frames per second of each camera; 0: all it can.")] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Ray actors that score.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the simulated line.")] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the result.")] = False,
    json: Json = None,
    config: Config = None,
) -> None:
    """Run the whole line on this machine, end to end, and measure it against known truth."""
    from station import terminal
    from station.demo import page, summary
    from station.demo.run import Options, run_demo

    target = json_target(json)
    given: dict[str, Any] = {"frames": frames, "rate_hz": rate, "actors": actors, "seed": seed}
    chosen = {name: value for name, value in given.items() if value is not None}
    options = Options(out=out, data=data, **chosen)
    result = run_demo(settings_of(config), options)
    if target:
        terminal.emit(result, target)
    if target != JSON_STDOUT:
        summary.show(result)
    if not no_open:
        page.open_in_browser(Path(result["artefacts"]["page"]))


@app.command()
def ledger(
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be given again.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep counting, and serve the figures as metrics.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between counts, with --watch.")] = 5.0,
    json: Json = None,
    config: Config = None,
) -> None:
    """Account for every capture, from the topics themselves. Exit 1 when it does not balance or there are gaps."""
    from station.cli import ledger as ledger_view

    settings = settings_of(config, "ledger" if watch else "")
    if watch:
        until_stopped(lambda stop: ledger_view.watch(settings, stop, interval))
        return
    report = ledger_view.show(settings, camera or [], json_target(json))
    if not report.balanced or report.total.gaps:
        raise typer.Exit(1)


@app.command()
def replay(
    reason: Annotated[list[str] | None, typer.Option(help="Only this reason; may be given again.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be given again.")] = None,
    older_than: Annotated[str | None, typer.Option(metavar="AGE", help="At least this old: 90s, 30m, 12h, 7d.")] = None,
    newer_than: Annotated[str | None, typer.Option(metavar="AGE", help="At most this old.")] = None,
    send: Annotated[bool, typer.Option("--send", help="Send the open ones to the workers again.")] = False,
    json: Json = None,
    config: Config = None,
) -> None:
    """List dead letters, and with --send give their frames to the workers again."""
    from station.cli import replay as replay_view

    settings = settings_of(config)
    replay_view.run(settings, _letters(reason, camera, older_than, newer_than), send, json_target(json))


@app.command()
def doctor(json: Json = None, config: Config = None) -> None:
    """Print the effective settings, secrets masked, and check everything the line needs. Exit 1 when a check fails."""
    from station.cli import doctor as checks

    if not checks.run(settings_of(config), json_target(json)):
        raise typer.Exit(1)


# Groups of commands


@topics_app.command("create")
def topics_create(config: Config = None) -> None:
    """Create the topics that are missing."""
    from flawline import topics
    from station import terminal

    settings = settings_of(config)
    _ensure_topics(settings)
    for name, topic in topics.named(settings.kafka.topic_prefix):
        terminal.out().print(f"{name}: written by {topic.writers}, read by {topic.readers}", highlight=False)


@dashboards_app.command("push")
def dashboards_push(config: Config = None) -> None:
    """Create or update the dashboards in the Grafana of [grafana]."""
    from discovery.dashboards import push
    from station import terminal

    for line in push.push(settings_of(config)):
        terminal.out().print(line, highlight=False, markup=False)


@dashboards_app.command("write")
def dashboards_write(folder: Annotated[Path, typer.Argument(help="Folder for Grafana's provisioning files.")]) -> None:
    """Write the dashboards as provisioning files."""
    from discovery.dashboards import push
    from station import terminal

    for path in push.write_provisioning(folder):
        terminal.out().print(str(path), highlight=False, markup=False)


app.add_typer(topics_app, name="topics")
app.add_typer(dashboards_app, name="dashboards")
app.add_typer(classes_app, name="classes")


# The edge: arguments in, exit code out


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 fine, 1 the work failed, 2 bad usage or configuration, 130 interrupted."""
    from flawline.stopping import follow_parent

    given = sys.argv[1:] if arguments is None else arguments
    if "--debug" in given:
        given = [argument for argument in given if argument != "--debug"]
        os.environ[DEBUG_VARIABLE] = "1"
    signal.signal(signal.SIGTERM, _on_sigterm)
    follow_parent()
    sys.exit(_run(with_json_target(given)))


def _run(arguments: list[str]) -> int:
    debug = bool(os.environ.get(DEBUG_VARIABLE))
    try:
        return int(app(arguments, standalone_mode=False, prog_name="flawline") or 0)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except FlawlineError as error:
        if debug:
            raise
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # What the command line parser raises knows its exit code; anything else is a mistake of ours.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            said = error.format_message()
            return _failed(f"{said} (see flawline --help)", 2) if said else 2  # without a command: the help was shown
        if debug:
            raise
        text = " ".join(str(error).split())
        return _failed(f"unexpected {type(error).__name__}: {text}: run it with --debug and report what it says", 1)


def _failed(message: str, code: int) -> int:
    from station import terminal

    terminal.fail(f"error: {message}")
    return code


def _on_sigterm(*_: object) -> None:
    raise SystemExit(143)  # so that every `finally` runs


def _ensure_topics(settings: Settings) -> None:
    from flawline import kafka_clients as clients

    clients.ensure_topics(settings)


def _known_cameras(settings: Settings, names: Iterable[str] | None) -> None:
    known = {camera.name for camera in settings.cameras}
    for name in names or ():
        if name not in known:
            raise UsageError(
                f"--camera {name}: is not in the configuration, which has {', '.join(sorted(known)) or 'none'}"
            )


def _letters(
    reasons: list[str] | None, cameras: list[str] | None, older_than: str | None, newer_than: str | None
) -> Filter:
    from flawline.messages import DeadLetterReason
    from ledger.replay import Filter

    known = [str(reason) for reason in DeadLetterReason]
    for reason in reasons or ():
        if reason not in known:
            raise UsageError(f"--reason {reason}: choose from {', '.join(known)}")
    return Filter(
        frozenset(map(DeadLetterReason, reasons or ())),
        frozenset(cameras or ()),
        seconds(older_than, "--older-than") if older_than else None,
        seconds(newer_than, "--newer-than") if newer_than else None,
    )


def seconds(age: str, option: str) -> float:
    """Seconds of an age like `90s`, `30m`, `12h` or `7d`; UsageError for anything else."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = age[:-1], age[-1:]
    if unit not in units or not number.replace(".", "", 1).isdigit():
        raise UsageError(f"{option} {age}: give a number and a unit, such as 90s, 30m, 12h or 7d")
    return float(number) * units[unit]


if __name__ == "__main__":
    main()
