"""Objects are removed when no record names them any more, and never before."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, messages, telemetry
from flawline.errors import FlawlineError
from flawline.messages import Codec, DeadLetter, DeadLetterReason, Frame
from flawline.object_store import FRESH_S, ObjectStore, StoredObject, object_store
from flawline.settings.tree import Settings
from ledger.object_collection import (
    Collected,
    Collector,
    Place,
    References,
    collect,
    keys_in,
    keys_in_dead_letter,
    make_room,
    start,
)
from station.cli.main import main
from tests.producers.doubles import until
from tests.support.talking_line import TalkingLine

MIN_AGE_S = 3600.0
KEYS = [f"{number:064x}" for number in range(3)]
FRAMES, LETTERS = Place("frames", 0), Place("dead-letters", 0)


def frame_of(key: str, sequence: int = 0) -> Frame:
    return Frame(
        camera="cam", epoch=1, sequence=sequence, captured_at=1, codec=Codec.JPEG, height=4, width=4, channels=3,
        data=b"", checksum=1, size_bytes=9, object_key=key,
    )  # fmt: skip


def letter_of(value: bytes) -> DeadLetter:
    return DeadLetter(DeadLetterReason.MISSING_OBJECT, "said by a test", "frames", 0, 0, b"cam", value, (), 1)


# What a record names


def test_frame_names_its_object_and_an_inline_frame_names_none() -> None:
    assert keys_in(messages.encode(frame_of(KEYS[1]))) == {KEYS[1]}
    inline = replace(frame_of(KEYS[1]), data=KEYS[2].encode(), size_bytes=64, object_key=None)
    assert keys_in(messages.encode(inline)) == set()
    assert keys_in(b"") == set()


def test_frame_of_a_schema_that_is_not_known_names_what_its_bytes_show() -> None:
    newer = messages.encode(frame_of(KEYS[1])).replace(b"\xa1v\x01", b"\xa1v\x63", 1)
    assert keys_in(newer) == {KEYS[1]}


def test_dead_letter_names_the_object_of_its_original_record() -> None:
    original = messages.encode(frame_of(KEYS[1]))
    assert keys_in_dead_letter(messages.encode(letter_of(original))) == {KEYS[1]}
    assert keys_in_dead_letter(messages.encode(letter_of(b"nonsense"))) == set()
    newer = messages.encode(letter_of(original)).replace(b"\xa1v\x01", b"\xa1v\x63", 1)
    assert keys_in_dead_letter(newer) == {KEYS[1]}


def test_object_is_named_until_the_last_record_that_names_it_has_gone() -> None:
    references = References()
    references.add(FRAMES, 3, [KEYS[0], KEYS[1]])
    references.add(FRAMES, 5, [KEYS[0]])
    references.add(LETTERS, 0, [KEYS[2]])
    references.forget(FRAMES, before=4)
    assert [key in references for key in KEYS[:3]] == [True, False, True]
    references.forget(FRAMES, before=6)
    references.forget(LETTERS)
    assert len(references) == 0


# No interleaving of producers, topics and collections removes what is in use


@dataclass
class World:
    """A store and two topics with a clock, and the promises of producers: see the module under test."""

    now_s: float = 1e6
    written_at_s: dict[str, float] = field(default_factory=dict)
    logs: dict[Place, dict[int, str]] = field(default_factory=lambda: {FRAMES: {}, LETTERS: {}})
    ends: dict[Place, int] = field(default_factory=lambda: {FRAMES: 0, LETTERS: 0})
    in_flight: dict[str, float] = field(default_factory=dict)
    during: list[Callable[[], None]] = field(default_factory=list)

    # the store

    def objects(self) -> list[StoredObject]:
        self.interfere()
        return [StoredObject(key, 9, at) for key, at in sorted(self.written_at_s.items())]

    def remove(self, key: str, *, written_before_s: float) -> bool:
        self.interfere()
        if self.written_at_s.get(key, 0.0) >= written_before_s:
            return False
        self.written_at_s.pop(key, None)
        return True

    # what happens

    def interfere(self) -> None:
        """Do the next of the things that happen during a collection."""
        if self.during:
            self.during.pop(0)()

    def put(self, key: str) -> None:
        if self.now_s - self.written_at_s.get(key, -1e9) >= FRESH_S:
            self.written_at_s[key] = self.now_s
        self.in_flight[key] = self.now_s

    def publish(self, key: str) -> None:
        if self.in_flight.pop(key, None) is not None:
            self.append(FRAMES, key)

    def append(self, place: Place, key: str) -> None:
        self.logs[place][self.ends[place]] = key
        self.ends[place] += 1

    def die(self, key: str) -> None:
        """Write the dead letter of a frame of the object."""
        if key in self.logs[FRAMES].values():
            self.append(LETTERS, key)

    def replay(self, key: str) -> None:
        if key in self.logs[LETTERS].values():
            self.append(FRAMES, key)

    def abandon(self, key: str) -> None:
        """Leave an old object whose records have gone."""
        if key not in self.in_use:
            self.written_at_s[key] = self.now_s - 2 * MIN_AGE_S

    def expire(self, place: Place, count: int) -> None:
        for offset in sorted(self.logs[place])[:count]:
            del self.logs[place][offset]

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        for key, at in self.in_flight.items():
            if self.now_s - at > FRESH_S:  # a producer writes the object of a waiting frame again
                self.written_at_s[key] = self.now_s
                self.in_flight[key] = self.now_s

    @property
    def in_use(self) -> set[str]:
        return {*self.logs[FRAMES].values(), *self.logs[LETTERS].values(), *self.in_flight}


class Following:
    """Follows the logs of a world as the follower of topics follows those of a broker."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.read_to = {FRAMES: 0, LETTERS: 0}

    def __call__(self, references: References) -> None:
        self.world.interfere()
        for place, log in self.world.logs.items():
            references.forget(place, before=min(log, default=self.world.ends[place]))
            for offset in sorted(log):
                if offset >= self.read_to[place]:
                    references.add(place, offset, [log[offset]])
            self.read_to[place] = self.world.ends[place]


