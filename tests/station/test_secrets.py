"""A secret in any setting is in no output of any command: results, errors, tracebacks, JSON and log lines."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer
from pydantic import BaseModel, SecretStr, ValidationError

from flawline import redaction
from flawline.errors import FlawlineError
from flawline.logs import KAFKA_LINE_LENGTH, configure_logging
from flawline.redaction import redact
from flawline.settings import tree
from flawline.settings.outbound import WebhookSettings
from flawline.settings.producers import RtspCamera
from flawline.settings.tree import Settings, load_settings
from flawline.stopping import Stop
from station.cli import doctor, main
from station.cli.options import DEBUG_VARIABLE
from station.demo import stage

SECRET = "Zx9-pl4nted%2Fq'c7ret"
TRACES = ("Zx9", "pl4nted", "c7ret")
"""No part of the secret may be seen: errors of libraries are cut anywhere."""

SHAPES = {
    "bare": SECRET,
    "userinfo": f"http://user:{SECRET}@host:9092/x",
    "token as the user": f"s3://{SECRET}@bucket/x",
    "query": f"http://host:9092/x?api_key={SECRET}&size=3",
    "without a scheme": f"user:{SECRET}@host:9092",
    "of several brokers": f"SASL_SSL://a:{SECRET}@host:9092,SASL_SSL://b:{SECRET}@host:9093",
}

CLOSED = "127.0.0.1:1"
"""An address of a broker that is away."""


def leaves(model: type[BaseModel], *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every setting of a model that is no section."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, *path, name)
        else:
            yield *path, name


SETTINGS = [leaf for leaf in leaves(Settings) if leaf not in {("cameras",), ("webhooks",)}]
CAMERA_KINDS = typing.get_args(typing.get_args(tree.AnyCamera)[0])
WEBHOOK_SETTINGS = sorted(WebhookSettings.model_fields)
CAMERA_SETTINGS = sorted({leaf[0] for kind in CAMERA_KINDS for leaf in leaves(kind)})


def may_be_bare(key: str) -> bool:
    """Tell whether a value that is a secret as a whole may stand under this key, and is no name or path by itself."""
    return redaction.is_secret_key(key) or key == "bootstrap_servers"


def seen(text: str) -> list[str]:
    """Return the parts of the secret that are in a text."""
    return [trace for trace in TRACES if trace in text]


def nested(leaf: tuple[str, ...], value: str) -> dict[str, Any]:
    result: Any = value
    for name in reversed(leaf):
        result = {name: result}
    return dict(result)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("FLAWLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def shown(content: dict[str, Any], folder: Path) -> str:
    """Return what is shown of these settings: the error with its traceback, or the settings as `doctor` prints them."""
    file = folder / "line.toml"
    file.write_text(tomli_w.dumps(content))
    try:
        settings = load_settings(file)
    except FlawlineError as error:
        assert "\n" not in str(error)
        return "".join(traceback.format_exception(error))
    return str(doctor.masked(settings))


@pytest.mark.parametrize("leaf", SETTINGS, ids=".".join)
def test_no_setting_shows_a_secret_whatever_its_shape(leaf: tuple[str, ...], tmp_path: Path) -> None:
    for name, value in SHAPES.items():
        if name != "bare" or may_be_bare(leaf[-1]):
            assert not seen(shown(nested(leaf, value), tmp_path)), name


@pytest.mark.parametrize("key", CAMERA_SETTINGS)
def test_no_setting_of_a_camera_shows_a_secret(key: str, tmp_path: Path) -> None:
    for kind, name in itertools.product(CAMERA_KINDS, ("bare", "userinfo", "query")):
        if name != "bare" or may_be_bare(key):
            camera = {"name": "c", "kind": typing.get_args(kind.model_fields["kind"].annotation)[0]} | {
                key: SHAPES[name]
            }
            assert not seen(shown({"cameras": [camera]}, tmp_path)), (kind, name)


@pytest.mark.parametrize("key", WEBHOOK_SETTINGS)
def test_no_setting_of_a_webhook_shows_a_secret(key: str, tmp_path: Path) -> None:
    for name in ("bare", "userinfo", "query"):
        if name != "bare" or may_be_bare(key):
            hook = {"name": "w", "url": "http://h/x"} | {key: SHAPES[name]}
            assert not seen(shown({"webhooks": [hook]}, tmp_path)), name


@pytest.mark.parametrize("leaf", SETTINGS, ids=".".join)
def test_no_variable_shows_a_secret(leaf: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bare", "userinfo"):
        if name != "bare" or may_be_bare(leaf[-1]):
            monkeypatch.setenv(f"FLAWLINE_{'__'.join(leaf).upper()}", SHAPES[name])
            assert not seen(shown({}, tmp_path)), name


@pytest.mark.parametrize("text", [f'{{"sasl_password": "{SECRET}", "x": 1}}', f'{{"sasl_password": "{SECRET}'])
def test_wrong_section_in_a_variable_shows_no_secret(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAWLINE_KAFKA", text)
    told = shown({}, tmp_path)
    assert "UsageError" in told and not seen(told)


@pytest.mark.parametrize("key", ["password", "sasl_pasword", "sasl_password"])
def test_secret_under_a_wrong_key_is_not_repeated(key: str, tmp_path: Path) -> None:
    told = shown({"kafka": {key: SECRET, "x": SECRET}}, tmp_path)
    assert "unknown key" in told and not seen(told)


def test_every_key_of_a_secret_type_is_known_as_one() -> None:
    def is_secret(model: type[BaseModel], name: str) -> bool:
        return SecretStr in {model.model_fields[name].annotation, *typing.get_args(model.model_fields[name].annotation)}

    models: list[type[BaseModel]] = [RtspCamera, *CAMERA_KINDS, WebhookSettings]
    models += [field.annotation for field in Settings.model_fields.values() if isinstance(field.annotation, type)
               and issubclass(field.annotation, BaseModel)]  # fmt: skip
    keys = {name for model in models for name in model.model_fields if is_secret(model, name)}
    assert keys == tree.SECRET_KEYS
    assert all(redaction.is_secret_key(key) for key in keys)


ALL_SECRETS: dict[str, Any] = {
    "kafka": {"bootstrap_servers": CLOSED, "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN",
              "sasl_username": SHAPES["query"], "sasl_password": SECRET},
    "frames": {"objects_url": SHAPES["token as the user"]},
    "worker": {"model": SHAPES["userinfo"], "weights": SHAPES["query"], "ray_address": SHAPES["userinfo"]},
    "scorer": {"backbone": SHAPES["query"], "weights": SHAPES["userinfo"]},
    "store": {"url": f"oracle://user:{SECRET}@127.0.0.1:1/line?sslpassword={SECRET}"},
    "grafana": {"url": SHAPES["userinfo"], "token": SECRET, "prometheus_url": SHAPES["userinfo"],
                "store_url": f"postgresql://u:{SECRET}@h/x", "folder": SHAPES["query"],
                "station_url": SHAPES["userinfo"], "contact_points": SHAPES["userinfo"]},
    "discovery": {"crop_backbone": SHAPES["query"], "crop_weights": SHAPES["userinfo"]},
    "console": {"names": [SHAPES["userinfo"]]},
    "pictures": {"url": f"s3://{SECRET}@pictures/x"},
    "parts": {"token": SECRET, "mqtt_url": f"mqtt://u:{SECRET}@127.0.0.1:1", "mqtt_topic": SHAPES["userinfo"]},
    "outbound": {"mqtt_url": f"mqtt://u:{SECRET}@127.0.0.1:1", "mqtt_username": SHAPES["query"],
                 "mqtt_password": SECRET, "mqtt_prefix": SHAPES["userinfo"]},
    "webhooks": [{"name": "w", "url": f"http://u:{SECRET}@127.0.0.1:1/{SECRET}?key={SECRET}", "secret": SECRET,
                  "token": SECRET}],
    "cameras": [{"name": "c", "kind": "rtsp", "url": f"rtsp://u:{SECRET}@127.0.0.1:1/{SECRET}?password={SECRET}"},
                {"name": "d", "kind": "folder", "path": SHAPES["userinfo"], "mask": SHAPES["query"]}],
}  # fmt: skip

NOT_PLANTED = {
    ("data_dir",), ("kafka", "ssl_cafile"), ("kafka", "ssl_certfile"), ("kafka", "ssl_keyfile"), ("embedded", "host"),
    ("producer", "spool_dir"), ("metrics", "host"), ("console", "host"), ("parts", "host"), ("outbound", "mqtt_cafile"),
    ("outbound", "mqtt_certfile"), ("outbound", "mqtt_keyfile"),
}  # fmt: skip
"""Folders, files and hosts, without which every command would end with the same error."""


def test_every_setting_that_takes_an_address_with_a_secret_is_planted(tmp_path: Path) -> None:
    planted = {(name, key) for name, section in ALL_SECRETS.items() if isinstance(section, dict) for key in section} | {
        (name,) for name in ALL_SECRETS
    }

    def is_taken(leaf: tuple[str, ...]) -> bool:
        (tmp_path / "line.toml").write_text(tomli_w.dumps(nested(leaf, SHAPES["userinfo"])))
        try:
            load_settings(tmp_path / "line.toml")
        except FlawlineError:
            return False
        return True

    assert {leaf for leaf in SETTINGS if is_taken(leaf)} - planted == NOT_PLANTED


ROLE_S = 1.0
"""How long a role runs that does not end by itself."""

STORES = [ALL_SECRETS["store"]["url"], f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/line", SECRET]

COMMANDS = [
    ["doctor"],
    ["doctor", "--json"],
    ["doctor", "--json-file", "report.json"],
    ["up"],
    ["cameras", "test"],
    ["produce"],
    ["produce", "--camera", "c"],
    ["work"],
    ["discover"],
    ["discover", "--once"],
    ["console"],
    ["notify"],
    ["ledger"],
    ["ledger", "--watch"],
    ["replay"],
    ["topics", "create"],
    ["status"],
    ["status", "--json"],
    ["report"],
    ["report", "--json"],
    ["dashboards", "push"],
    ["dashboards", "diff"],
    ["dashboards", "diff", "--json"],
    ["dashboards", "export", "boards"],
    ["classes", "list"],
    ["classes", "list", "--json"],
    ["classes", "show", "C-1"],
    ["classes", "name", "C-1", "scratch"],
    ["classes", "merge", "C-1", "C-2"],
    ["classes", "split", "C-1"],
    ["classes", "assign", "1,2", "--into", "C-1"],
    ["classes", "dismiss", "C-1"],
    ["classes", "severity", "C-1", "3"],
    ["classes", "undo"],
    ["classes", "restore", "C-1"],
    ["classes", "dismissed"],
    ["groups", "list"],
    ["groups", "name", "m1", "0", "screws"],
    ["groups", "carry", "m1", "m2"],
    ["groups", "undo"],
    ["judgements", "list"],
    ["judgements", "judge", "top:1:0", "real"],
    ["judgements", "undo", "top:1:0"],
    ["judgements", "rates"],
    ["judgements", "export", "alarms"],
    ["users", "list"],
    ["users", "list", "--json"],
    ["users", "add", "ana", "--role", "view"],
    ["users", "add", "ana", "--role", "view", "--token-file", "token"],
    ["users", "password", "ana", "--password-file", "/dev/null"],
    ["users", "remove", "ana"],
    ["publish", "."],
    ["promote"],
    ["rollback"],
    ["models"],
    ["size"],
    ["topics", "acls"],
    ["objects", "create"],
    ["objects", "collect"],
    ["dashboards", "write", "boards"],
    ["init", "--camera", f"c={SHAPES['userinfo']}", "--good", ".", "--force"],
    ["fit", ".", "--out", "model"],
    ["extend", ".", ".", "--out", "x"],
    ["evaluate", ".", "."],
    ["explain", ".", "part.png", "-o", "page.html"],
]


def every_command(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command of the command line."""
    for name, part in getattr(command, "commands", {}).items():
        yield from every_command(part, *path, name)
    if not hasattr(command, "commands"):
        yield path


