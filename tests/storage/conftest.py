"""A real S3 server (moto's) in a process of its own on loopback, and a gate in front of it that can be shut."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from excite.storage import connection, mirror
from tests.faults.gate import Gate
from tests.training.jobs import free_port

SECRET = "tHiSiSvErYsEcReT"


class Server:
    """moto's server; it keeps everything in memory, so that a restart loses all buckets."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError("moto's server did not start")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def check_credentials(self, on: bool) -> None:
        """From now on, refuse credentials that this server did not give out (it gave out none)."""
        body = b"0" if on else b"inf"
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", body, headers, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    for package in ("s3fs", "moto", "flask"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'excite[test]'")
    running = Server()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path) -> None:
    """Short pauses, a cache of its own for each test, and nothing of the user's AWS settings."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(mirror, "SCAN_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "SILENT_SECONDS", 60.0)  # a busy machine must not add lines to those that tests expect
    monkeypatch.chdir(tmp_path)


class Bucket:
    """A new bucket on the server, and a way to look at it that does not go through the code under test."""

    def __init__(self, server: Server) -> None:
        import s3fs

        self.name = f"b-{uuid.uuid4().hex[:12]}"
        self.url = f"s3://{self.name}"
        self.fs: Any = s3fs.S3FileSystem(use_listings_cache=False, endpoint_url=server.url)
        self.fs.mkdir(self.name)

    def put(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.fs.pipe_file(f"{self.name}/{name}", data)

    def get(self, name: str) -> bytes:
        return self.fs.cat_file(f"{self.name}/{name}")

    def names(self, folder: str = "", private: bool = False) -> list[str]:
        """All files, without those of the mechanism (.owner.json)."""
        base = f"{self.name}/{folder}".rstrip("/")
        names = sorted(name[len(base) + 1 :] for name in self.fs.find(base))
        return [name for name in names if private or not name.rpartition("/")[2].startswith(".")]


@pytest.fixture
def bucket(server, monkeypatch) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    return Bucket(server)


@pytest.fixture
def proxy(server, bucket, monkeypatch) -> Iterator[Gate]:
    """The way to the server for the code under test; ``bucket`` keeps its own."""
    between = Gate(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
    yield between
    with contextlib.suppress(OSError):
        between.stop()


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def eventually(what: Any, seconds: float = 30.0) -> None:
    """Wait until ``what()`` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