KEY = st.sampled_from(KEYS[:3])
HAPPENING = st.one_of(
    st.tuples(st.sampled_from(["put", "publish", "die", "replay", "abandon", "abandon"]), KEY),
    st.tuples(st.just("expire"), st.sampled_from([FRAMES, LETTERS]), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, FRESH_S - 1, FRESH_S + 1, MIN_AGE_S / 2, MIN_AGE_S * 2])),
)
# What happens during a pass takes no hour, and retention takes nothing from under a record that was just replayed.
QUICK = st.tuples(st.sampled_from(["put", "put", "publish", "die"]), KEY)
STEP = st.one_of(HAPPENING, st.tuples(st.just("collect"), st.lists(QUICK, max_size=8)))


@pytest.mark.system
@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_no_object_that_a_frame_or_a_dead_letter_names_is_ever_removed_and_every_other_one_at_last(
    steps: list[tuple],
) -> None:
    world, references = World(), References()
    follow = Following(world)

    def run_pass() -> Collected:
        store: ObjectStore = _StoreOf(world)  # type: ignore[assignment]
        return collect(store, references, follow, MIN_AGE_S, threading.Event())

    for name, *arguments in steps:
        if name == "collect":
            world.during = [lambda call=call: getattr(world, call[0])(*call[1:]) for call in arguments[0]]
            run_pass()
            world.during = []
        else:
            getattr(world, name)(*arguments)
        assert world.in_use <= set(world.written_at_s), name
    for key in list(world.in_flight):
        world.publish(key)
    world.wait(2 * MIN_AGE_S)
    run_pass()
    assert set(world.written_at_s) == world.in_use


class _StoreOf:
    def __init__(self, world: World) -> None:
        self.objects, self.remove = world.objects, world.remove
        self.now_s = lambda: world.now_s


# On a broker and in a folder


@pytest.fixture
def line_with_store(line: TalkingLine, tmp_path: Path) -> tuple[TalkingLine, Settings, ObjectStore]:
    frames = line.settings.frames.model_copy(update={"objects_url": f"file://{tmp_path}/objects"})
    changed = line.settings.model_copy(update={"frames": frames})
    store = object_store(changed)
    assert store is not None
    store.create()
    return line, changed, store


