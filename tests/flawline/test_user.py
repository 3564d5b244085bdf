"""The user's name is known where the operating system knows it."""

from __future__ import annotations

import getpass

import pytest

from flawline.user import user_name


def test_name_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "inspector")
    assert user_name() == "inspector"


def test_user_without_a_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(getpass, "getuser", unknown)
    assert user_name() is None
