"""A server that speaks S3 (moto) in a child process, with a bucket and users, to be stopped and started at will."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import Certificates
from tests.support.ports import reserved_port

BUCKET = "plant"
REGION = "eu-central-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key-of-a-test", "AWS_SECRET_ACCESS_KEY": "secret-of-a-test"}


class S3Server:
    """Runs a server with the bucket `plant` and its objects in memory: they survive a `stop`, but not a `kill`.

    With `checks_credentials` it knows no user, so it refuses every request; with `certificates` it takes TLS only.
    """

    def __init__(
        self, log: Path, *, checks_credentials: bool = False, certificates: Certificates | None = None
    ) -> None:
        self._port = reserved_port()  # it comes back on the same port
        self._certificates = certificates
        tls = [str(certificates.certificate("broker")), str(certificates.key("broker"))] if certificates else []
        environment = os.environ | ({"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if checks_credentials else {})
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.s3", str(self._port), *tls],
                cwd=Path(__file__).parents[2], env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self.start()
        if not checks_credentials:
            self.make_bucket()

    @property
    def environment(self) -> dict[str, str]:
        """Return what a role needs in its environment to use the server, beside the authority of its certificate."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": self.address(), "AWS_DEFAULT_REGION": REGION}

    def address(self, *, is_secured: bool | None = None) -> str:
        """Return the server's URL, of HTTPS or HTTP as it is, or as `is_secured` says."""
        if is_secured is None:
            is_secured = self._certificates is not None
        return f"{'https' if is_secured else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, and return when requests are answered."""
        self._order("start")

    def stop(self) -> None:
        """Refuse every connection from now on."""
        self._order("stop")

    def hang(self) -> None:
        """Take connections and answer none."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Answer again after `hang`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def _order(self, what: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == f"{what}\n"

    def client(self) -> Any:
        """Return a client of boto3."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            verify=str(self._certificates.authority) if self._certificates else None,
        )  # fmt: skip

    def make_bucket(self) -> None:
        """Make the bucket, which the line never does."""
        self.client().create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    def buckets(self) -> list[str]:
        """Return the names of all buckets."""
        return [bucket["Name"] for bucket in self.client().list_buckets()["Buckets"]]

    def content(self) -> dict[str, bytes]:
        """Return every object in the bucket by its key."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def remove_bucket(self) -> dict[str, bytes]:
        """Remove the bucket with all in it, and return what was in it."""
        client, content = self.client(), self.content()
        for key in content:
            client.delete_object(Bucket=BUCKET, Key=key)
        client.delete_bucket(Bucket=BUCKET)
        return content

    def bring_back(self, content: dict[str, bytes]) -> None:
        """Make the bucket again with what was in it, the marker last: until then the store is away."""
        self.make_bucket()
        for key in sorted(content, key=lambda key: ".flawline" in key):
            self.client().put_object(Bucket=BUCKET, Key=key, Body=content[key])


@pytest.fixture
def s3_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Run a server for one test; the environment of this process names it and its credentials."""
    server = S3Server(tmp_path / "s3.log")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.kill()


def _obey(port: int, *tls: str) -> None:
    """Start and stop a server on `port` as stdin says, and confirm each order on stdout; `tls` are its two files."""
    from moto.moto_server import threaded_moto_server
    from moto.server import ThreadedMotoServer

    if tls:  # moto's own class has no option for it
        threaded_moto_server.make_server = functools.partial(threaded_moto_server.make_server, ssl_context=tls)
    server = None
    for line in sys.stdin:
        if line.strip() == "start":
            server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
            server.start()
        elif server is not None:
            server.stop()
        print(line.strip(), flush=True)


if __name__ == "__main__":
    _obey(int(sys.argv[1]), *sys.argv[2:])