def old_object(store: ObjectStore, content: bytes, age_s: float = 2 * MIN_AGE_S) -> str:
    key = store.put(content)
    at = time.time() - age_s
    os.utime(Path(store.root) / key[:2] / key, (at, at))
    return key


def keys_of(store: ObjectStore) -> set[str]:
    return {stored.key for stored in store.objects()}


def let_go(settings: Settings, before: int, partition: int = 0) -> None:
    """Delete the records before an offset of `frames`, as retention does."""
    client = kafka_clients.admin(settings)
    try:
        client.delete_records({TopicPartition(settings.topic("frames"), partition): before})
    finally:
        client.close()


def test_objects_go_with_the_records_that_name_them(
    line_with_store: tuple[TalkingLine, Settings, ObjectStore], embedded_broker: EmbeddedBroker
) -> None:
    line, settings, store = line_with_store
    keys = [old_object(store, b"frame %d" % i) for i in range(4)]
    unpublished = store.put(b"its record is under way")
    nobody = old_object(store, b"of nobody")
    part = Path(store.root) / "ab" / f"{'ab' * 32}.{'1' * 32}.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half")
    os.utime(part, (1, 1))
    for i, key in enumerate(keys):
        line.say("frames", frame_of(key, i))
    line.say("dead-letters", letter_of(messages.encode(frame_of(keys[0]))))
    collector = Collector(settings, store, threading.Event())
    try:
        assert collector.collect().removed == 2
        assert keys_of(store) == {*keys, unpublished} and nobody not in keys_of(store)
        let_go(settings, 3)
        assert collector.collect().removed == 0, "a worker may still hold what the topic has just let go"
        before = telemetry.COLLECTED_OBJECTS._value.get()
        assert collector.collect() == Collected(3, 7 + 7 + 23, 2, 14)
        assert keys_of(store) == {keys[0], keys[3], unpublished}, "a dead letter and a frame that waits keep theirs"
        assert telemetry.COLLECTED_OBJECTS._value.get() == before + 2
        assert telemetry.STORED_OBJECTS._value.get() == 3
        assert collector.collect().removed == 0
    finally:
        collector.close()


def test_store_beyond_its_limit_loses_the_oldest_objects_of_frames_that_have_their_verdict(
    line_with_store: tuple[TalkingLine, Settings, ObjectStore],
) -> None:
    line, settings, store = line_with_store
    keys = [old_object(store, b"frame %d" % i, age_s=(9 - i) * MIN_AGE_S) for i in range(5)]
    for i, key in enumerate(keys):
        line.say("frames", frame_of(key, i), partition=1)
    line.say("dead-letters", letter_of(messages.encode(frame_of(keys[0]))))
    retention = settings.retention.model_copy(update={"objects_limit_bytes": 4 * 7, "min_free_bytes": 0})
    collector = Collector(settings.model_copy(update={"retention": retention}), store, threading.Event())
    try:
        assert collector.collect().early == 0, "no frame has its verdict"
        line.committed(3)
        before = telemetry.EARLY_OBJECTS._value.get()
        assert collector.collect() == Collected(4, 4 * 7, early=1, early_bytes=7)
        assert keys_of(store) == {keys[0], *keys[2:]}, "a dead letter keeps its object"
        assert telemetry.EARLY_OBJECTS._value.get() == before + 1
        assert collector.collect().early == 0
    finally:
        collector.close()


def test_object_of_an_unread_frame_or_a_dead_letter_never_goes_for_room() -> None:
    world, references = World(), References()
    for number, key in enumerate(KEYS[:3]):
        world.written_at_s[key] = float(number)
        references.add(FRAMES, number, [key])
    references.add(FRAMES, 7, [KEYS[0]])
    references.add(LETTERS, 0, [KEYS[1]])
    store: ObjectStore = _StoreOf(world)  # type: ignore[assignment]
    assert make_room(store, references, {FRAMES: 7}, 2.5, 1_000, threading.Event()) == (1, 9)
    assert world.written_at_s.keys() == {KEYS[0], KEYS[1]}
    assert make_room(store, references, {FRAMES: 8}, -1.0, 1_000, threading.Event()) == (0, 0), "it is too young"
    assert make_room(store, references, {FRAMES: 8}, 2.5, 1_000, threading.Event()) == (1, 9)
    assert world.written_at_s.keys() == {KEYS[1]}


