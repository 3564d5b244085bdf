"""The command line as a user meets it: one line for what is wrong, its exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console

from flawline.errors import FlawlineError, UsageError
from station import terminal
from station.cli import ledger, main
from station.cli.options import DEBUG_VARIABLE

pytestmark = pytest.mark.system


def flawline(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLAWLINE_")}
    command = [sys.executable, "-m", "station.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=120)


def is_one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.startswith("error: ") and "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense", "flawline --help"]),
        (["ledger", "--nonsense"], ["--nonsense"]),
        (["fit"], ["data"]),
        (["ledger", "--config", "nowhere.toml"], ["nowhere.toml", "no such config file"]),
        (["doctor", "--json-file", "no/such/folder/x.json"], ["no/such/folder/x.json", "folder that exists"]),
        (["doctor", "--json-file", "."], ["--json-file .", "cannot be written"]),
        (["doctor", "--json", "x.json"], ["x.json", "--json takes no value", "--json-file FILE"]),
        (["doctor", "--json=x.json"], ["--json takes no value", "--json-file FILE"]),
        (["fit", "--json", "x.json", "DATA", "--out", "m"], ["DATA", "--json takes no value", "--json-file FILE"]),
        (["fit", "--json", "TYPO", "--out", "m"], ["TYPO", "no such folder"]),
        (["evaluate", "--json", "x.json", "MODEL", "DATA"], ["--json takes no value", "--json-file FILE"]),
        (["classes", "show", "--json", "x.json", "C-1"], ["--json takes no value", "--json-file FILE"]),
        (["ledger", "--watch", "--json"], ["--watch", "leave them out"]),
        (["explain", "model", "part.png", "-o", "page.png"], ["page.png", ".html"]),
        (["explain", "model", "part.png", "-o", "page.html"], ["part.png", "no such file"]),
        (["replay", "--reason", "boredom"], ["boredom", "undecodable"]),
        (["replay", "--older-than", "soon"], ["--older-than soon", "12h"]),
        (["publish", "nowhere"], ["nowhere", "flawline fit"]),
        (["publish", ".", "--role", "star"], ["--role star", "active"]),
        (["produce", "--camera", "nobody"], ["nobody"]),
        (["fit", "nowhere", "--out", "model"], ["nowhere", "no such folder"]),
        (["evaluate", "nowhere", "nowhere"], ["nowhere"]),
        (["demo", "--data", "nowhere", "--no-open"], ["nowhere", "no such folder"]),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = flawline(tmp_path, *arguments)
    assert done.returncode == 2 and is_one_line(done.stderr) and not done.stdout, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_wrong_key_in_the_file_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text("[worker]\nactros = 2\n")
    done = flawline(tmp_path, "ledger")
    assert done.returncode == 2 and is_one_line(done.stderr) and "worker.actros" in done.stderr


def test_broker_that_is_away_is_one_line_and_exit_1(tmp_path: Path, refusing_port: int) -> None:
    address = f"127.0.0.1:{refusing_port}"
    done = flawline(tmp_path, "ledger", FLAWLINE_KAFKA__BOOTSTRAP_SERVERS=address)
    assert done.returncode == 1 and is_one_line(done.stderr), done.stderr
    assert address in done.stderr and "kafka.bootstrap_servers" in done.stderr


def test_port_in_use_is_one_line_and_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = flawline(tmp_path, "broker", FLAWLINE_EMBEDDED__PORT=port)
    assert done.returncode == 1 and is_one_line(done.stderr) and port in done.stderr


def test_metrics_port_in_use_is_one_line_and_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = flawline(tmp_path, "ledger", "--watch", FLAWLINE_METRICS__LEDGER_PORT=port)
    assert done.returncode == 1 and is_one_line(done.stderr) and port in done.stderr


def test_help_is_quick_and_names_every_role(tmp_path: Path) -> None:
    fastest = min(_seconds_of_help(tmp_path) for _ in range(3))
    text = flawline(tmp_path, "--help").stdout
    for command in ("demo", "up", "broker", "produce", "work", "discover", "fit", "evaluate", "publish", "ledger"):
        assert command in text
    for command in ("replay", "dashboards", "classes", "topics", "doctor", "console"):
        assert command in text
    assert fastest < 5.0  # 0.3 s on a quiet machine; importing torch or Ray would take longer than this


def _seconds_of_help(folder: Path) -> float:
    started = time.monotonic()
    assert flawline(folder, "--help").returncode == 0
    return time.monotonic() - started


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; import station.cli.main; "
        "print([m for m in ('kafka', 'numpy', 'torch', 'ray', 'pydantic', 'sqlalchemy', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_command_there_is_help_and_no_error_line(tmp_path: Path) -> None:
    done = flawline(tmp_path)
    assert done.returncode == 2 and "ledger" in done.stdout + done.stderr and "error" not in done.stderr


def test_version(tmp_path: Path) -> None:
    done = flawline(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip().count(".") == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no such thing: correct it"), 2, "error: no such thing: correct it"),
        (FlawlineError("it broke:\ncorrect it"), 1, "error: it broke: correct it"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, ""),
        (ZeroDivisionError("oh"), 1, "error: unexpected ZeroDivisionError: oh: run it with --debug"),
    ],
)
def test_every_exception_has_its_exit_code_and_at_most_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    monkeypatch.setattr(ledger, "settings_of", fail)
    assert main._run(["ledger"]) == code
    stderr = capsys.readouterr().err
    assert stderr.startswith(line) and stderr.count("\n") == (1 if line else 0)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for done in (
        flawline(tmp_path, "ledger", "--config", "nowhere.toml", "--debug"),
        flawline(tmp_path, "classes", "list", "--config", "nowhere.toml", "--debug"),
        flawline(tmp_path, "--debug", "ledger", "--config", "nowhere.toml"),
        flawline(tmp_path, "ledger", "--config", "nowhere.toml", FLAWLINE_DEBUG="1"),
    ):
        assert done.returncode == 1 and "Traceback" in done.stderr and "no such config file" in done.stderr


def test_json_goes_to_stdout_to_a_file_or_to_both(tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    printed = flawline(tmp_path, "classes", "list", "--json")
    written = flawline(tmp_path, "classes", "list", "--json-file", "classes.json")
    assert (printed.returncode, written.returncode, written.stdout) == (0, 0, "")
    assert json.loads(printed.stdout) == json.loads(file.read_text()) == {"classes": []}
    file.unlink()
    both = flawline(tmp_path, "classes", "list", "--json", "--json-file", "classes.json")
    assert json.loads(both.stdout) == json.loads(file.read_text()) == {"classes": []}


def test_json_is_written_whole_and_without_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = {"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")}
    assert terminal.emit_json(payload, to_stdout=True, file=tmp_path / "x.json")
    assert not terminal.emit_json(payload, to_stdout=False, file=None)
    expected = {"a": None, "b": [None, 1.5], "c": "x"}
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(capsys.readouterr().out) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_classes_of_a_new_line_are_none_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    listed = flawline(tmp_path, "classes", "list", "--json")
    assert listed.returncode == 0 and json.loads(listed.stdout) == {"classes": []}
    unknown = flawline(tmp_path, "classes", "merge", "C7", "C8")
    assert unknown.returncode in (1, 2) and is_one_line(unknown.stderr) and "C7" in unknown.stderr, unknown.stderr
    wrong = flawline(tmp_path, "classes", "severity", "C7", "terrible")
    assert wrong.returncode == 2 and is_one_line(wrong.stderr) and "terrible" in wrong.stderr


def test_dashboards_are_written_and_not_pushed_without_a_token(tmp_path: Path) -> None:
    written = flawline(tmp_path, "dashboards", "write", "out")
    assert written.returncode == 0 and list((tmp_path / "out").rglob("*.json"))
    pushed = flawline(tmp_path, "dashboards", "push")
    assert pushed.returncode == 2 and is_one_line(pushed.stderr) and "grafana.token" in pushed.stderr


@pytest.mark.parametrize(("on_terminal", "seen"), [(False, "frames: 3 of 9"), (True, "frames")])
def test_progress_is_shown_on_stderr_on_a_terminal_or_not(
    on_terminal: bool, seen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(stderr=True, force_terminal=on_terminal)
    monkeypatch.setattr(terminal, "err", lambda: console)
    monkeypatch.setattr(terminal, "LINE_INTERVAL_S", 0.0)
    with terminal.progress("frames") as advance:
        advance(3, 9)
    output = capsys.readouterr()
    assert seen in output.err and not output.out
