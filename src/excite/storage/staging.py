"""Stages remote files into a local cache, `$EXCITE_CACHE` or `~/.cache/excite`.

    remote/NAME-KEY/               one address (KEY: hash of the address and of what is wanted of it)
      VERSION/manifest.json        what is there: version, size, SHA-256 and time of every file
      VERSION/files/NAME...        the files, not changed once the manifest is there: others may be reading them
      building/                    the next version, until it is whole
    remote/NAME-KEY.lock           held while one process stages

When the remote files change, the next version shares the unchanged ones with the last (hard links). The newest two
versions are kept.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from excite.errors import ExciteError
from excite.files import cache_folder, to_json, told, write_text
from excite.storage.address import Remote, RemoteError, is_remote, without_secrets
from excite.storage.connection import connect
from excite.storage.download import CACHE, LINE_EVERY, Changed, Stored, Workshop, fetch, fetch_file
from excite.storage.listing import Entry, digest, exists, list_files, list_pattern
from excite.text import counted, tell

KEPT_VERSIONS = 2
RELISTINGS = 3

#: Lists the wanted files: the name of the only file, or "" for a folder; and the files.
Lister = Callable[[], tuple[str, dict[str, Entry]]]


@dataclass(frozen=True)
class Staged:
    """``path``: the local folder or file. ``files``: relative names. ``note``: a line on what was done."""

    path: Path
    files: list[str]
    note: str


def stage(url: str, suffixes: frozenset[str] | None = None) -> Staged:
    """Bring the file or folder at an address into the local cache, unless it is already there and has not changed.

    Processes that want the same address wait for each other, and only the first one downloads. ``file://`` is used in
    place.

    Args:
        url: the address, such as ``s3://bucket/photos`` or ``https://host/cifar-10-python.tar.gz``.
        suffixes: for a folder, only take files with these extensions (lower case, with the dot).

    Raises:
        ExciteError: there is nothing at the address, access is denied, the connection fails, the disk is full, or a
            name would lead out of the folder.
    """
    remote = connect(url)
    if remote.is_local:
        return Staged(Path(remote.path), [], "")

    def entries() -> tuple[str, dict[str, Entry]]:
        listed = list_files(remote, lambda n: suffixes is None or os.path.splitext(n)[1].lower() in suffixes)
        single = list(listed) == [remote.name] and next(iter(listed.values())).path == remote.path
        return (remote.name if single else ""), listed

    return _staged(remote, entries, ",".join(sorted(suffixes or [])))


def _staged(remote: Remote, entries: Lister, kind: str) -> Staged:
    place = cache_folder() / "remote" / _key(remote, kind)
    with locked(place):
        for _ in range(RELISTINGS):
            try:
                single, listed = entries()
            except RemoteError as error:
                raise _with_copy(error, place) from error
            try:
                folder, fetched = _version(remote, listed, place)
            except Changed as change:
                changed = change
                continue
            _drop_old(place, folder)
            size = sum(entry.size or 0 for entry in listed.values())
            done = "unchanged" if not fetched else f"{fetched:,} fetched"
            files = f"{counted(len(listed), 'file')}, {size / 1e6:,.1f} MB, {done}"
            note = f"{without_secrets(remote.url)}: {files}, in {folder}"
            return Staged(folder / single if single else folder, list(listed), note)
    raise ExciteError(
        f"{remote.url} keeps changing while it is staged (last {changed}): wait until nobody writes there"
    )


def _key(remote: Remote, kind: str) -> str:
    """A folder name for an address. It depends on the endpoint, because s3://b/x differs between endpoints."""
    endpoint = str(getattr(remote.fs, "endpoint_url", None) or "")
    endpoint += os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    short = hashlib.sha256(f"{remote.url}\0{endpoint}\0{kind}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', remote.name)[:40] or 'root'}-{short}"


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold the lock of a cache folder; print a line if another process holds it for long."""
    from filelock import FileLock, Timeout

    with told(place.parent, CACHE):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{place}.lock")
        while True:
            try:
                lock.acquire(timeout=LINE_EVERY)
                break
            except Timeout:
                tell(f"waiting for another process that stages into {place}")
    try:
        yield
    finally:
        lock.release()


def _version(remote: Remote, entries: Mapping[str, Entry], place: Path) -> tuple[Path, int]:
    """The folder with exactly these versions of the files, and how many of them had to be downloaded."""
    target = place / digest(entries)
    if (target / "manifest.json").is_file():
        return target / "files", _repair(remote, entries, target, place)
    reuse: dict[str, tuple[Path, Stored]] = {}
    for old in _versions(place)[:1]:
        reuse = {n: (old / "files" / n, s) for n, s in read_manifest(old).items()}
    workshop = Workshop(place / "building")
    stored, fetched = fetch(remote, entries, workshop, reuse)
    write_manifest(place / "building", remote.url, stored)
    with told(target, CACHE):
        (place / "building" / "journal.jsonl").unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(place / "building", target)
    return target / "files", fetched


def _repair(remote: Remote, entries: Mapping[str, Entry], target: Path, place: Path) -> int:
    """Download again what was changed, truncated or deleted in the cache; returns the number of such files."""
    stored = read_manifest(target)
    damaged = [n for n in entries if n not in stored or not stored[n].whole(target / "files" / n)]
    if damaged:
        parts = place / "parts"
        with told(target, CACHE):
            parts.mkdir(exist_ok=True)
            for name in damaged:
                stored[name] = fetch_file(remote, entries[name], parts, target / "files" / name)
        write_manifest(target, remote.url, stored)
        shutil.rmtree(parts, ignore_errors=True)
    with told(target, CACHE):
        os.utime(target / "manifest.json")  # so that the versions in use are the newest
    return len(damaged)


def write_manifest(folder: Path, url: str, stored: Mapping[str, Stored]) -> None:
    """Record the contents of a folder, which from then on counts as complete."""
    value = {"url": without_secrets(url), "files": {n: asdict(s) for n, s in stored.items()}}
    write_text(folder / "manifest.json", to_json(value))


def read_manifest(folder: Path) -> dict[str, Stored]:
    """The contents of a folder; nothing if its manifest is damaged, so that it is downloaded again."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        return {name: Stored(**record) for name, record in files.items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _versions(place: Path) -> list[Path]:
    """The complete versions of an address, most recently used first."""
    return [p.parent for p in sorted(place.glob("*/manifest.json"), key=lambda p: -p.stat().st_mtime_ns)]


def _drop_old(place: Path, current: Path) -> None:
    for old in _versions(place)[KEPT_VERSIONS:]:
        if old != current.parent:
            shutil.rmtree(old, ignore_errors=True)


def _with_copy(error: RemoteError, place: Path) -> RemoteError:
    """Mention the copy in the cache, which can be used by its path, but not silently: it may be out of date."""
    copies = _versions(place)
    if error.lasting or not copies:
        return error
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime((copies[0] / "manifest.json").stat().st_mtime))
    return RemoteError(f"{error}; a complete copy, last compared on {when}, is in {copies[0] / 'files'}", error.lasting)


