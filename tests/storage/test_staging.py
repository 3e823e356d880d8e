"""Remote files come whole into the cache, once, and go on where they were interrupted."""

import errno
import functools
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from excite.errors import ExciteError
from excite.storage import connection, download, expand, local_file, stage
from excite.storage.listing import Entry, digest, safe
from tests.storage.conftest import tree

ODD = {
    "cat/1.jpg": b"one",
    "cat/ü [1] #?%20*&'\"$(x).jpg": b"odd",
    "dog/-rf \\ ~.jpg": b"dash",
    "dog/日本/empty.jpg": b"",
    "dog/.hidden.jpg": b"hidden",
}


@pytest.fixture
def received(monkeypatch):
    """The (path, bytes) of every request for contents."""
    requests: list[tuple[str, int]] = []
    genuine = download._chunk

    def counting(remote, entry, start):
        data = genuine(remote, entry, start)
        requests.append((entry.path, len(data)))
        return data

    monkeypatch.setattr(download, "_chunk", counting)
    return requests


def test_a_folder_comes_once_with_all_its_names_and_changes_are_seen(bucket, received, tmp_path):
    bucket.put({f"data/{name}": content for name, content in ODD.items()})
    first = stage(f"{bucket.url}/data")
    assert tree(first.path) == ODD
    assert str(first.path).startswith(str(tmp_path / "cache"))
    assert "5 files" in first.note
    assert "5 fetched" in first.note
    asked = len(received)
    second = stage(f"{bucket.url}/data/")
    assert (second.path, len(received)) == (first.path, asked)
    assert "unchanged" in second.note
    bucket.put({"data/cat/1.jpg": b"two", "data/new.jpg": b"new"})
    bucket.fs.rm_file(f"{bucket.name}/data/dog/.hidden.jpg")
    third = stage(f"{bucket.url}/data")
    assert sorted(path for path, _ in received[asked:]) == [
        f"{bucket.name}/data/cat/1.jpg",
        f"{bucket.name}/data/new.jpg",
    ]
    expected = {**ODD, "cat/1.jpg": b"two", "new.jpg": b"new"}
    del expected["dog/.hidden.jpg"]
    assert tree(third.path) == expected
    assert tree(first.path) == ODD  # a process that reads the old version is not disturbed
    assert os.path.samefile(first.path / "dog/-rf \\ ~.jpg", third.path / "dog/-rf \\ ~.jpg")


def test_old_versions_go_but_the_last_two(bucket):
    paths = []
    for content in (b"1", b"2", b"3"):
        bucket.put({"data/x.jpg": content})
        paths.append(stage(f"{bucket.url}/data").path)
    assert [path.exists() for path in paths] == [False, True, True]


def test_suffixes_and_single_files(bucket):
    bucket.put({"data/a.JPG": b"a", "data/notes.txt": b"n", "data/b/c.png": b"c"})
    assert set(tree(stage(f"{bucket.url}/data", frozenset((".jpg", ".png"))).path)) == {"a.JPG", "b/c.png"}
    one = stage(f"{bucket.url}/data/notes.txt").path
    assert (one.name, one.read_bytes()) == ("notes.txt", b"n")


def test_images_by_folder_name_and_pattern_keep_their_address(bucket):
    bucket.put({"p/a.jpg": b"a", "p/b.txt": b"b", "p/q/c[1].jpg": b"c"})
    jpg = frozenset((".jpg",))
    assert expand(f"{bucket.url}/p", jpg) == [f"{bucket.url}/p/a.jpg", f"{bucket.url}/p/q/c[1].jpg"]
    assert expand(f"{bucket.url}/p/*/*.jpg", jpg) == [f"{bucket.url}/p/q/c[1].jpg"]
    assert expand(f"{bucket.url}/p/q/c[1].jpg", jpg) == [f"{bucket.url}/p/q/c[1].jpg"]
    assert Path(local_file(f"{bucket.url}/p/q/c[1].jpg")).read_bytes() == b"c"
    assert Path(local_file(f"{bucket.url}/p/b.txt")).read_bytes() == b"b"
    assert local_file("/plain/path") == "/plain/path"


