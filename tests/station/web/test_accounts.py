"""Users and sessions: what is kept, how long, and who may read the file."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from flawline.errors import FlawlineError, UsageError
from flawline.redaction import redact
from station.web import attempts, passwords
from station.web.accounts import Accounts, Limits, Role
from station.web.attempts import Attempts

PASSWORD = "correct horse battery"
S = 1_000_000_000
LIMITS = Limits(idle_ns=100 * S, whole_ns=1_000 * S)


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def utc_ns(self) -> int:
        return round(self.now_s * S)

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MEMORY_KIB", 64)
    monkeypatch.setattr(passwords, "ITERATIONS", 1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock) -> Iterator[Accounts]:
    opened = Accounts(tmp_path, clock.utc_ns)
    yield opened
    opened.close()


def test_password_is_kept_as_argon2id_and_a_token_as_its_digest(accounts: Accounts, tmp_path: Path) -> None:
    accounts.add("ana", Role.ADMIN, PASSWORD)
    token = accounts.add("robot", Role.VIEW, None)
    assert token is not None
    session = accounts.begin_session("ana")
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"$argon2id$v=19$" in content
    assert not any(secret.encode() in content for secret in (PASSWORD, token, session))


def test_file_is_for_its_user_alone(accounts: Accounts, tmp_path: Path) -> None:
    accounts.add("ana", Role.ADMIN, PASSWORD)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    (tmp_path / "users.db").chmod(0o644)
    Accounts(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "users.db").stat().st_mode) == 0o600


def test_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "users.db").write_bytes(b"no database" * 1000)
    with pytest.raises(FlawlineError, match=r"users\.db: cannot be used"):
        Accounts(tmp_path)


@pytest.mark.parametrize(
    ("name", "password", "words"),
    [
        ("", PASSWORD, "1 to 64"), ("x" * 65, PASSWORD, "1 to 64"), ("a\u202eb", PASSWORD, "printable"),
        (" a", PASSWORD, "printable"), ("a", "short", "has 5 characters"), ("a", "x" * 257, "12 to 256"),
        ("a", " " + PASSWORD, "blank"), ("a", passwords.TOKEN_PREFIX + "x" * 20, "as tokens do"),
    ],
)  # fmt: skip
def test_unusable_name_or_password_is_refused(accounts: Accounts, name: str, password: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        accounts.add(name, Role.VIEW, password)
    assert not accounts.are_there()


def test_user_is_added_once_and_removed_once(accounts: Accounts) -> None:
    accounts.add("ana", Role.VIEW, PASSWORD)
    with pytest.raises(UsageError, match="exists already"):
        accounts.add("ana", Role.ADMIN, PASSWORD)
    assert accounts.role_with_password("ana", PASSWORD) is Role.VIEW
    accounts.remove("ana")
    for call in (lambda: accounts.remove("ana"), lambda: accounts.change_credentials("ana", PASSWORD)):
        with pytest.raises(UsageError, match="no user 'ana'"):
            call()


def test_session_ends_when_it_is_not_used(accounts: Accounts, clock: Clock) -> None:
    accounts.add("ana", Role.VIEW, PASSWORD)
    session = accounts.begin_session("ana")
    for _ in range(5):
        clock.now_s += 90
        assert accounts.user_of_session(session, LIMITS) == ("ana", Role.VIEW)
    clock.now_s += 101
    assert accounts.user_of_session(session, LIMITS) is None
    assert accounts.users()[0].sessions == 0


def test_session_ends_at_its_limit_although_it_is_used(accounts: Accounts, clock: Clock) -> None:
    accounts.add("ana", Role.VIEW, PASSWORD)
    session = accounts.begin_session("ana")
    for _ in range(11):
        clock.now_s += 90
        assert accounts.user_of_session(session, LIMITS) is not None
    clock.now_s += 90
    assert accounts.user_of_session(session, LIMITS) is None


def test_sessions_that_nobody_asks_for_are_removed(accounts: Accounts, clock: Clock) -> None:
    accounts.add("ana", Role.VIEW, PASSWORD)
    accounts.begin_session("ana")
    clock.now_s += 101
    fresh = accounts.begin_session("ana")
    accounts.forget_ended(LIMITS)
    assert accounts.users()[0].sessions == 1 and accounts.user_of_session(fresh, LIMITS) is not None


@pytest.mark.parametrize("change", ["password", "token", "remove"])
def test_change_of_a_user_ends_the_sessions_at_once(accounts: Accounts, change: str) -> None:
    accounts.add("ana", Role.VIEW, PASSWORD)
    session = accounts.begin_session("ana")
    if change == "remove":
        accounts.remove("ana")
    else:
        accounts.change_credentials("ana", "another password" if change == "password" else None)
    assert accounts.user_of_session(session, LIMITS) is None
    assert accounts.role_with_password("ana", PASSWORD) is None


def test_two_processes_see_the_same_users_and_sessions(accounts: Accounts, tmp_path: Path) -> None:
    other = Accounts(tmp_path)
    other.add("ana", Role.REVIEW, PASSWORD)
    session = accounts.begin_session("ana")
    other.remove("ana")
    assert accounts.user_of_session(session, LIMITS) is None
    other.close()


def test_every_token_is_hidden_in_every_output(accounts: Accounts) -> None:
    token = accounts.add("robot", Role.VIEW, None)
    assert token is not None
    assert redact(f"Authorization: Bearer {token}, twice {token}.") == "Authorization: Bearer ***, twice ***."


def test_attempts_on_a_name_from_an_address_are_limited_for_a_while(clock: Clock) -> None:
    limit = Attempts(clock.monotonic)
    assert [limit.begin("ana", "10.0.0.1") for _ in range(5)] == [0] * 5
    assert limit.begin("ana", "10.0.0.1") == attempts.WINDOW_S
    assert limit.begin("ana", "10.0.0.2") == limit.begin("bob", "10.0.0.1") == 0
    clock.now_s += attempts.WINDOW_S - 1
    assert limit.begin("ana", "10.0.0.1") == 1
    clock.now_s += 1
    assert limit.begin("ana", "10.0.0.1") == 0


def test_attempts_from_an_address_and_on_a_name_are_limited_in_all(clock: Clock) -> None:
    limit = Attempts(clock.monotonic)
    assert not any(limit.begin(f"user-{n}", "10.0.0.1") for n in range(attempts.ONE_ADDRESS))
    assert limit.begin("another", "10.0.0.1") > 0
    spread = Attempts(clock.monotonic)
    assert not any(spread.begin("ana", f"10.1.0.{n}") for n in range(attempts.ONE_NAME))
    assert spread.begin("ana", "10.2.0.1") > 0


def test_addresses_of_one_ipv6_network_count_as_one(clock: Clock) -> None:
    limit = Attempts(clock.monotonic)
    assert not any(limit.begin("ana", f"2001:db8::{n}") for n in range(1, 6))
    assert limit.begin("ana", "2001:db8::ffff") > 0 and limit.begin("ana", "2001:db8:0:1::1") == 0


def test_log_in_that_succeeds_counts_for_nothing(clock: Clock) -> None:
    limit = Attempts(clock.monotonic)
    for _ in range(3 * attempts.ONE_NAME):
        assert limit.begin("ana", "10.0.0.1") == 0
        limit.succeeded("ana", "10.0.0.1")


def test_flood_of_names_takes_no_memory(clock: Clock) -> None:
    limit = Attempts(clock.monotonic)
    for n in range(attempts.KEYS_LIMIT):
        limit.begin(f"user-{n}", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(limit._times) == attempts.KEYS_LIMIT
