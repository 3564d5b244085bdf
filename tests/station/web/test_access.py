"""Who may come in: log-in, roles, sessions, tokens, the secret of the forms, and what a proxy says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from discovery.store import class_commands
from discovery.store.store import Store
from flawline.settings.tree import Settings
from station.web import attempts, passwords
from station.web.access import COOKIE, SECURE_COOKIE, is_public
from station.web.accounts import Accounts, Role
from station.web.ledger_watch import LedgerWatch
from tests.station.web.conftest import ADDRESS, browser, token

pytestmark = pytest.mark.system

PASSWORD = "correct horse battery"
CLASS = "D-0001"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MEMORY_KIB", 64)
    monkeypatch.setattr(passwords, "ITERATIONS", 1)


@pytest.fixture
def people(accounts: Accounts) -> Accounts:
    """Return the users of the console: one for each role."""
    for role in Role:
        accounts.add(role, role, PASSWORD)
    return accounts


@pytest.fixture
def guarded(settings: Settings, store: Store, watch: LedgerWatch, people: Accounts) -> Iterator[TestClient]:
    """Return a browser in which nobody has logged in yet."""
    yield browser(settings, store, watch, people)


def log_in(client: TestClient, name: str, password: str = PASSWORD, wanted: str = "/", **options: Any) -> Any:
    match = re.search(r'name="token" value="([^"]+)"', client.get("/login").text)
    assert match is not None
    form = {"token": match[1], "name": name, "password": password, "next": wanted}
    return client.post("/login", data=form, **options)


def routes(client: TestClient) -> list[APIRoute]:
    """Return every route of the console, those of its routers too."""

    def below(holder: Any) -> Iterator[APIRoute]:
        for route in holder.routes:
            if isinstance(route, APIRoute):
                yield route
            elif inner := getattr(route, "original_router", None) or getattr(route, "router", None):
                yield from below(inner)

    return list(below(client.app))


def address_of(route: APIRoute) -> str:
    return re.sub(r"{\w+}", "1", route.path.replace("{class_id}", CLASS).replace("{action}", "dismiss"))


def test_every_route_but_the_public_ones_asks_for_a_log_in(guarded: TestClient) -> None:
    paths = [(method, address_of(route)) for route in routes(guarded) for method in route.methods]
    assert len(paths) > 15
    for method, path in paths:
        answer = guarded.request(method, path)
        if is_public(path):
            assert path in ("/login", "/healthz", "/texts/1.js") and answer.status_code in (200, 404, 415), path
        elif path.startswith("/api/"):
            assert answer.status_code == 401 and answer.json()["error"], path
        elif method == "GET":
            assert answer.status_code == 303 and answer.headers["location"].startswith("/login"), path
        else:
            assert answer.status_code == 401, path


def test_every_route_that_changes_something_refuses_a_form_without_the_sessions_secret(guarded: TestClient) -> None:
    assert log_in(guarded, "admin").status_code == 303
    changing = [(m, address_of(r)) for r in routes(guarded) for m in r.methods if m not in ("GET", "HEAD")]
    assert len(changing) >= 4
    for method, path in changing:
        for fields in ({}, {"token": "x"}, {"token": "gåss"}):
            answer = guarded.request(method, path, data={"who": "eve", "value": "x", "name": "view"} | fields)
            assert answer.status_code == 403 and "not from this console" in answer.text, path
    assert guarded.get("/").status_code == 200, "the session goes on"


def test_secret_of_another_session_is_refused(guarded: TestClient, settings: Settings, store: Store) -> None:
    log_in(guarded, "admin")
    others = token(guarded, CLASS)
    guarded.cookies.clear()
    log_in(guarded, "review")
    form = {"token": others, "value": "owned"}
    assert guarded.post(f"/classes/{CLASS}/name", data=form).status_code == 403
    assert guarded.post(f"/classes/{CLASS}/name", data=form | {"token": token(guarded, CLASS)}).status_code == 303


@pytest.mark.parametrize(
    ("role", "reads", "decides", "manages"),
    [("view", 200, 403, 403), ("review", 200, 303, 403), ("admin", 200, 303, 200)],
)
def test_role_says_what_a_person_may_do(
    guarded: TestClient, store: Store, role: str, reads: int, decides: int, manages: int
) -> None:
    log_in(guarded, role)
    assert guarded.get("/classes").status_code == guarded.get("/api/classes").status_code == reads
    page = guarded.get(f"/classes/{CLASS}")
    assert ("Decide about this class" in page.text) is (decides == 303)
    match = re.search(r'name="token" value="([^"]+)"', page.text)
    assert match is not None, "the form to log out"
    form = {"token": match[1], "value": "dent", "who": "somebody else"}
    assert guarded.post(f"/classes/{CLASS}/name", data=form).status_code == decides
    assert guarded.get("/users").status_code == manages
    assert ('href="/users"' in page.text) is (manages == 200)
    audit = class_commands.show(store, CLASS)["audit"]
    assert [entry["who"] for entry in audit] == ([role] if decides == 303 else [])


def test_page_that_was_asked_for_comes_after_the_log_in(guarded: TestClient) -> None:
    sent = guarded.get("/classes?all=true").headers["location"]
    assert sent == "/login?next=%2Fclasses%3Fall%3Dtrue"
    assert 'name="next" value="/classes?all=true"' in guarded.get(sent).text
    assert log_in(guarded, "view", wanted="/classes?all=true").headers["location"] == "/classes?all=true"
    assert guarded.get("/login").headers["location"] == "/"


@pytest.mark.parametrize(
    "wanted", ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "x", ""]
)
def test_log_in_leads_to_no_other_site(guarded: TestClient, wanted: str) -> None:
    assert log_in(guarded, "view", wanted=wanted).headers["location"] == "/"


@pytest.mark.parametrize(
    ("name", "password"), [("view", PASSWORD + "!"), ("nobody", PASSWORD), ("", ""), ("view", "flt_x")]
)
def test_wrong_name_and_wrong_password_are_told_apart_by_nobody(guarded: TestClient, name: str, password: str) -> None:
    answer = log_in(guarded, name, password)
    assert answer.status_code == 401 and "do not belong together" in answer.text
    assert "set-cookie" not in answer.headers and f'value="{password}"' not in answer.text.replace('value=""', "")
    assert guarded.get("/classes").status_code == 303


def test_sixth_wrong_password_is_refused_unseen_and_the_right_one_too(guarded: TestClient) -> None:
    for _ in range(attempts.ONE_NAME_FROM_ONE_ADDRESS):
        assert log_in(guarded, "view", "wrong").status_code == 401
    answer = log_in(guarded, "view")
    assert answer.status_code == 429 and 0 < int(answer.headers["retry-after"]) <= attempts.WINDOW_S
    assert log_in(guarded, "review").status_code == 303, "another person at the same terminal"


def test_cookie_is_hidden_from_scripts_and_bound_to_https(
    settings: Settings, store: Store, watch: LedgerWatch, people: Accounts
) -> None:
    plain = log_in(browser(settings, store, watch, people), "view").headers["set-cookie"]
    assert plain.startswith(f"{COOKIE}=") and "HttpOnly" in plain and "SameSite=lax" in plain and "Secure" not in plain
    remote = browser(
        settings, store, watch, people, is_open=False, address=ADDRESS.replace("http:", "https:"), client="192.0.2.9"
    )
    secure = log_in(remote, "view").headers["set-cookie"]
    assert secure.startswith(f"{SECURE_COOKIE}=") and "Secure" in secure and "Path=/" in secure
    assert "Domain" not in secure and remote.get("/classes").status_code == 200


def test_other_machine_is_answered_over_https_only(
    settings: Settings, store: Store, watch: LedgerWatch, people: Accounts
) -> None:
    remote = browser(settings, store, watch, people, is_open=False, client="192.0.2.9")
    for path in ("/", "/login", "/healthz", "/static/style.css"):
        assert remote.get(path).status_code == 403
        assert remote.get(path, headers={"x-forwarded-proto": "https"}).status_code == 403, "no proxy is believed"


def test_log_out_ends_the_session_for_every_holder_of_the_cookie(guarded: TestClient, people: Accounts) -> None:
    log_in(guarded, "view")
    stolen = guarded.cookies[COOKIE]
    secret = passwords.form_token(stolen)
    assert guarded.post("/logout", data={"token": secret}).headers["location"] == "/login"
    guarded.cookies.set(COOKIE, stolen)
    assert guarded.get("/classes").status_code == 303


def test_log_in_gives_a_new_session_and_not_one_that_somebody_has_prepared(guarded: TestClient) -> None:
    guarded.cookies.set(COOKIE, "prepared")
    log_in(guarded, "view")
    assert all(cookie.value != "prepared" or not cookie.domain for cookie in guarded.cookies.jar)
    guarded.cookies.clear()
    guarded.cookies.set(COOKIE, "prepared")
    assert guarded.get("/classes").status_code == 303


def test_administrator_logs_a_person_out_everywhere(
    guarded: TestClient, settings: Settings, store: Store, watch: LedgerWatch, people: Accounts
) -> None:
    other = browser(settings, store, watch, people)
    log_in(other, "view")
    assert other.get("/classes").status_code == 200
    log_in(guarded, "admin")
    match = re.search(r'name="token" value="([^"]+)"', guarded.get("/users").text)
    assert match is not None
    form = {"token": match[1], "name": "view"}
    assert guarded.post("/users/end-sessions", data=form).headers["location"] == "/users"
    assert other.get("/classes").status_code == 303 and guarded.get("/classes").status_code == 200


def test_token_opens_the_api_without_a_cookie_and_needs_no_secret_in_forms(
    guarded: TestClient, people: Accounts
) -> None:
    bearer = {"authorization": f"Bearer {people.add('robot', Role.REVIEW, None)}"}
    assert guarded.get("/api/classes", headers=bearer).status_code == 200
    assert guarded.post(f"/classes/{CLASS}/name", data={"value": "dent"}, headers=bearer).status_code == 303
    assert guarded.get("/users", headers=bearer).status_code == 403
    for wrong in ("Bearer flt_wrong", "Bearer", "Basic cm9ib3Q6eA=="):
        assert guarded.get("/api/classes", headers={"authorization": wrong}).status_code == 401


def test_token_logs_a_person_in_too(guarded: TestClient, people: Accounts) -> None:
    secret = people.add("wall", Role.VIEW, None)
    assert secret is not None
    assert log_in(guarded, "view", secret).status_code == 401, "it is another user's"
    assert log_in(guarded, "wall", secret).status_code == 303


def test_first_user_closes_the_console_at_once(client: TestClient, accounts: Accounts) -> None:
    assert client.get("/classes").status_code == 200
    accounts.add("ana", Role.VIEW, PASSWORD)
    assert client.get("/classes").status_code == 303
    accounts.remove("ana")
    assert client.get("/classes").status_code == 200


def test_console_for_others_is_closed_when_its_last_user_goes(
    settings: Settings, store: Store, watch: LedgerWatch, people: Accounts
) -> None:
    remote = browser(settings, store, watch, people, is_open=False, address="https://127.0.0.1", client="192.0.2.9")
    for role in Role:
        people.remove(role)
    assert remote.get("/classes").status_code == remote.get("/api/classes").status_code == 403
    assert log_in(remote, "admin").status_code == 401


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_proxy_brings_nobody_in_while_there_is_no_user(client: TestClient, header: str) -> None:
    answer = client.get("/classes", headers={header: "for=192.0.2.9"})
    assert answer.status_code == 403 and "flawline users add" in answer.text
