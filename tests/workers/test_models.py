"""Copies of models on a machine, the last good one, and the slot that loads them."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from flawline import messages, telemetry
from flawline.backoff import Backoff
from flawline.errors import FlawlineError
from flawline.settings.workers import WorkerSettings
from tests.workers.line import PlainDetector, load_plain, wait_until, write_model
from workers.active_model import ModelRef, announced
from workers.model_slot import ModelSlot
from workers.model_store import PRUNE_AGE_S, ModelStore


class Record:
    offset = 1

    def __init__(self, value: bytes | None) -> None:
        self.value = value


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "copies", "active")


def content(folder: Path) -> str:
    return (folder / "plain.txt").read_text().split()[0]


# Copies


def test_a_remote_model_is_copied_once_for_each_version(store: ModelStore) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/model/plain.txt", b"v1 0")
    memory.pipe("/bucket/model/banks/0.bin", b"0")
    first = store.fetch(ModelRef("memory://bucket/model", "v1"))
    assert content(first) == "v1"
    assert (first / "banks" / "0.bin").read_bytes() == b"0"
    memory.pipe("/bucket/model/plain.txt", b"v2 0")
    second = store.fetch(ModelRef("memory://bucket/model", "v2"))
    assert content(second) == "v2", "another version at the same address is seen"
    memory.rm("/bucket", recursive=True)
    assert store.fetch(ModelRef("memory://bucket/model", "v1")) == first, "the bucket may be away"
    assert content(first) == "v1"
    with pytest.raises(FlawlineError, match="model memory://bucket/model cannot be fetched: it is not there"):
        store.fetch(ModelRef("memory://bucket/model", "v3"))
    assert {folder.name for folder in first.parent.iterdir()} == {first.name, second.name}, "no half copy stays"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_address_without_version_is_what_it_holds_now(store: ModelStore, tmp_path: Path, scheme: str) -> None:
    model = ModelRef(f"{scheme}{tmp_path}/model")
    write_model(tmp_path / "model", "v1")
    first = store.fetch(model)
    assert store.fetch(model) == first
    write_model(tmp_path / "model", "version-2")
    second = store.fetch(model)
    assert (content(first), content(second)) == ("v1", "version-2")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(FlawlineError, match="it is not there"):
        store.fetch(model)


def test_any_error_of_a_remote_store_is_one_line_without_its_password(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def find(self, root: str, detail: bool) -> dict[str, Any]:
            raise RuntimeError("no answer from s3://me:secret@bucket\nreally")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda uri: (Away(), "bucket/model"))
    with pytest.raises(FlawlineError) as raised:
        store.fetch(ModelRef("s3://me:secret@bucket/model"))
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)
    assert "RuntimeError: no answer" in str(raised.value)


def test_a_local_model_is_used_as_it_is_when_there_is_no_room_for_a_copy(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    write_model(tmp_path / "model", "v1")
    monkeypatch.setattr(Path, "mkdir", full)
    folder = store.fetch(ModelRef(str(tmp_path / "model"), "v1"))
    assert folder == tmp_path / "model"
    store.keep(ModelRef(str(tmp_path / "model"), "v1"), folder)
    assert store.last_good() is None


def test_the_last_good_model_and_the_one_before_stay_and_older_copies_go(store: ModelStore, tmp_path: Path) -> None:
    assert store.last_good() is None
    shadows = ModelStore(tmp_path / "copies", "shadow")
    folders = {}
    for version in ("v0", "v1", "v2", "v3", "v4"):
        model = ModelRef(str(write_model(tmp_path / version, version)), version)
        folders[version] = store.fetch(model)
        if version == "v0":
            shadows.keep(model, folders[version])
        else:
            store.keep(model, folders[version])
        os.utime(folders[version], (time.time() - PRUNE_AGE_S - 10,) * 2)
    last = store.last_good()
    assert last and (last.model.version, last.folder) == ("v4", folders["v4"])
    assert [version for version, folder in folders.items() if folder.is_dir()] == ["v0", "v3", "v4"]
    assert content(shadows.last_good().folder) == "v0"


def test_a_damaged_record_is_no_record(store: ModelStore, tmp_path: Path) -> None:
    model = ModelRef(str(write_model(tmp_path / "model", "v1")), "v1")
    store.keep(model, store.fetch(model))
    for text in ("{", "[]", '{"uri": 1}'):
        (tmp_path / "copies" / "active.json").write_text(text)
        assert store.last_good() is None


def test_a_pointer_names_a_model_and_a_tombstone_none() -> None:
    pointer = messages.ModelPointer("active", "v2", "/models/2", 1)
    assert announced(Record(messages.encode(pointer))) == ModelRef("/models/2", "v2")
    assert announced(Record(None)) is None
    with pytest.raises(messages.SchemaError):
        announced(Record(b"nonsense"))


# The slot


def plain(path: Path) -> PlainDetector:
    return load_plain(path, WorkerSettings())


def model_at(path: Path, version: str) -> ModelRef:
    return ModelRef(str(write_model(path, version)), version)


@contextmanager
def slot(
    store: ModelStore, wanted: ModelRef, load: Callable[[Path], PlainDetector] = plain, role: str = "active"
) -> Iterator[ModelSlot]:
    """Yield a slot that tries again soon."""
    slot = ModelSlot(role, wanted, load, store, pauses=Backoff(0.01, 0.02))
    slot.start()
    try:
        yield slot
    finally:
        slot.close()


def in_use(slot: ModelSlot) -> str | None:
    detector = slot.current()
    return detector.version if detector else None


def problem_metric(role: str = "active") -> float | None:
    return telemetry.REGISTRY.get_sample_value("flawline_model_problem", {"role": role})


def test_a_start_with_a_broken_model_uses_the_last_good_one_and_takes_the_new_one_once_it_is_whole(
    store: ModelStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with slot(store, model_at(tmp_path / "1", "v1")) as first:
        assert first.wait(10)
    shutil.rmtree(tmp_path / "1")
    with caplog.at_level(logging.ERROR), slot(store, ModelRef(str(tmp_path / "2"), "v2")) as second:
        assert second.wait(10)
        wait_until(lambda: second.problem)
        assert in_use(second) == "v1"
        assert problem_metric() == 1
        write_model(tmp_path / "2", "v2")
        wait_until(lambda: in_use(second) == "v2")
        assert (second.problem, problem_metric()) == (None, 0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"active model v2 at {tmp_path}/2 cannot be used, frames are scored with v1, which worked last: "
        f"model {tmp_path}/2 cannot be fetched: it is not there: publish another one, or put it back"
    ], "one line, however often it is tried"
    assert store.last_good().model.version == "v2"


def test_without_a_good_model_the_slot_waits_and_counts_the_version_once(store: ModelStore, tmp_path: Path) -> None:
    def failures() -> float:
        return telemetry.REGISTRY.get_sample_value("flawline_model_load_failures_total") or 0.0

    before, attempts = failures(), []

    def broken(path: Path) -> PlainDetector:
        attempts.append(path)
        raise MemoryError

    with slot(store, model_at(tmp_path / "1", "v1"), broken) as waiting:
        wait_until(lambda: len(attempts) > 3)
        assert not waiting.wait(0)
        assert waiting.current() is None
        assert "no frame is scored until it can, since none has worked here: MemoryError" in waiting.problem
        assert failures() == before + 1


def test_a_copy_that_is_damaged_is_made_anew(store: ModelStore, tmp_path: Path) -> None:
    model = model_at(tmp_path / "1", "v1")
    (store.fetch(model) / "plain.txt").write_text("damaged")
    with slot(store, model) as fresh:
        assert fresh.wait(10)
        assert in_use(fresh) == "v1"


def test_a_copy_that_does_not_verify_stays_while_its_origin_is_away(store: ModelStore, tmp_path: Path) -> None:
    model = model_at(tmp_path / "1", "v1")
    copy = store.fetch(model)
    shutil.rmtree(tmp_path / "1")

    def refused(path: Path) -> PlainDetector:
        raise FlawlineError("was calibrated in bf16")

    with slot(store, model, refused) as waiting:
        wait_until(lambda: waiting.problem)
    assert content(copy) == "v1"


def test_a_model_that_is_back_before_the_wanted_one_has_loaded_stays(store: ModelStore, tmp_path: Path) -> None:
    first, second = model_at(tmp_path / "1", "v1"), ModelRef(str(tmp_path / "2"), "v2")
    with slot(store, first) as running:
        assert running.wait(10) and in_use(running) == "v1"
        running.change(second)
        wait_until(lambda: running.problem)
        running.change(first)
        assert (running.problem, problem_metric()) == (None, 0)
        running.change(model_at(tmp_path / "3", "v3"))
        wait_until(lambda: running.waits)
        running.change(first)
        assert in_use(running) == "v1"


def test_the_first_model_is_loaded_even_when_another_is_wanted_or_set_aside_at_once(
    store: ModelStore, tmp_path: Path
) -> None:
    first, second = model_at(tmp_path / "1", "v1"), model_at(tmp_path / "2", "v2")
    early = ModelSlot("active", first, plain, store)
    early.set_aside(second, "it kills")
    early.start()
    try:
        assert early.wait(10)
        assert (in_use(early), early.problem) == ("v1", f"active model {second} is set aside: it kills")
        early.change(second)
        wait_until(lambda: in_use(early) == "v2")
        assert early.problem is None
    finally:
        early.close()
