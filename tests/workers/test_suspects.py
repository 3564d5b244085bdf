"""What the note beside a committed offset says, and which frames it makes suspects."""

from __future__ import annotations

import socket
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.suspects import MARGIN, Note, Suspicion, lives, suspicion, this_process

offsets = st.integers(0, 1 << 40)


@given(st.builds(Note, *[st.none() | offsets] * 3, st.integers(0, 9)))
def test_a_note_is_read_as_it_was_written_and_fits_a_commit(note: Note) -> None:
    assert Note.of(note.text()) == note
    assert len(note.text()) < 200


@pytest.mark.parametrize("text", [None, "", "another program's", "[1]", '{"other": 1}', '{"begun": "x"}', "7"])
def test_what_is_no_note_suspects_nothing(text: str | None) -> None:
    assert Note.of(text) == Note()
    assert suspicion(Note.of(text), 100) is None


def test_after_a_death_at_work_everything_begun_is_suspected_with_a_margin_up_to_the_end_of_the_log() -> None:
    assert suspicion(Note(begun=40), 1000) == Suspicion(41 + MARGIN)
    assert suspicion(Note(begun=40), 50) == Suspicion(50)


def test_of_suspects_only_the_one_in_work_has_more_than_one_attempt_behind_it() -> None:
    suspected = suspicion(Note(until=60, trying=42, attempt=2), 1000)
    assert suspected == Suspicion(60, 42, 2)
    assert suspected is not None
    assert [suspected.attempts_before(offset) for offset in (41, 42, 43)] == [1, 2, 1]


@pytest.mark.system
def test_a_process_lives_until_it_ends_and_another_with_its_number_is_another() -> None:
    assert lives(this_process())
    host, number, started = this_process().split("/")
    assert not lives(f"elsewhere/{number}/{started}"), "nothing is known of another machine's processes"
    assert not lives(f"{host}/{number}/1.00"), "the number was given again"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{socket.gethostname()}/{child.pid}/{psutil.Process(child.pid).create_time():.2f}"
    assert lives(name)
    child.communicate(b"")
    assert not lives(name)


@pytest.mark.parametrize("owner", ["", "x", "a/b", "host/x/1", "host/1/2/3"])
def test_a_name_that_is_none_is_of_no_living_process(owner: str) -> None:
    assert not lives(owner)
