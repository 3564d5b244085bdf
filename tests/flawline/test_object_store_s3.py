"""The object store on a server that speaks S3, configured by the environment alone, as a plant does it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flawline.object_store import BUCKET_TRUST_S, MARKER, MissingObjectError, ObjectStore, StoreAway
from tests.support.brokers import Certificates
from tests.support.s3 import BUCKET, CREDENTIALS, S3Server

pytestmark = pytest.mark.system

URL = f"s3://{BUCKET}/frames"
LINE = "line-1"


@pytest.fixture
def store(s3_server: S3Server) -> ObjectStore:
    made = ObjectStore(URL, LINE)
    made.create()
    return made


def test_object_comes_back_and_one_that_is_missing_short_or_altered_is_named(
    s3_server: S3Server, store: ObjectStore
) -> None:
    data = bytes(range(256)) * 8_000
    key = store.put(data)
    assert store.put(data) == key
    assert ObjectStore(URL, LINE).get(key, len(data)) == data
    assert s3_server.content()[f"frames/{key[:2]}/{key}"] == data
    with pytest.raises(MissingObjectError, match="is not in"):
        store.get("a" * 64, 3)
    with pytest.raises(MissingObjectError, match=f"{len(data)} bytes instead of 3"):
        store.get(key, 3)
    s3_server.client().put_object(Bucket=BUCKET, Key=f"frames/{key[:2]}/{key}", Body=data[::-1])
    with pytest.raises(MissingObjectError, match="altered"):
        store.get(key, len(data))


def test_objects_are_listed_with_the_clock_of_the_server_and_removed(s3_server: S3Server, store: ObjectStore) -> None:
    key = store.put(b"abc")
    [listed] = store.objects()
    assert (listed.key, listed.size_bytes) == (key, 3)
    assert -1 <= store.now_s() - listed.written_at_s < 60
    assert not store.remove(key, written_before_s=listed.written_at_s)
    assert store.remove(key, written_before_s=listed.written_at_s + 1)
    assert list(store.objects()) == []
    assert {name.rpartition("/")[2] for name in s3_server.content()} == {MARKER, ".flawline-clock"}
    store.check()


def test_two_processes_that_make_the_store_make_one(store: ObjectStore) -> None:
    assert ObjectStore(URL, LINE).create() == store.marker()


def test_server_that_is_down_is_an_outage_and_works_when_it_is_back(s3_server: S3Server, store: ObjectStore) -> None:
    key = store.put(b"abc")
    s3_server.stop()
    for call in (lambda: store.put(b"abcd"), lambda: store.get(key, 3)):
        with pytest.raises(StoreAway, match="Could not connect"):
            call()
    s3_server.start()
    assert store.get(key, 3) == b"abc"
    assert store.get(store.put(b"abcd"), 4) == b"abcd"
    s3_server.kill()
    with pytest.raises(StoreAway, match="Could not connect"):
        store.put(b"abcde")


def test_server_that_hangs_is_an_outage_in_bounded_time(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawline.object_store.BUCKET_ANSWER_S", 1.0)
    store = ObjectStore(URL, LINE)
    store.create()
    key = store.put(b"abc")
    s3_server.hang()
    try:
        started = time.monotonic()
        with pytest.raises(StoreAway, match="timeout"):
            store.get(key, 3)
        assert time.monotonic() - started < 30  # two attempts of 1 s, on a busy machine
    finally:
        s3_server.go_on()
    assert store.get(key, 3) == b"abc"


def test_bucket_that_is_removed_is_an_outage_and_is_not_made_anew(
    s3_server: S3Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = store.put(b"abc")
    content = s3_server.remove_bucket()
    for call in (lambda: store.put(b"abcd"), lambda: store.get(key, 3)):
        with pytest.raises(StoreAway):
            call()
    assert s3_server.buckets() == []
    s3_server.make_bucket()
    monkeypatch.setattr("flawline.object_store.BUCKET_TRUST_S", 0.0)  # as some seconds later
    for call in (lambda: store.put(b"abcd"), lambda: store.get(key, 3)):
        with pytest.raises(StoreAway, match=MARKER):
            call()
    assert s3_server.content() == {}
    s3_server.client().delete_bucket(Bucket=BUCKET)
    s3_server.bring_back(content)
    assert store.get(key, 3) == b"abc"
    assert store.get(store.put(b"abcd"), 4) == b"abcd"
    assert BUCKET_TRUST_S > 0


def doctor(folder: Path, **environment: str) -> dict[str, str]:
    """Return what `flawline doctor` finds about the object store."""
    (folder / "line.toml").write_text(f'data_dir = "{folder}/data"\n[frames]\nobjects_url = "{URL}"\n')
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FLAWLINE_"))}
    command = [sys.executable, "-m", "station.cli", "doctor", "--config", str(folder / "line.toml"), "--json"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=clean | environment, capture_output=True, text=True, timeout=120
    )
    [finding] = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "objects"]
    assert "\n" not in finding["text"] and CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    return finding


def test_doctor_says_in_one_line_what_is_wrong_with_a_bucket(s3_server: S3Server, tmp_path: Path) -> None:
    settings = s3_server.environment | {"AWS_EC2_METADATA_DISABLED": "true"}
    first = doctor(tmp_path, **settings)
    assert first["status"] == "warn" and "the first producer makes it" in first["text"]
    ObjectStore(URL, LINE).create()
    assert doctor(tmp_path, **settings)["status"] == "ok"
    s3_server.remove_bucket()
    away = doctor(tmp_path, **settings)
    assert away["status"] == "fail" and "bucket" in away["text"]
    nobody = doctor(tmp_path, **{name: value for name, value in settings.items() if name not in CREDENTIALS})
    assert nobody["status"] == "fail" and "AWS_ACCESS_KEY_ID" in nobody["text"]


def test_wrong_credentials_are_named_in_one_line(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "s3.log", checks_credentials=True)
    try:
        finding = doctor(tmp_path, **server.environment)
    finally:
        server.kill()
    assert finding["status"] == "fail" and "credentials of this role" in finding["text"], finding


def test_bucket_over_tls_is_opened_when_its_authority_is_known_and_a_refusal_names_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates of this test")
    certificates = Certificates(tmp_path / "tls")
    server = S3Server(tmp_path / "s3.log", certificates=certificates)

    def refusal(**environment: str) -> str:
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            with pytest.raises(StoreAway) as raised:
                ObjectStore(URL, LINE).put(b"abc")
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 700
        return str(raised.value)

    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert "AWS_CA_BUNDLE" in refusal()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates.authority))
        store = ObjectStore(URL, LINE)
        store.create()
        assert store.get(store.put(b"abc"), 3) == b"abc"
        assert "AWS_CA_BUNDLE" in refusal(AWS_CA_BUNDLE=str(certificates.other_authority))
        missing = str(tmp_path / "missing.pem")
        assert missing in refusal(AWS_CA_BUNDLE=missing)
        assert "away" in refusal(AWS_ENDPOINT_URL=server.address(is_secured=False))
    finally:
        server.kill()


def test_endpoint_with_https_whose_server_speaks_plainly_is_named(
    s3_server: S3Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.address(is_secured=True))
    with pytest.raises(StoreAway, match="https"):
        ObjectStore(URL, LINE).put(b"abc")
