"""The kinds of tests: `-m unit` leaves out files without an import, and loses no unit test by it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import holds_no_unit_test

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("folder", "text", "left_out"),
    [
        ("workers", "import pytest\n\npytestmark = pytest.mark.system\n", True),
        ("workers", "pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]\n", True),
        ("embedded_broker/contract", "", True),
        ("embedded_broker/contracts", "", False),
        ("deploy", "", True),
        ("deployed", "", False),
        ("workers", "pytestmark = pytest.mark.timeout(600)\n", False),
        ("workers", "pytestmark = pytest.mark.systematic\n", False),
        ("workers", "@pytest.mark.system\ndef test_a() -> None: ...\n\n\ndef test_b() -> None: ...\n", False),
        ("workers", "class TestA:\n    pytestmark = pytest.mark.system\n\n\ndef test_b() -> None: ...\n", False),
        ("", "", False),
    ],
)
def test_a_file_is_left_out_only_when_all_of_it_has_another_kind(folder: str, text: str, left_out: bool) -> None:
    assert holds_no_unit_test(folder, text) == left_out


COLLECT_TWICE = """
import sys, pytest
for expression in ("unit", "not (system or contract)"):
    print("with", expression)
    pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "-m", expression, "tests/embedded_broker"])
"""


@pytest.mark.system
def test_the_unit_tests_are_the_same_with_and_without_the_files_that_hold_none() -> None:
    """`-m unit` leaves files out; the other expression says the same, and leaves none out."""
    run = subprocess.run([sys.executable, "-c", COLLECT_TWICE], cwd=ROOT, capture_output=True, text=True)
    quick, every = run.stdout.split("with not")
    assert names(quick) == names(every) and len(names(quick)) > 30
    assert deselected(quick) < deselected(every), "no file was left out"


def names(report: str) -> set[str]:
    return {line for line in report.splitlines() if "::" in line}


def deselected(report: str) -> int:
    match = re.search(r"\((\d+) deselected", report)
    assert match, report
    return int(match[1])
