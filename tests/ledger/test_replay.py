"""Dead letters are listed, sent again as they were, and never sent twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flawline.errors import UsageError
from flawline.messages import DeadLetterReason
from flawline.settings.tree import Settings
from ledger import replay
from ledger.replay import Filter, Letter, Status
from station.cli.options import age_s
from tests.support.talking_line import TalkingLine

ALL = Filter()


def letters_of(line: TalkingLine, wanted: Filter = ALL) -> list[Letter]:
    return replay.find(line.settings, wanted)


def test_original_bytes_key_headers_and_partition_are_sent_again(line: TalkingLine) -> None:
    record = line.frame(0)
    line.dead(record, 0, DeadLetterReason.SCORING_FAILED, headers=[("frame-id", b"cam:1000:0"), ("trace", b"t1")])
    line.committed(1)
    assert replay.send(line.settings, letters_of(line)) == 1
    again = line.frames()[-1]
    assert (again.value, again.key, again.partition) == (b"original bytes of 0", b"cam", 1)
    assert list(again.headers) == [
        ("frame-id", b"cam:1000:0"),
        ("trace", b"t1"),
        ("replayed-from", b"dead-letters/0/0"),
    ]


def test_replay_that_waits_for_a_worker_is_not_sent_again(line: TalkingLine) -> None:
    line.dead(line.frame(0), 0, DeadLetterReason.CHECKSUM)
    line.committed(1)
    assert replay.send(line.settings, letters_of(line)) == 1
    assert [letter.status for letter in letters_of(line)] == [Status.IN_LOG]
    assert replay.send(line.settings, letters_of(line)) == 0
    assert len(line.frames()) == 2


def test_foreign_record_is_not_sent_again_either(line: TalkingLine) -> None:
    line.dead(line.frame(0), None, DeadLetterReason.UNDECODABLE)
    line.committed(1)
    assert replay.send(line.settings, letters_of(line)) == 1
    assert [letter.status for letter in letters_of(line)] == [Status.IN_LOG]


def test_scored_frame_is_not_sent(line: TalkingLine) -> None:
    line.dead(line.frame(0), 0, DeadLetterReason.SCORING_FAILED)
    line.scored(0)
    assert [letter.status for letter in letters_of(line)] == [Status.SCORED]
    assert replay.send(line.settings, letters_of(line)) == 0


def test_frame_that_failed_again_is_open_under_its_newest_letter_only(line: TalkingLine) -> None:
    line.dead(line.frame(0), 0, DeadLetterReason.SCORING_FAILED)
    line.committed(1)
    replay.send(line.settings, letters_of(line))
    again = line.frames()[-1]
    place = type("Place", (), {"topic": again.topic, "partition": again.partition, "offset": again.offset})
    line.dead(place, 0, DeadLetterReason.CHECKSUM, headers=list(again.headers))
    line.committed(2)
    letters = letters_of(line)
    assert [letter.status for letter in letters] == [Status.SUPERSEDED, Status.OPEN]
    assert letters[1].replayed_from == "dead-letters/0/0"
    assert replay.send(line.settings, letters) == 1
    assert dict(line.frames()[-1].headers)["replayed-from"] == b"dead-letters/0/1"


def test_letters_are_chosen_by_reason_camera_and_age(line: TalkingLine) -> None:
    line.dead(line.frame(0), 0, DeadLetterReason.CHECKSUM)
    line.dead(line.frame(1), 1, DeadLetterReason.SCORING_FAILED)
    line.camera = "other"
    line.dead(line.frame(0), 0, DeadLetterReason.CHECKSUM)
    assert len(letters_of(line)) == 3
    assert len(letters_of(line, Filter(reasons=frozenset([DeadLetterReason.CHECKSUM])))) == 2
    assert [letter.camera for letter in letters_of(line, Filter(cameras=frozenset(["other"])))] == ["other"]
    assert letters_of(line, Filter(youngest_s=3600)) == [] and len(letters_of(line, Filter(oldest_s=3600))) == 3


def test_command_lists_sends_and_is_idempotent(line: TalkingLine, settings_file: Callable[[Settings], Path]) -> None:
    file = settings_file(line.settings)
    line.dead(line.frame(0), 0, DeadLetterReason.CHECKSUM)
    line.committed(1)
    listed = flawline("replay", "--config", str(file))
    assert listed.returncode == 0 and "checksum 1" in listed.stdout and "--send" in listed.stdout, listed.stderr
    assert len(line.frames()) == 1
    sent = [json.loads(flawline("replay", "--send", "--json", "--config", str(file)).stdout) for _ in range(2)]
    assert [summary["sent"] for summary in sent] == [1, 0]
    assert sent[0]["by_reason"] == {"checksum": 1} and sent[0]["letters"][0]["frame_id"] == "cam:1000:0"
    assert len(line.frames()) == 2


@pytest.mark.parametrize(("age", "expected"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_ages(age: str, expected: float) -> None:
    assert age_s(age, "--older-than") == expected


@pytest.mark.parametrize("age", ["", "5", "h", "-3h", "1w", "1.2.3s"])
def test_wrong_age_is_a_usage_error(age: str) -> None:
    with pytest.raises(UsageError, match="--older-than"):
        age_s(age, "--older-than")


def flawline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command: list[Any] = [sys.executable, "-m", "station.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
