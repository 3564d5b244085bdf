"""The report in the browser."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

pytestmark = pytest.mark.system

ALL = "since=2023-11-14T00:00&until=2023-11-15T00:00"


def test_the_report_page_shows_the_figures_of_the_span(client: TestClient) -> None:
    page = client.get(f"/report?{ALL}")
    assert page.status_code == 200
    assert "frames decided" in page.text
    assert "cam-2" in page.text
    assert 'href="/classes/D-0001"' in page.text
    assert f'href="/report.html?{ALL.replace("&", "&amp;")}"' in page.text


def test_the_report_of_the_last_day_may_be_empty(client: TestClient) -> None:
    assert client.get("/report").status_code == 200
    assert (
        "No frame was decided in this time." in client.get("/report?since=2023-11-13T00:00&until=2023-11-13T01:00").text
    )


def test_the_report_is_a_file(client: TestClient) -> None:
    answer = client.get(f"/report.html?{ALL}")
    assert answer.headers["content-disposition"] == 'attachment; filename="report-20231114T0000Z.html"'
    assert "<link" not in answer.text
    pdf = client.get(f"/report.pdf?{ALL}")
    assert (pdf.status_code, pdf.headers["content-type"]) == (200, "application/pdf")


@pytest.mark.parametrize(
    ("query", "words"),
    [("shift=dawn", "no such shift"), ("since=soon", "a time such as"), ("lot=%00", "zero byte"),
     ("since=2023-11-15&until=2023-11-14", "before"), ("since=0001-01-01", "between 1971")],
)  # fmt: skip
def test_a_wrong_question_is_a_clear_400(client: TestClient, query: str, words: str) -> None:
    answer = client.get(f"/report?{query}")
    assert answer.status_code == 400
    assert words in answer.text