def break_after(monkeypatch, requests: int, error: BaseException) -> None:
    genuine, count = download._chunk, iter(range(10**6))

    def breaking(remote, entry, start):
        if next(count) >= requests:
            raise error
        return genuine(remote, entry, start)

    monkeypatch.setattr(download, "_chunk", breaking)


@pytest.mark.parametrize("damage", ["none", "truncated", "garbage"])
def test_an_interrupted_file_goes_on_where_it_was(bucket, monkeypatch, received, damage, tmp_path):
    content = os.urandom(10_500)
    bucket.put({"big.bin": content})
    monkeypatch.setattr(download, "CHUNK", 1000)
    with monkeypatch.context() as patch:
        break_after(patch, 6, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            stage(f"{bucket.url}/big.bin")
    part = next((tmp_path / "cache").rglob("*.part"))
    assert part.read_bytes() == content[:6000]
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    assert not list((tmp_path / "cache").rglob("big.bin"))
    if damage == "truncated":
        os.truncate(part, 2500)
    if damage == "garbage":
        part.write_bytes(b"?" * 6000)
    received.clear()
    assert stage(f"{bucket.url}/big.bin").path.read_bytes() == content
    expected = {"none": 4500, "truncated": 8000, "garbage": 4500 + 10_500}
    assert sum(size for _, size in received) == expected[damage]


def test_an_interrupted_folder_keeps_its_finished_files(bucket, monkeypatch, received):
    content = {f"{i:02}.jpg": os.urandom(50) for i in range(40)}
    bucket.put({f"d/{name}": data for name, data in content.items()})
    with monkeypatch.context() as patch:
        break_after(patch, 25, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            stage(f"{bucket.url}/d")
    before = len(received)
    assert tree(stage(f"{bucket.url}/d").path) == content
    assert before == 25
    assert len(received) == 40


def test_what_was_finished_before_the_file_changed_is_not_used(bucket, monkeypatch):
    bucket.put({"d/a.jpg": b"old", "d/b.jpg": b"b"})

    def breaking(remote, entry, start):
        if entry.path.endswith("b.jpg"):
            raise KeyboardInterrupt
        return b"old"

    with monkeypatch.context() as patch:
        patch.setattr(download, "THREADS", 1)
        patch.setattr(download, "_chunk", breaking)
        with pytest.raises(KeyboardInterrupt):
            stage(f"{bucket.url}/d")
    bucket.put({"d/a.jpg": b"new"})
    assert tree(stage(f"{bucket.url}/d").path) == {"a.jpg": b"new", "b.jpg": b"b"}


def test_a_file_changed_between_list_and_fetch_is_listed_again(bucket, monkeypatch):
    bucket.put({"d/x.jpg": b"old old", "d/y.jpg": b"same"})
    genuine, once = download._chunk, iter([True])

    def racing(remote, entry, start):
        if entry.path.endswith("x.jpg") and next(once, False):
            bucket.put({"d/x.jpg": b"new new"})
        return genuine(remote, entry, start)

    monkeypatch.setattr(download, "_chunk", racing)
    assert tree(stage(f"{bucket.url}/d").path) == {"x.jpg": b"new new", "y.jpg": b"same"}


def test_a_file_that_keeps_changing_or_vanishes_is_told(bucket, monkeypatch):
    bucket.put({"d/x.jpg": b"0", "e/x.jpg": b"x", "e/y.jpg": b"y"})
    genuine, number = download._chunk, iter(range(1, 100))

    def racing(remote, entry, start):
        bucket.put({"d/x.jpg": str(next(number)).encode()})
        return genuine(remote, entry, start)

    with monkeypatch.context() as patch:
        patch.setattr(download, "_chunk", racing)
        with pytest.raises(ExciteError, match="keeps changing while it is staged"):
            stage(f"{bucket.url}/d")

    def vanishing(remote, entry, start):
        if entry.path.endswith("y.jpg"):
            bucket.fs.rm_file(entry.path)
        return genuine(remote, entry, start)

    monkeypatch.setattr(download, "_chunk", vanishing)
    assert set(tree(stage(f"{bucket.url}/e").path)) == {"x.jpg"}


def test_contents_damaged_on_the_way_are_never_taken_for_whole(bucket, monkeypatch, tmp_path):
    bucket.put({"x.bin": b"contents"})
    genuine = download._chunk
    with monkeypatch.context() as patch:
        patch.setattr(download, "_chunk", lambda *words: genuine(*words).replace(b"c", b"C"))
        with pytest.raises(ExciteError, match=r"x\.bin arrives damaged"):
            stage(f"{bucket.url}/x.bin")
    assert not list((tmp_path / "cache").rglob("x.bin"))
    assert stage(f"{bucket.url}/x.bin").path.read_bytes() == b"contents"


def test_an_etag_that_only_looks_like_an_md5_is_no_damage(bucket, monkeypatch):
    """S3 gives such ETags to objects that are encrypted with a customer's key."""
    bucket.fs.pipe_file(f"{bucket.name}/kms.bin", b"secret", ServerSideEncryption="aws:kms")
    bucket.put({"plain.bin": b"plain"})
    genuine = Entry.of
    monkeypatch.setattr(Entry, "of", classmethod(lambda _, info: replace(genuine(info), md5="0" * 32)))
    assert stage(f"{bucket.url}/kms.bin").path.read_bytes() == b"secret"
    with pytest.raises(ExciteError, match="arrives damaged"):
        stage(f"{bucket.url}/plain.bin")


def test_a_large_object_in_parts_has_no_md5_and_is_taken_by_size_and_version(bucket):
    with bucket.fs.open(f"{bucket.name}/large.bin", "wb", block_size=5 << 20) as file:
        file.write(b"x" * (6 << 20))
    info = bucket.fs.info(f"{bucket.name}/large.bin")
    assert "-" in info["ETag"]
    assert Entry.of(info).md5 is None
    assert stage(f"{bucket.url}/large.bin").path.stat().st_size == 6 << 20


def test_a_file_changed_in_the_cache_is_fetched_again(bucket, received):
    bucket.put({"d/x.jpg": b"x" * 100, "d/y.jpg": b"y"})
    path = stage(f"{bucket.url}/d").path
    os.truncate(path / "x.jpg", 50)
    (path / "y.jpg").unlink()
    received.clear()
    assert tree(stage(f"{bucket.url}/d").path) == {"x.jpg": b"x" * 100, "y.jpg": b"y"}
    assert len(received) == 2
    (path.parent / "manifest.json").write_text('{"url": "cut off')
    assert tree(stage(f"{bucket.url}/d").path) == {"x.jpg": b"x" * 100, "y.jpg": b"y"}


def test_a_full_disk_is_one_sentence(bucket, monkeypatch):
    bucket.put({"x.bin": b"x" * 2000})
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 1000))
        with pytest.raises(ExciteError, match=r"the disk is too full to stage .* set EXCITE_CACHE"):
            stage(f"{bucket.url}/x.bin")
    break_after(monkeypatch, 0, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ExciteError, match=r"the disk is full: .* or set EXCITE_CACHE to a larger disk \(what was "):
        stage(f"{bucket.url}/x.bin")


