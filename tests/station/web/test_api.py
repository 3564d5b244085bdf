"""The interface for programs: paging, filters, ETags, problems, roles; and Schemathesis against its description."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from discovery.store.store import Batch, Store
from flawline.messages import Decision
from flawline.settings.tree import Settings
from station.web.accounts import Accounts, Role
from station.web.ledger_watch import LedgerWatch
from tests.discovery.factories import START_NS, verdict
from tests.discovery.pictures import photos
from tests.discovery.pictures.photos import scored
from tests.station.web.conftest import ADDRESS, browser, filled
from tests.station.web.test_parts import NASTY, RULES, S_NS
from tests.station.web.test_parts import parts as parts  # a fixture

pytestmark = pytest.mark.system

API = "/api/v1"


@pytest.fixture
def judged(parts: Store) -> Store:
    """Add pictures of two alarms and an accepted frame."""
    photos.keep(parts, scored(0), scored(1, Decision.REVIEW), scored(200, Decision.ACCEPT, p_value=0.01))
    return parts


def items(client: TestClient, path: str) -> list[dict[str, Any]]:
    answer = client.get(f"{API}{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def test_pages_follow_one_another_and_hold_each_row_once(client: TestClient, parts: Store) -> None:
    for path in ("/defects", "/parts", "/classes/D-0001/members"):
        whole = items(client, f"{path}?limit=200")
        paged, cursor = [], ""
        while cursor is not None:
            body = client.get(f"{API}{path}?limit=2&cursor={cursor}").json()
            assert len(body["items"]) <= 2
            paged += body["items"]
            cursor = body["next"]
        assert paged == whole and len(whole) > 2, path


def test_the_description_has_what_webhooks_are_told(client: TestClient, parts: Store) -> None:
    description = client.get(f"{API}/openapi.json").json()
    assert description["webhooks"].keys() == {"verdict", "class", "camera"}
    for hook in description["webhooks"].values():
        assert hook["post"]["responses"].keys() == {"204"}
        headers = {parameter["name"] for parameter in hook["post"]["parameters"] if parameter["in"] == "header"}
        assert headers == {"webhook-id", "webhook-timestamp", "webhook-signature"}


def test_a_cursor_that_is_none_is_a_problem(client: TestClient, parts: Store) -> None:
    for cursor in ("x", "%00", "e30=", "MA==", "LTE=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "ü"):
        answer = client.get(f"{API}/defects?cursor={cursor}")
        assert answer.status_code == 400, cursor
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) == {"type", "title", "status", "detail"}


def test_what_has_not_changed_is_not_sent_again_and_head_has_no_body(client: TestClient, parts: Store) -> None:
    first = client.get(f"{API}/parts")
    again = client.get(f"{API}/parts", headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    parts.ingest(Batch(verdicts=[replace(verdict(700), part="P9")]))
    changed = client.get(f"{API}/parts", headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200 and changed.headers["etag"] != first.headers["etag"]
    assert client.head(f"{API}/parts").status_code == 200


def test_filters_are_those_of_the_pages(client: TestClient, parts: Store) -> None:
    assert [item["frame"] for item in items(client, "/defects?lot=L1")] == ["cam-side:1:500"]
    (part,) = items(client, "/parts?lot=L1&shift=late&decision=reject")
    assert [view["view"] for view in part["views"]] == ["side", "top"] and part["missing"] == []
    (open_part,) = items(client, "/parts?" + "part=" + "%3Cb%3E%22x%22%26%27")
    assert (open_part["part"], open_part["is_open"], open_part["missing"]) == (NASTY, True, ["side"])
    assert items(client, "/counts?by=lot&camera=cam-top") == [
        {"lot": lot, "decision": "accept", "frames": 1} for lot in sorted([NASTY, "L1", "L2"])
    ]
    hours = items(client, "/counts?by=hour&lot=L1")
    assert {row["hour"] for row in hours} == {"2023-11-14T22:00:00+00:00"}
    assert {row["lot"] for row in items(client, "/lots")} == {NASTY, "L1", "L2"}


def test_a_class_is_named_dismissed_after_a_second_word_and_brought_back(client: TestClient, parts: Store) -> None:
    def put(what: str, **body: Any) -> Any:
        return client.put(f"{API}/classes/D-0001/{what}", json={"who": "ana"} | body)

    def post(what: str, **body: Any) -> Any:
        return client.post(f"{API}/classes/{what}", json={"who": "ana"} | body)

    assert put("name", name="scratch").json()["name"] == "scratch"
    assert put("severity", severity="major").json()["severity"] == "major"
    asked = post("D-0001/dismiss")
    assert asked.status_code == 409 and re.match(r"\d+ frames of class D-0001", asked.json()["detail"])
    assert post("D-0001/dismiss", confirmed=True).json()["state"] == "dismissed"
    assert post("scratch/restore").json()["state"] == "confirmed"
    assert post("undo").json()["severity"] is None
    assert post("D-0001/merge", into="D-0002").status_code == 409
    assert post("D-0001/merge", into="D-0002", confirmed=True).json()["id"] == "D-0002"
    assert post("D-0002/undo").status_code == 200
    assert client.get(f"{API}/classes/D-0001").json()["state"] == "confirmed"
    assert post("D-0001/split").json()["parents"] == ["D-0001"]


def test_a_class_is_split_by_members_that_are_picked_out(client: TestClient, store: Store) -> None:
    numbers = re.findall(r'name="regions" value="(\d+)"', client.get("/classes/D-0002").text)[:4]
    body = {"who": "ana", "regions": [int(number) for number in numbers], "alike": False}
    child = client.post(f"{API}/classes/D-0002/split", json=body).json()
    assert (child["parents"], child["regions"]) == (["D-0002"], 4)
    assert client.post(f"{API}/classes/D-0002/split", json=body).status_code == 400  # they are elsewhere now
    assert client.post(f"{API}/classes/D-0002/split", json=body | {"regions": [0]}).status_code in (400, 422)


def test_a_frame_is_offered_judged_and_taken_back(client: TestClient, judged: Store) -> None:
    waiting = items(client, "/queues/alarms")
    assert [item["stratum"] for item in waiting] == ["review", "reject"]
    frame = waiting[0]["frame"]
    body = {"frame": frame, "judgement": "false", "who": "ana", "why": "a drop", "is_offered": True}
    assert client.post(f"{API}/judgements", json=body).status_code == 201
    assert [item["frame"] for item in items(client, "/queues/alarms")] == [waiting[1]["frame"]]
    assert items(client, "/judgements")[0]["why"] == "a drop"
    assert client.get(f"{API}/frames/{frame}").json()["judgements"][0]["judgement"] == "false"
    assert client.post(f"{API}/judgements/undo", json={"who": "ana"}).status_code == 200
    assert len(items(client, "/queues/alarms")) == 2
    assert client.get(f"{API}/rates").json()["confidence"] == 0.95
    assert client.post(f"{API}/judgements", json=body | {"frame": "none"}).status_code == 404


def test_a_group_is_named_and_the_name_taken_back(client: TestClient, parts: Store) -> None:
    assert client.put(f"{API}/groups/m1/0/name", json={"name": "screws", "who": "ana"}).json()["name"] == "screws"
    assert items(client, "/defects?lot=L1")[0]["group_name"] == "screws"
    assert client.put(f"{API}/groups/m1/9/name", json={"name": "x", "who": "ana"}).status_code == 404
    assert client.post(f"{API}/groups/undo", json={"who": "ana"}).json()["name"] is None


WRONG: list[tuple[str, str, Any, int]] = [
    ("GET", "/nothing", None, 404), ("GET", "/classes/D-9999", None, 404), ("DELETE", "/classes", None, 405),
    ("GET", "/parts/0", None, 400), ("GET", "/queues/none", None, 400), ("GET", "/parts?limit=0", None, 400),
    ("PUT", "/classes/D-0001/name", {"name": "a\u202eb", "who": "a"}, 400),
    ("PUT", "/classes/D-0001/name", {"name": "x" * 65, "who": "a"}, 400),
    ("PUT", "/classes/D-0001/name", {"name": "x"}, 400),
    ("PUT", "/classes/D-0001/name", {"name": "x", "no": 1}, 400),
    ("GET", "/parts?camera=cam-1", None, 400), ("GET", "/rates?group=m1:0", None, 400),
    ("GET", "/counts?part=P1", None, 400), ("GET", "/defects?kind=reject", None, 400),
    ("GET", "/defects/%00", None, 400),
    ("GET", "/classes/a%0Ab/members", None, 404),
]  # fmt: skip


def test_every_error_is_a_problem_document_in_one_line(client: TestClient, parts: Store) -> None:
    for method, path, body, status in WRONG:
        answer = client.request(method, f"{API}{path}", json=body)
        assert answer.status_code == status, path
        assert answer.headers["content-type"] == "application/problem+json", path
        assert answer.json()["status"] == status and "\n" not in answer.json()["detail"]


def test_a_form_of_another_site_changes_nothing(client: TestClient, parts: Store) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = client.post(f"{API}/classes/undo", content=b'{"who": "x"}', headers={"Content-Type": kind})
        assert answer.status_code == 415
    headers = {"Origin": "http://elsewhere"}
    assert client.post(f"{API}/classes/undo", json={"who": "x"}, headers=headers).status_code == 403


def test_roles_and_tokens_are_those_of_the_log_in(
    settings: Settings, parts: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    viewer, reviewer = (accounts.add(role, Role(role), None) for role in ("view", "review"))
    client = browser(settings, parts, watch, accounts)
    assert client.get(f"{API}/parts").status_code == 401
    assert client.get(f"{API}/openapi.json").status_code == 401
    assert client.get(f"{API}/parts").headers["content-type"] == "application/problem+json"
    client.headers["Authorization"] = f"Bearer {viewer}"
    assert client.get(f"{API}/line").json()["role"] == "view"
    refused = client.put(f"{API}/classes/D-0001/name", json={"name": "x"})
    assert refused.status_code == 403 and "needs the role review" in refused.json()["detail"]
    client.headers["Authorization"] = f"Bearer {reviewer}"
    named = client.put(f"{API}/classes/D-0001/name", json={"name": "x", "who": "somebody else"})
    assert named.json()["audit"][-1]["who"] == "review"


# Schemathesis


@pytest.fixture(params=["sqlite", "postgresql"])
def described(request: pytest.FixtureRequest, settings: Settings, watch: LedgerWatch, accounts: Accounts) -> Any:
    """Return the description of a console over a filled store, and a way to send to it."""
    schemathesis = pytest.importorskip("schemathesis")
    if request.param == "postgresql":
        store = filled(request.getfixturevalue("postgres_server").new_database())
    else:
        store = filled(settings.store_url)
    verdicts = [verdict(900 + n, captured_at=START_NS + n * S_NS) for n in range(5)]
    of_parts = [replace(item, part=f"P{n}", lot="L1", view="top") for n, item in enumerate(verdicts)]
    store.ingest(Batch(verdicts=of_parts), rules=RULES)
    photos.keep(store, scored(0), scored(1, Decision.REVIEW), scored(200, Decision.ACCEPT, p_value=0.01))
    client = browser(settings, store, watch, accounts)
    yield schemathesis.openapi.from_dict(client.get(f"{API}/openapi.json").json()), client
    store.close()


EXAMPLES = int(os.environ.get("FLAWLINE_API_EXAMPLES", "4"))
"""Examples of each operation; a long run of the suite takes more."""


def test_schemathesis_finds_no_server_error_and_no_answer_beside_the_description(described: Any) -> None:
    import hypothesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
    schema, client = described
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def send(case: Any) -> None:
            case.validate_response(answer_to(case, client), checks=checks)

        send()


def answer_to(case: Any, client: TestClient) -> Any:
    """Send what Schemathesis has made up, without a network."""
    request = case.as_transport_kwargs(base_url=f"{ADDRESS}{API}")
    content = {"json": request["json"]} if "json" in request else {"content": request.get("data") or b""}
    headers = {name: value for name, value in (request.get("headers") or {}).items() if name.lower() != "host"}
    return client.request(request["method"], request["url"], params=request.get("params"), headers=headers, **content)
