"""`flawline users`: a person is added in the shell and logs in, and no output shows a secret."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest

from station.cli import main
from station.web import passwords
from station.web.accounts import Accounts, Role

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MEMORY_KIB", 64)
    monkeypatch.setattr(passwords, "ITERATIONS", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text(PASSWORD + "\n")


def users(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main._run(["users", "list", "--json"]) == 0
    return {user["name"]: user["role"] for user in json.loads(capsys.readouterr().out)["users"]}


def test_user_is_added_changed_and_removed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main._run(["users", "add", "ana", "--role", "review", "--password-file", "password"]) == 0
    assert users(capsys) == {"ana": "review"}
    accounts = Accounts(Path("data"))
    assert accounts.role_with_password("ana", PASSWORD) is Role.REVIEW
    monkeypatch.setattr("sys.stdin", io.StringIO("another password\n"))
    assert main._run(["users", "password", "ana", "--password-file", "-"]) == 0
    assert accounts.role_with_password("ana", "another password") is Role.REVIEW
    accounts.close()
    assert main._run(["users", "remove", "ana"]) == 0
    assert users(capsys) == {}


def test_password_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([PASSWORD, PASSWORD + "x", PASSWORD, PASSWORD])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    assert main._run(["users", "add", "ana", "--role", "view"]) == 2
    assert "the two passwords differ" in capsys.readouterr().err and users(capsys) == {}
    assert main._run(["users", "add", "ana", "--role", "view"]) == 0
    assert users(capsys) == {"ana": "view"}


def test_token_is_written_into_a_file_for_its_user_alone_and_shown_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main._run(["users", "add", "robot", "--role", "view", "--token-file", "token"]) == 0
    token = Path("token").read_text().strip()
    out, err = capsys.readouterr()
    assert token not in out + err and stat.S_IMODE(Path("token").stat().st_mode) == 0o600
    accounts = Accounts(Path("data"))
    assert accounts.user_with_token(token) == ("robot", Role.VIEW)
    assert main._run(["users", "password", "robot", "--token-file", "next"]) == 0
    assert accounts.user_with_token(token) is None
    assert accounts.user_with_token(Path("next").read_text().strip()) == ("robot", Role.VIEW)
    accounts.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "ana", "--role", "boss"], "choose from view, review, admin"),
        (["add", "ana", "--role", "view", "--password-file", "missing"], "--password-file missing: cannot be read"),
        (["add", "ana", "--role", "view", "--password-file", "short"], "has 2 characters"),
        (["add", "ana", "--role", "view", "--password-file", "a", "--token-file", "b"], "give one of them"),
        (["add", "ana", "--role", "view", "--token-file", "password"], "exists already: name a new file"),
        (["password", "ana"], "no user 'ana'"),
        (["remove", "ana"], "no user 'ana'"),
    ],
)
def test_impossible_command_is_one_line_and_changes_nothing(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("short").write_text("no")
    assert main._run(["users", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
    assert users(capsys) == {}


def test_without_a_terminal_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main._run(["users", "add", "ana", "--role", "view"]) == 2
    assert "there is no terminal" in capsys.readouterr().err
