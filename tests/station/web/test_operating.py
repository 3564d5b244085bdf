"""The operating point: asked, measured, and what another alarm rate would have meant, by page and by interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from discovery import quality_rates
from discovery.store import judgements
from discovery.store.store import Batch, Store, TakenDefect
from flawline.errors import FlawlineError
from flawline.messages import Decision
from flawline.settings.scorer import LayerSettings
from flawline.settings.tree import Settings
from scorer import artefact, calibration
from scorer.maps import LayerUnit
from scorer.model import Model
from scorer.operating_points import decision_rule
from scorer.whole_image import WholeUnit
from station.web.accounts import Accounts
from station.web.ledger_watch import LedgerWatch
from station.web.models import Models
from tests.discovery import factories
from tests.discovery.pictures import photos
from tests.station.web.conftest import NOW_NS, browser
from workers.publish_model import Announced

pytestmark = pytest.mark.system

WIDTHS = np.array([1.0, 0.5])
ALARM_RATE = 0.01


def model() -> Model:
    """Return a model of two groups that could score nothing, with the calibration of 400 good images."""
    rng = np.random.default_rng(1)
    rows = np.eye(4, dtype=np.float32)
    standardised = rng.exponential(0.4, 400)
    review, reject = (calibration.threshold(np.sort(standardised), rate) for rate in (ALARM_RATE, 0.001))
    return Model(
        layers=(LayerSettings(size=64, stride=8),),
        banks=[[rows], [rows]],
        units=[[LayerUnit(0.5, 0.1)]] * 2,
        wholes=[WholeUnit(0.0, 1.0, 0.0)] * 2,
        sub_looks=[None, None],
        shares=[0.5, 0.5],
        means=[np.zeros((2, 4), np.float32)],
        embeddings=rng.normal(size=(400, 4)).astype(np.float32),
        groups=np.repeat([0, 1], 200),
        log_scores=rng.normal(size=400),
        gates=np.ones(2, np.float32),
        widths=WIDTHS,
        standardised=standardised,
        review=review,
        reject=reject,
        heatmap_range=(1.0, 2.0),
        look_alikes=5,
        alarm_rate=ALARM_RATE,
        top_share=0.003,
    )


RULE = decision_rule(model(), "", {})
CUT = RULE.review.value


def decided(n: int, standardised: float, group: int = 0, camera: str = "cam-1", *, version: str) -> Any:
    """Return a verdict as a worker decides it."""
    p_value = float(calibration.p_values(np.asarray(standardised), RULE.good))
    decision = Decision.REVIEW if standardised > CUT else Decision.ACCEPT
    made = factories.verdict(
        n, camera, decision, score=standardised * WIDTHS[group], group=group, model_version=version
    )
    return replace(made, p_value=p_value)


@pytest.fixture
def version(settings: Settings) -> str:
    """Return the version of a model that this machine holds as a copy."""
    folder = settings.data_dir / "model-copies" / "copy"
    saved = artefact.save(folder, model(), [], "openvino", "f32", {"settings": {"alarm_rate": "auto"}})
    points = [{"rate": rate, "found": 0.5 + rate} for rate in calibration.RATES]
    artefact.add_to_report(
        folder, {"operation": {"operating_points": points, "defects": {"kind": "pasted", "count": 9}}}
    )
    return saved


@pytest.fixture
def judged(tmp_path: Path, version: str) -> Iterator[Store]:
    """Return a store with a line of both groups, some of whose frames are judged: a real defect just above the cut-off,
    one far above, and one that was missed.
    """
    opened = Store(f"sqlite:///{tmp_path / 'operating.db'}", utc_ns=lambda: NOW_NS)
    scores = [
        (CUT + 0.05, 0, "real"), (CUT + 3, 1, "real"), (CUT + 0.1, 1, "false"), (CUT - 0.02, 0, "real"),
        (CUT - 0.03, 1, "false"), *((0.3 + n / 1000, n % 2, "false" if n < 20 else None) for n in range(60)),
    ]  # fmt: skip
    verdicts = [
        decided(n, score, group, f"cam-{1 + n % 2}", version=version) for n, (score, group, _) in enumerate(scores)
    ]
    defects = [
        TakenDefect(
            replace(
                factories.defect(n, camera=verdict.camera, group=verdict.group, model_version=version),
                score=verdict.score,
                p_value=verdict.p_value,
                decision=verdict.decision,
            ),
            (),
        )
        for n, verdict in enumerate(verdicts)
        if verdict.decision is not Decision.ACCEPT
    ]
    opened.ingest(Batch(verdicts=verdicts, defects=defects))
    photos.keep(opened, *verdicts, probability=1.0)
    for verdict, (_, _, word) in zip(verdicts, scores, strict=True):
        if word is not None:
            judgements.judge(opened, verdict.frame_id, word, who="ana", is_offered=True)
    yield opened
    opened.close()


@pytest.fixture
def client(settings: Settings, judged: Store, watch: LedgerWatch, accounts: Accounts) -> TestClient:
    return browser(settings, judged, watch, accounts)


def ask(client: TestClient, query: str = "") -> Any:
    answer = client.get(f"/api/v1/operating-point{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_at_the_rate_that_was_asked_for_everything_is_as_it_was(
    client: TestClient, judged: Store, version: str
) -> None:
    shown = ask(client)
    assert (shown["model"], shown["problem"]) == (version, None)
    assert shown["asked"]["rate"] == ALARM_RATE and shown["asked"]["setting"] == "auto"
    assert (shown["measured"]["frames"], shown["measured"]["alarms"], shown["measured"]["judged"]) == (65, 3, 25)
    assert shown["measured"]["share"]["low"] < 3 / 65 == shown["measured"]["share"]["value"]
    known_rates = quality_rates.report(judgements.judged(judged))["rates"]
    assert shown["measured"]["overkill"] == known_rates["overkill"]
    assert shown["measured"]["recall"]["value"] == pytest.approx(1 - known_rates["escape"]["value"])
    what = shown["what_if"]
    assert what["alarms"] == {"value": 3.0, "low": 3.0, "high": 3.0} and what["alarms_now"] == 3
    assert what["passing"] == what["caught"] == [] and shown["stored"]["problems"] == []
    (asked,) = (point for point in shown["points"] if point["is_asked"])
    assert asked["is_tried"] and asked["overkill"] == shown["measured"]["overkill"]
    assert asked["good_above"] == int((RULE.good > CUT).sum()) and asked["recall_at_fit"] == 0.51


def test_a_lower_rate_lets_known_defects_pass_and_a_higher_one_finds_what_was_missed(client: TestClient) -> None:
    strict = ask(client, "?rate=0.001")["what_if"]
    assert (strict["alarms"]["value"], strict["known_real"]) == (
        1.0, {"total": 3, "alarmed": 1, "passing": 1, "caught": 0},
    )  # fmt: skip
    assert [frame["frame"] for frame in strict["passing"]] == ["cam-1:1:0"]
    assert {row["camera"]: row["alarms"]["value"] for row in strict["cameras"]} == {"cam-1": 0.0, "cam-2": 1.0}
    by_group = {row["group"]: (row["alarms"]["value"], row["known_real"]["passing"]) for row in strict["groups"]}
    assert by_group == {0: (0.0, 1), 1: (1.0, 0)}
    loose = ask(client, "?rate=0.02")["what_if"]
    assert loose["alarms"]["value"] == 5.0 and [frame["frame"] for frame in loose["caught"]] == ["cam-2:1:3"]
    assert ask(client, "?rate=0.02&camera=cam-1")["what_if"]["alarms"]["value"] == 3.0


def test_group_camera_and_time_limit_what_is_looked_at(client: TestClient, version: str) -> None:
    of_group = ask(client, f"?group={version}:1")
    assert of_group["measured"]["alarms"] == 2 and [row["group"] for row in of_group["what_if"]["groups"]] == [1]
    assert ask(client, "?hours=1")["measured"]["frames"] == 0  # all frames are of 2023
    for query in ("?class=D-1", "?kind=reject", "?decision=reject", "?part=7", "?rate=0", "?rate=0.9", "?rate=nan"):
        assert client.get(f"/api/v1/operating-point{query}").status_code == 400


def test_the_page_shows_what_the_interface_answers(client: TestClient) -> None:
    page = client.get("/operating-point?percent=0.1").text
    assert "Known real defects that would pass" in page and 'href="/defects/cam-1%3A1%3A0"' in page
    assert "What if the alarm rate were 0.1\u00a0%?" in page and "9 defects that were pasted" in page
    assert client.get("/operating-point?hours=1").status_code == 200
    assert client.get("/operating-point?percent=nan").status_code == 400


def test_a_model_that_is_not_at_hand_is_told_in_words(client: TestClient, settings: Settings, judged: Store) -> None:
    shown = ask(client, "?model=another")
    assert "model another is not on this machine" in shown["problem"] and shown["points"] == []
    assert "is not on this machine" in client.get("/operating-point?model=another").text


def test_an_announced_model_is_fetched_beside_the_requests(settings: Settings, tmp_path: Path) -> None:
    published = artefact.save(tmp_path / "elsewhere", model(), [], "openvino", "f32", {})
    from flawline.messages import ModelPointer

    pointer = ModelPointer("active", published, str(tmp_path / "elsewhere"), 1)
    models = Models(settings, announced=lambda _: Announced(pointer, None, ()))
    with pytest.raises(FlawlineError, match="looked up at the broker"):
        models.rule(published)
    models.thread.submit(lambda: None).result(timeout=30)  # it has come behind the search
    assert models.rule(published).review == model().review


def test_a_frame_whose_model_is_not_at_hand_has_no_good_patch_and_the_interface_says_why(
    settings: Settings, store: Store, watch: LedgerWatch, accounts: Accounts
) -> None:
    client = browser(settings, store, watch, accounts)
    address = "/api/v1/frames/cam-1:1:0/good-patch"
    asked = client.get(address).json()
    assert asked["state"] == "pending" and asked["picture"] is None
    assert client.get(f"{address}/picture").status_code == 404
    client.app.state.context.patches.thread.submit(lambda: None).result(timeout=30)  # type: ignore[attr-defined]
    told = client.get(address).json()
    assert told["state"] == "none" and "model m1 is not on this machine" in told["words"]
    page = client.get("/defects/cam-1:1:0").text
    assert 'data-frame="cam-1:1:0"' in page and "the nearest good patch" in page