_LOCAL: dict[str, str] = {}  # address of a staged file -> its path, for this process


def is_staged(source: str) -> bool:
    """Whether it is the address of a file that this process has staged and need not look up again."""
    return source in _LOCAL


def local_file(source: str) -> str:
    """The local path of a file: itself, or the staged copy of a file at an address (staged now if necessary)."""
    if not is_remote(source):
        return source
    if source not in _LOCAL:
        _LOCAL[source] = str(stage(source).path)
    return _LOCAL[source]


def in_place(source: str) -> str:
    """The plain path of a ``file://`` address; anything else unchanged."""
    if not is_remote(source):
        return source
    remote = connect(source)
    return remote.path if remote.is_local else source


def expand(url: str, suffixes: frozenset[str]) -> list[str]:
    """The addresses of the files at an address: itself, those in a folder, or those that match a pattern.

    They are staged in parallel; `local_file` gives their paths.
    """
    remote = connect(url)
    if re.search(r"[*?\[]", remote.path) and not exists(remote):
        base, _ = list_pattern(remote)
        staged = _staged(remote, lambda: ("", list_pattern(remote)[1]), "pattern")
    else:
        base, staged = remote.path, stage(url, suffixes)
    if staged.path.is_file():
        found = {remote.url: str(staged.path)}
    else:
        found = {remote.fs.unstrip_protocol(f"{base}/{n}"): str(staged.path / n) for n in sorted(staged.files)}
    _LOCAL.update(found)
    return list(found)
