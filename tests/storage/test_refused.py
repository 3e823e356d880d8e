"""A local disk that refuses anything at any moment, while something is staged or fetched, is one sentence."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from excite import storage
from excite.errors import ExciteError
from excite.files import WriteFailed
from excite.storage import exclusive
from excite.storage.download import Workshop
from excite.storage.runs import remember_address
from tests.storage.conftest import tree

_EVENTS = ("os.mkdir", "os.rename", "os.link", "os.utime", "os.truncate", "os.remove")


class Refusal:
    """The system refuses the K-th operation that changes something below ``root``. With ``at`` 0 it only counts."""

    def __init__(self) -> None:
        self.root, self.at, self.count, self.number = "", 0, 0, errno.EROFS
        sys.addaudithook(self.hook)  # it cannot be removed: with no root, it does nothing

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        if not self.root or not (event in _EVENTS or (event == "open" and self.writes(*args))):
            return
        if isinstance(args[0], str | bytes | os.PathLike) and os.fsdecode(args[0]).startswith(self.root):
            self.count += 1
            if self.count == self.at:
                raise OSError(self.number, os.strerror(self.number), os.fsdecode(args[0]))

    @staticmethod
    def writes(path: object, mode: object, flags: object, *_: object) -> bool:
        if isinstance(mode, str):
            return bool(set(mode) & set("wax+"))
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


_refusal = Refusal()


@pytest.fixture
def refusal(tmp_path) -> Iterator[Refusal]:
    _refusal.root, _refusal.at = str(tmp_path), 0
    yield _refusal
    _refusal.root = ""


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("what", ["stage", "repair", "run"])
def test_any_refusal_while_something_is_brought_here(bucket, tmp_path, monkeypatch, refusal, what, number):
    files = {"recipe.yaml": b"a", "run.json": b"{}", "checkpoints/step-00000002/state.pt": b"b" * 300, "x.jpg": b"c"}
    bucket.put({f"runs/mine/{name}": data for name, data in files.items()})
    url = f"{bucket.url}/runs/mine"
    monkeypatch.setenv("EXCITE_RUNS", str(tmp_path / "local"))

    def bring() -> Path:
        return storage.fetch_run(url) if what == "run" else storage.stage(url).path

    refused, said = 0, set[str]()
    for at in range(1, 1000):
        refusal.at = 0
        for name in ("cache", "local"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        if what == "repair":
            (bring() / "x.jpg").unlink()
        refusal.count, refusal.at, refusal.number = 0, at, number
        try:
            bring()
        except ExciteError as error:
            refused += 1
            said.add(re.sub(r"/\S+", "PATH", str(error)))
        struck, refusal.at = refusal.count >= at, 0
        assert {k: v for k, v in tree(bring()).items() if k != "remote.json"} == files  # the next time it comes whole
        if not struck:
            break
    assert all(re.match("(the disk is full: )?PATH could not be written[:;] [^\n]*$", text) for text in said), said
    assert refused >= 8
    assert refused > at / 2


@pytest.mark.parametrize(
    ("at", "write"),
    [
        (1, lambda folder: Workshop(folder / "building")),
        (1, lambda folder: remember_address("s3://bucket/run")),
        (2, lambda folder: exclusive.create_here(folder / "run.json", b"x")),  # the first makes a folder that is there
        (1, lambda folder: exclusive._create_without_links(folder / "run.json", b"x")),
    ],
)
def test_each_write_says_what_it_could_not_write(tmp_path, refusal, at, write: Callable[[Path], object]):
    refusal.count, refusal.at, refusal.number = 0, at, errno.ENOSPC
    with pytest.raises(WriteFailed, match=r"^the disk is full: /.* could not be written; free some space") as raised:
        write(tmp_path)
    assert raised.value.number == errno.ENOSPC
    refusal.at = 0
    write(tmp_path)


def test_a_file_that_is_made_without_links_is_not_left_half_written(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(WriteFailed, match="the disk is full"):
            exclusive._create_without_links(tmp_path / "run.json", b"x")
    assert list(tmp_path.iterdir()) == []
    assert exclusive._create_without_links(tmp_path / "run.json", b"x")
    assert exclusive._create_without_links(tmp_path / "run.json", b"x")
    assert not exclusive._create_without_links(tmp_path / "run.json", b"y")


def test_a_damaged_journal_costs_a_download_only(tmp_path):
    shop = Workshop(tmp_path)
    (tmp_path / "journal.jsonl").write_bytes(b'\xff\xfe\n[]\n3\n{"name": 3}\n' + b"[" * 100_000)
    assert shop.done() == {}