def test_every_command_is_tried() -> None:
    """Not `demo`, which makes its own settings (see below), and not `broker`, which reads three settings and serves."""
    tried = {" ".join(arguments) for arguments in COMMANDS}
    commands = {" ".join(words) for words in every_command(typer.main.get_command(main.app))} - {"demo", "broker"}
    assert not {command for command in commands if not any(f"{line} ".startswith(f"{command} ") for line in tried)}


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command in this process as the shell would, and return all that it writes; JSON files included."""
    (tmp_path / "part.png").touch()

    def run(arguments: list[str]) -> str:
        capfd.readouterr()
        redaction.redact_output()
        try:
            main._run(arguments)
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
        out, err = capfd.readouterr()
        return out + err + "".join(file.read_text() for file in tmp_path.glob("*.json"))

    @contextmanager
    def stop_soon() -> Iterator[Stop]:
        stop = Stop()
        timer = threading.Timer(ROLE_S, stop.set)
        timer.start()
        try:
            yield stop
        finally:
            timer.cancel()

    monkeypatch.setattr("flawline.stopping.stop_on_signals", stop_soon)
    monkeypatch.setattr("flawline.kafka_clients.BOOTSTRAP_TIMEOUT_MS", 300)
    return run


@pytest.mark.system
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_shows_a_secret(
    arguments: list[str], debug: bool, run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if debug:
        monkeypatch.setenv(DEBUG_VARIABLE, "1")
    for store in STORES:
        (tmp_path / "line.toml").write_text(tomli_w.dumps(ALL_SECRETS | {"store": {"url": store}}))
        told = run(arguments)
        assert told and not seen(told)


@pytest.mark.system
def test_a_wrong_setting_is_told_by_every_command_without_its_secret(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    (tmp_path / "line.toml").write_text(tomli_w.dumps({"kafka": {"bootstrap_servers": SHAPES["userinfo"]}}))
    for arguments in COMMANDS:
        told = run(arguments)
        assert told and not seen(told), arguments


def test_log_line_of_a_library_shows_no_secret(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text(tomli_w.dumps(ALL_SECRETS))
    configure_logging(load_settings(), "produce")
    library = logging.getLogger("sqlalchemy.pool")
    library.error("authentication of %r failed: %s", SECRET, {"password": redaction.unquote(SECRET)})
    try:
        raise RuntimeError(f"dsn host=x password={SECRET}")
    except RuntimeError:
        library.exception("while connecting to rtsp://u:%s@h/x", SECRET)
    written = capsys.readouterr().err
    assert written.count("sqlalchemy.pool") == 2 and not seen(written)


def test_line_of_the_kafka_client_that_is_cut_shows_no_part_of_a_secret(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "line.toml").write_text(tomli_w.dumps(ALL_SECRETS))
    configure_logging(load_settings(), "produce")
    logging.getLogger("kafka.net").error("x" * (KAFKA_LINE_LENGTH - len(SECRET) // 2) + SECRET)
    written = capsys.readouterr().err
    assert "kafka.net" in written and not seen(written)


def test_process_that_gets_the_settings_from_another_knows_their_secrets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "line.toml").write_text(tomli_w.dumps(ALL_SECRETS))
    sent = pickle.dumps(load_settings())
    redaction.forget()
    configure_logging(pickle.loads(sent), "actor-0")
    logging.getLogger("x").error("no access with %s", SECRET)
    assert "no access with ***" in capsys.readouterr().err


def test_error_shows_no_secret_wherever_it_is_written() -> None:
    """Messages of errors go into dead letters and pages of the console, too."""
    redaction.remember([SECRET])
    assert str(FlawlineError(f"{SECRET} at {SHAPES['userinfo']}")) == "*** at http://***@host:9092/x"


def test_demo_writes_no_secret_into_its_settings(tmp_path: Path) -> None:
    content = ALL_SECRETS | {"worker": {}, "console": {}, "discovery": {}, "scorer": {}}
    content["grafana"] = {"token": SECRET, "store_url": STORES[1]}
    content["kafka"] = {"sasl_password": SECRET}
    (tmp_path / "line.toml").write_text(tomli_w.dumps(content))
    base = load_settings()
    out = stage.prepare_folder(tmp_path / "demo")
    stage.write_settings(out, base, CLOSED, [], 1)
    text = (out / "line.toml").read_text()
    assert not seen(text) and "**" not in text
    assert (out / "line.toml").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text",
    [
        f"x={SECRET}",
        f"'{SECRET}'",
        repr({"password": SECRET}),
        f"{redaction.unquote(SECRET)} and {redaction.quote(redaction.unquote(SECRET), safe='')}",
    ],
)
def test_known_secret_is_hidden_in_every_form(text: str) -> None:
    redaction.remember([SECRET])
    assert not seen(redact(text))


def test_known_secret_of_digits_does_not_cut_a_longer_number() -> None:
    redaction.remember(["123456"])
    assert redact("at 91234567 with 123456") == "at 91234567 with ***"


def test_short_secret_leaves_other_text_alone() -> None:
    redaction.remember(["ok"])
    assert redact("ok") == "ok"
    assert redact("http://u:ok@h password=ok") == "http://***@h password=***"


def test_validation_error_of_pydantic_is_not_the_cause_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "line.toml"
    file.write_text("[worker]\nactors = 'many'\n")
    with pytest.raises(FlawlineError) as raised:
        load_settings(file)
    assert isinstance(raised.value.__context__, ValidationError) and raised.value.__suppress_context__


def test_stream_is_wrapped_once() -> None:
    redaction.redact_output()
    first = sys.stdout
    redaction.redact_output()
    assert sys.stdout is first and not sys.stdout.isatty()