def fetched(notes: list[str]) -> list[str]:
    return sorted("unchanged" if "unchanged" in n else "60 fetched" if "60 fetched" in n else n for n in notes)


def test_two_at_a_time_fetch_once(bucket):
    bucket.put({f"d/{i}.jpg": os.urandom(100) for i in range(60)})
    with ThreadPoolExecutor(2) as pool:
        staged = list(pool.map(stage, [f"{bucket.url}/d"] * 2))
    assert fetched([one.note for one in staged]) == ["60 fetched", "unchanged"]


@pytest.mark.slow
def test_two_processes_fetch_once(bucket):
    bucket.put({f"d/{i}.jpg": os.urandom(100) for i in range(60)})
    code = f"from excite.storage import stage; print(stage({bucket.url + '/d'!r}).note)"
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert fetched([process.communicate(timeout=100)[0] for process in both]) == ["60 fetched", "unchanged"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a//b", "a/./b", "..", "x\0y", "é" * 200])
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    from fsspec.implementations.memory import MemoryFileSystem

    with pytest.raises(ExciteError, match="rename it there"):
        safe(name, "s3://b/d")
    files = MemoryFileSystem(skip_instance_cache=True)
    files.pipe_file("/traversal/d/good", b"good")
    files.store[f"/traversal/d/{name}"] = files.store["/traversal/d/good"]
    try:
        with pytest.raises(ExciteError, match="rename it there"):
            stage("memory://traversal/d")
    finally:
        files.store.clear()
    assert not [p for p in tmp_path.rglob("*") if p.name in ("evil", "good")]


def test_every_kind_of_version_counts():
    known = {"name": "x", "size": 1}
    tags = [{}, {"ETag": '"a"'}, {"ETag": '"b"'}, {"mtime": 1.0}, {"mtime": 2.0}, {"size": 2}, {"md5Hash": "AQID"}]
    assert len({digest({"x": Entry.of({**known, **tag})}) for tag in tags}) == len(tags)
    assert Entry.of({**known, "ETag": '"0123456789abcdef0123456789abcdef"'}).md5 == "0123456789abcdef0123456789abcdef"
    assert Entry.of({**known, "ETag": '"0123456789abcdef0123456789abcdef-3"'}).md5 is None
    assert Entry.of({**known, "md5Hash": "AQID"}).md5 == "010203"
    assert Entry.of({**known, "content_md5": bytearray(b"\1\2\3")}).md5 == "010203"
    assert digest({"x": Entry.of(known)}) != digest({"y": Entry.of(known)})


def test_other_schemes(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a b.jpg").write_bytes(b"a")
    assert stage(f"file://{tmp_path}/here").path == tmp_path / "here"  # in place, not copied
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("train/cat/1.jpg", b"one")
    zipped = stage(f"zip://train::file://{tmp_path}/some.zip").path
    assert tree(zipped) == {"cat/1.jpg": b"one"}
    import fsspec

    fsspec.filesystem("memory").pipe_file("/m/x/y.jpg", b"y")
    assert tree(stage("memory://m/x").path) == {"y.jpg": b"y"}


def test_a_web_server_without_ranges(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'excite[remote]'")
    monkeypatch.setattr(download, "CHUNK", 1000)
    (tmp_path / "web").mkdir()
    content = os.urandom(3500)
    (tmp_path / "web" / "x.tar.gz").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}"
        assert stage(f"{url}/x.tar.gz").path.read_bytes() == content
        assert tree(stage(f"{url}/").path) == {"x.tar.gz": content}
        with pytest.raises(ExciteError, match="does not exist"):
            stage(f"{url}/y.tar.gz")
        web.shutdown()


def test_a_lost_connection_names_the_copy_in_the_cache(bucket, proxy, monkeypatch):
    monkeypatch.setattr(connection, "TRIES", 1)
    bucket.put({"d/x.jpg": b"x"})
    path = stage(f"{bucket.url}/d").path
    proxy.turn("refused")
    with pytest.raises(ExciteError, match=f"could not be reached .* a complete copy, .* is in {path}"):
        stage(f"{bucket.url}/d")
    proxy.turn("open")
    assert stage(f"{bucket.url}/d").path == path