def test_topic_that_was_deleted_and_made_again_is_read_from_its_beginning(
    line_with_store: tuple[TalkingLine, Settings, ObjectStore], embedded_broker: EmbeddedBroker
) -> None:
    line, settings, store = line_with_store
    old, new = old_object(store, b"of before"), old_object(store, b"of after")
    line.say("frames", frame_of(old))
    collector = Collector(settings, store, threading.Event())
    try:
        new_until_then = store.put(b"x")
        store.remove(new_until_then)
        line.say("frames", frame_of(new, 1))
        collector.collect()
        assert keys_of(store) == {old, new}
        client = kafka_clients.admin(settings)
        client.delete_topics([settings.topic("frames")])
        client.close()
        kafka_clients.ensure_topics(settings)
        again = TalkingLine(settings)
        try:
            for sequence in range(3):  # more than were there before, and the first one alone names the object
                again.say("frames", frame_of(new if sequence == 0 else KEYS[0], sequence))
        finally:
            again.close()
        assert collector.collect().removed == 1
        assert keys_of(store) == {new}
    finally:
        collector.close()


def test_without_its_topics_nothing_is_removed(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = Settings(
        kafka={"bootstrap_servers": embedded_broker.bootstrap, "topic_prefix": "nothing-here-"},
        frames={"objects_url": f"file://{tmp_path}/objects"},
    )
    store = object_store(settings)
    assert store is not None
    store.create()
    key = old_object(store, b"abc")
    collector = Collector(settings, store, threading.Event())
    try:
        with pytest.raises(FlawlineError, match=r"nothing-here-\S+ does not exist"):
            collector.collect()
    finally:
        collector.close()
    assert keys_of(store) == {key}


def test_store_that_is_away_is_an_error_and_the_store_of_another_line_is_not_touched(
    line_with_store: tuple[TalkingLine, Settings, ObjectStore],
) -> None:
    _, settings, store = line_with_store
    key = old_object(store, b"abc")
    other = settings.model_copy(update={"line": "another"})
    for theirs, words in ((other, "belongs to line"), (settings, "no marker")):
        collector = Collector(theirs, object_store(theirs), threading.Event())
        if theirs is settings:
            Path(store.root).rename(Path(store.root).with_name("aside"))
        try:
            with pytest.raises(FlawlineError, match=words):
                collector.collect()
        finally:
            collector.close()
    Path(store.root).with_name("aside").rename(store.root)
    assert keys_of(store) == {key}


def test_role_collects_regularly_and_goes_on_when_the_store_is_back(
    line_with_store: tuple[TalkingLine, Settings, ObjectStore], caplog: pytest.LogCaptureFixture
) -> None:
    _, settings, store = line_with_store
    frames = settings.frames.model_copy(update={"objects_collect_s": 0.1})
    stop = threading.Event()
    old_object(store, b"abc")
    start(settings.model_copy(update={"frames": frames}), stop)
    try:
        until(lambda: keys_of(store) == set(), what="the removal")
        Path(store.root).rename(Path(store.root).with_name("aside"))
        until(lambda: "the next collection tries again" in caplog.text, what="a line about the store")
        Path(store.root).with_name("aside").rename(store.root)
        old_object(store, b"abcd")
        until(lambda: keys_of(store) == set(), what="the removal after the outage")
    finally:
        stop.set()


def test_command_removes_unused_objects_once(
    line_with_store: tuple[TalkingLine, Settings, ObjectStore],
    settings_file: Callable[[Settings], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, settings, store = line_with_store
    old_object(store, b"abc")
    store.put(b"young")
    with pytest.raises(SystemExit) as ended:
        main(["objects", "collect", "--config", str(settings_file(settings))])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("1 unused objects (0.0 MB) are removed, 1 (0.0 MB) remain")
