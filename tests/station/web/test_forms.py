"""Decisions of people in the forms change the classes, and requests of other sites do not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from discovery.store import class_commands
from discovery.store.store import Store
from station.web import forms
from station.web.security import is_own_host
from tests.station.web.conftest import ADDRESS, token


@pytest.fixture
def ids(store: Store) -> list[str]:
    return [row["id"] for row in class_commands.list_classes(store)]


def send(client: TestClient, class_id: str, action: str, **fields: str) -> Any:
    form = {"token": token(client, class_id), "who": "ana", "why": "seen at the gate", "confirmed": "yes"} | fields
    return client.post(f"/classes/{class_id}/{action}", data=form)


def test_named_class_is_named_for_the_command_too(client: TestClient, store: Store, ids: list[str]) -> None:
    answer = send(client, ids[0], "name", value=" long scratch ")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/classes/{ids[0]}")
    shown = class_commands.show(store, "long scratch")
    assert shown["id"] == ids[0]
    assert (shown["audit"][-1]["who"], shown["audit"][-1]["why"]) == ("ana", "seen at the gate")
    assert "<h1>long scratch</h1>" in client.get(f"/classes/{ids[0]}").text


def test_name_of_the_person_is_in_the_next_form(client: TestClient, ids: list[str]) -> None:
    answer = send(client, ids[0], "name", value="dent", who="Åsa; Lund")
    assert "SameSite=strict" in answer.headers["set-cookie"] and "HttpOnly" in answer.headers["set-cookie"]
    assert 'value="Åsa; Lund"' in client.get(f"/classes/{ids[1]}").text


def test_every_action_does_what_its_command_does(client: TestClient, store: Store, ids: list[str]) -> None:
    assert send(client, ids[0], "severity", value="critical").status_code == 303
    assert class_commands.show(store, ids[0])["severity"] == "critical"
    split = send(client, ids[0], "split")
    child = split.headers["location"].rpartition("/")[2]
    assert class_commands.show(store, child)["parents"] == [ids[0]]
    assert send(client, child, "dismiss").status_code == 303
    assert class_commands.show(store, child)["state"] == "dismissed"
    merged = send(client, ids[0], "merge", value=ids[1])
    assert merged.headers["location"] == f"/classes/{ids[1]}"
    assert class_commands.show(store, ids[1])["merged_from"] == [ids[0]]


@pytest.mark.parametrize("action", forms.HIDING)
def test_action_that_hides_frames_is_confirmed_on_a_page_that_counts_them(
    client: TestClient, store: Store, ids: list[str], action: str
) -> None:
    before = [class_commands.show(store, class_id) for class_id in ids]
    page = send(client, ids[0], action, value=ids[1], confirmed="")
    assert page.status_code == 200 and "<b>28 frames</b>" in page.text
    assert [class_commands.show(store, class_id) for class_id in ids] == before
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text.partition("confirm")[2]))
    assert fields["confirmed"] == "yes" and fields["who"] == "ana"
    assert client.post(f"/classes/{ids[0]}/{action}", data=fields).status_code == 303
    assert class_commands.show(store, ids[0])["state"] in ("dismissed", "merged")


@pytest.mark.parametrize("action", forms.HIDING)
def test_class_that_was_hidden_comes_back_by_its_page_and_by_undo(
    client: TestClient, store: Store, ids: list[str], action: str
) -> None:
    def shown() -> list[dict[str, Any]]:
        """Return the classes, but for the latest capture: a survivor keeps that of what it had."""
        return [row | {"last_seen_at": None} for row in client.get("/api/classes").json()["classes"]]

    before = shown()
    for way in (f"/classes/{ids[0]}/restore", f"/classes/{ids[0]}/undo", "/classes/undo"):
        assert send(client, ids[0], action, value=ids[1]).status_code == 303
        assert shown() != before
        assert f"{ids[0]} was" in client.get("/classes").text, "the way back is offered"
        form = {"token": token(client, ids[1]), "who": "ana", "why": "a slip"}
        assert client.post(way, data=form).headers["location"] == f"/classes/{ids[0]}"
        assert shown() == before
    assert class_commands.show(store, ids[0])["audit"][-1]["why"] == "a slip"


@pytest.mark.parametrize(
    ("action", "fields", "words"),
    [
        ("name", {"value": ""}, "1 to 64 printable characters"),
        ("name", {"value": "x" * 65}, "1 to 64 printable characters"),
        ("name", {"value": "fine", "who": " "}, "who: give your name"),
        ("name", {"value": "fine", "why": "two\nlines"}, "why: at most"),
        ("severity", {"value": "awful"}, "one of minor, major, critical"),
        ("merge", {"value": "D-9999"}, "no class"),
    ],
)
def test_impossible_action_is_one_line_and_changes_nothing(
    client: TestClient, store: Store, ids: list[str], action: str, fields: dict[str, str], words: str
) -> None:
    before = [class_commands.show(store, class_id) for class_id in ids]
    answer = send(client, ids[0], action, **fields)
    assert answer.status_code == 400 and answer.text.count('role="alert"') == 1 and words in answer.text
    assert [class_commands.show(store, class_id) for class_id in ids] == before


def test_names_are_escaped_everywhere(client: TestClient, ids: list[str]) -> None:
    evil = "<script>alert('x')</script>\"'"
    assert send(client, ids[0], "name", value=evil, who=evil, why=evil).status_code == 303
    refused = send(client, ids[1], "name", value=evil, who=evil, why=evil)
    assert refused.status_code == 400
    texts = [client.get(path).text for path in ("/classes", f"/classes/{ids[0]}", f"/classes/{ids[1]}", "/defects")]
    for text in [*texts, refused.text, client.get(f"/classes/{evil.replace('/', '')}").text]:
        assert "alert(" in text and "<script>alert" not in text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_form_of_another_site_is_refused(
    client: TestClient, store: Store, ids: list[str], headers: dict[str, str]
) -> None:
    form = {"token": token(client, ids[0]), "who": "eve", "value": "owned"}
    assert client.post(f"/classes/{ids[0]}/name", data=form, headers=headers).status_code == 403
    assert class_commands.show(store, ids[0])["name"] is None
    same = {"origin": ADDRESS, "sec-fetch-site": "same-origin"}
    assert client.post(f"/classes/{ids[0]}/name", data=form, headers=same).status_code == 303


@pytest.mark.parametrize("fields", [{}, {"token": ""}, {"token": "gåss"}])
def test_form_without_the_token_is_refused(
    client: TestClient, store: Store, ids: list[str], fields: dict[str, str]
) -> None:
    answer = client.post(f"/classes/{ids[0]}/name", data={"who": "eve", "value": "owned"} | fields)
    assert answer.status_code == 403 and class_commands.show(store, ids[0])["name"] is None


def test_body_that_is_no_small_form_is_refused(client: TestClient, ids: list[str]) -> None:
    path = f"/classes/{ids[0]}/name"
    assert client.post(path, json={"value": "x"}).status_code == 415
    assert client.post(path, data={"value": "x" * forms.LIMIT_BYTES}).status_code == 413
    assert client.post(path, data={str(n): "x" for n in range(forms.FIELDS_LIMIT + 1)}).status_code == 400


def test_unknown_class_and_action_are_404(client: TestClient, ids: list[str]) -> None:
    form = {"token": token(client, ids[0]), "who": "ana", "value": "x"}
    assert client.post("/classes/D-9999/name", data=form).status_code == 404
    assert client.post(f"/classes/{ids[0]}/delete", data=form).status_code == 404


def test_every_response_has_a_content_security_policy(client: TestClient) -> None:
    for path in ("/", "/nothing", "/static/style.css", "/api/classes"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_foreign_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/classes", headers={"host": "rebound.example:8400"}).status_code == 421


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1:8400", True),
        ("localhost", True),
        ("LOCALHOST:8400", True),
        ("[::1]:8400", True),
        ("10.0.0.7:8400", True),
        ("station-3:8400", True),
        ("station-3.example", False),
        ("127.0.0.1.example", False),
        ("", False),
    ],
)
def test_hosts_of_the_console_are_addresses_and_configured_names(host: str, is_ours: bool) -> None:
    assert is_own_host(host, {"station-3"}) is is_ours
