"""Downloads files in parallel to temporary names, verifies size and hash, and resumes interrupted downloads.

A folder under construction holds the complete files. Beside them, ``journal.jsonl`` records which were verified, and
``parts/`` has the beginnings of the others.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from excite.errors import ExciteError
from excite.files import append_text, sha256_of, to_json, told
from excite.storage import connection, web
from excite.storage.address import READ_ONLY, Remote, RemoteError, without_secrets
from excite.storage.connection import explained, retried
from excite.storage.listing import THREADS, Entry
from excite.text import tell
from excite.threads import Threads

CHUNK = 8 << 20  # bytes per request: the most that a broken connection costs
SPARE = 256 << 20  # bytes that a file of unknown size leaves free on the disk
CACHE = "EXCITE_CACHE"  # the environment variable that chooses the place of the cache
LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


class Changed(Exception):
    """A file has changed since it was listed."""


@dataclass(frozen=True)
class Stored:
    """A file that was downloaded and verified.

    Attributes:
        version: version of the remote file, as in `Entry`.
        size: in bytes.
        sha256: hex digest of the received contents.
        mtime: modification time of the local file in nanoseconds, which shows later changes.
    """

    version: str
    size: int
    sha256: str
    mtime: int

    def whole(self, path: Path) -> bool:
        """Whether the local file is unchanged."""
        try:
            found = path.stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime)


class Workshop:
    """A folder in which files are collected until they are complete: ``files/``, ``parts/`` and ``journal.jsonl``.

    Args:
        folder: the folder; what an earlier process left in it is reused.
        setting: the environment variable that chooses its place.

    Raises:
        ExciteError: it cannot be written.
    """

    def __init__(self, folder: Path, setting: str = CACHE) -> None:
        self.files, self.parts, self._journal = folder / "files", folder / "parts", folder / "journal.jsonl"
        self.setting = setting
        for place in (self.files, self.parts):
            with told(place, setting):
                place.mkdir(parents=True, exist_ok=True)
        self._write = threading.Lock()

    def done(self) -> dict[str, Stored]:
        """The files that earlier processes completed, by name, without those that have changed since."""
        found: dict[str, Stored] = {}
        if self._journal.is_file():
            for line in self._journal.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    name = str(record.pop("name"))
                    found[name] = Stored(**record)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # cut off by a kill, damaged
                    continue
        # After a crash of the machine, a name can point to a file whose contents never reached the disk.
        return {n: s for n, s in found.items() if s.whole(self.files / n) and sha256_of(self.files / n) == s.sha256}

    def note(self, name: str, stored: Stored) -> None:
        """Record that a file is complete. Raises ExciteError if that cannot be written."""
        with self._write:
            append_text(self._journal, to_json({"name": name, **asdict(stored)}) + "\n", setting=self.setting)

    def keep_only(self, names: Container[str]) -> None:
        """Delete all other files."""
        for path in [p for p in self.files.rglob("*") if p.is_file() or p.is_symlink()]:
            if path.relative_to(self.files).as_posix() not in names:
                path.unlink()


def fetch(
    remote: Remote, entries: Mapping[str, Entry], workshop: Workshop, reuse: Mapping[str, tuple[Path, Stored]]
) -> tuple[dict[str, Stored], int]:
    """Make ``workshop.files`` hold exactly ``entries``.

    Args:
        remote: the source.
        entries: the wanted files, by relative name.
        workshop: the destination; an interrupted call continues from what is there.
        reuse: files of earlier stagings, by name; those with the same version are linked rather than downloaded.

    Returns:
        The files that are there now, by name, and the number of files that had to be downloaded.

    Raises:
        Changed: a file changed while it was downloaded; list again.
        ExciteError: the disk is full, the connection is lost for good, or access is denied.
    """
    with told(workshop.files, workshop.setting):
        stored = {n: s for n, s in workshop.done().items() if n in entries and entries[n].version == s.version}
        workshop.keep_only(stored)
        for name, (path, old) in reuse.items():
            wanted = name in entries and name not in stored and entries[name].version == old.version
            if wanted and old.whole(path):
                stored[name] = _link(path, workshop.files / name, old)
                workshop.note(name, stored[name])
        missing = [name for name in entries if name not in stored]
        _check_space(remote, [entries[n] for n in missing], workshop)
        with progress(remote.url, len(missing), sum(entries[n].size or 0 for n in missing)) as tick:
            for name, got in _in_parallel(remote, entries, missing, workshop, tick):
                stored[name] = got
        shutil.rmtree(workshop.parts, ignore_errors=True)
        os.sync() if hasattr(os, "sync") else None  # once for all files: flushing each would take minutes
    return stored, len(missing)


def _in_parallel(
    remote: Remote, entries: Mapping[str, Entry], names: list[str], workshop: Workshop, tick: Any
) -> Iterator[tuple[str, Stored]]:
    def one(name: str) -> tuple[str, Stored]:
        stored = fetch_file(remote, entries[name], workshop.parts, workshop.files / name, tick)
        workshop.note(name, stored)
        return name, stored

    pool = Threads(THREADS, "excite-stage")
    try:
        for start in range(0, len(names), 4096):  # a future for each of a million files would take a gigabyte
            yield from pool.map(one, names[start : start + 4096])
    finally:
        pool.shutdown(cancel_futures=True)


def fetch_file(remote: Remote, entry: Entry, parts: Path, to: Path, tick: Any = lambda files, size: None) -> Stored:
    """Fetch a file to ``to``, which only appears when it is complete and verified; otherwise as `fetch`."""
    key = hashlib.sha256(f"{entry.path}\0{entry.version}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    part = parts / f"{key}.part"
    for attempt in (1, 2):
        sha256, md5, size = _receive(remote, entry, part, tick)
        if entry.size in (None, size) and (entry.md5 in (None, md5) or _is_encrypted(remote, entry)):
            break
        part.unlink()  # the part left by an earlier process may have been damaged: start again from the beginning
        if _now(remote, entry).version != entry.version:
            raise Changed(entry.path)
        if attempt == 2:
            raise RemoteError(
                f"{remote.url}: {entry.path} arrives damaged ({size} bytes with MD5 {md5} instead of {entry.size} with "
                f"{entry.md5}): check the connection, or upload it again",
                True,
            )
    # Without a hash to compare with, the file must at least not have changed meanwhile.
    if entry.md5 is None and _now(remote, entry).version != entry.version:
        part.unlink()
        raise Changed(entry.path)
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, to)
    tick(1, 0)
    return Stored(entry.version, size, sha256, to.stat().st_mtime_ns)


def _now(remote: Remote, entry: Entry) -> Entry:
    try:
        return Entry.of({**retried(lambda: remote.fs.info(entry.path), remote.url), "name": entry.path})
    except RemoteError as error:
        if error.missing:
            raise Changed(entry.path) from error
        raise


def _is_encrypted(remote: Remote, entry: Entry) -> bool:
    """Whether S3 encrypted this object with a customer key: its ETag then looks like an MD5, but is not one."""
    if remote.protocol not in ("s3", "s3a"):
        return False
    bucket, key, _ = remote.fs.split_path(entry.path)
    try:
        head = retried(lambda: remote.fs.call_s3("head_object", Bucket=bucket, Key=key), remote.url)
    except RemoteError:
        return False
    return head.get("ServerSideEncryption", "").startswith("aws:kms") or "SSECustomerAlgorithm" in head


def _receive(remote: Remote, entry: Entry, part: Path, tick: Any) -> tuple[str, str, int]:
    """Append to ``part`` what it lacks; returns SHA-256, MD5 and number of bytes of the whole file."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    have = part.stat().st_size if part.is_file() else 0
    if entry.size is None or have > entry.size:
        have = 0
    with part.open("r+b" if have else "w+b") as file:
        while data := file.read(CHUNK):
            sha256.update(data)
            md5.update(data)
        tick(0, have)
        try:
            for data in _pieces_of(remote, entry, have, part.parent):
                file.write(data)
                sha256.update(data)
                md5.update(data)
                have += len(data)
                tick(0, len(data))
        except web.TooMuch:
            file.truncate(0)
            raise
    return sha256.hexdigest(), md5.hexdigest(), have


def _pieces_of(remote: Remote, entry: Entry, have: int, place: Path) -> Iterator[bytes]:
    """The missing bytes of a file, piece by piece; never more than was announced or than fits the disk."""
    if entry.size is not None and have >= entry.size:
        return
    web.check_room(place, without_secrets(remote.url), (entry.size or 0) - have)
    if remote.protocol in READ_ONLY:
        yield from _from_web(remote, entry, have, place)
        return
    while entry.size is None or have < entry.size:
        data = _chunk(remote, entry, have)
        yield data
        have += len(data)
        if entry.size is None or not data:
            return


def _from_web(remote: Remote, entry: Entry, have: int, place: Path) -> Iterator[bytes]:
    """The same from a web server, with a single request while the connection lasts."""
    failures = got = 0
    while True:
        try:
            for data in web.pieces(remote, entry.path, have, entry.size):
                web.check_room(place, without_secrets(remote.url), SPARE if entry.size is None else len(data))
                yield data
                have += len(data)
                got += len(data)
            return
        except Exception as error:
            problem = explained(error, remote.url)
            if problem.missing:
                raise Changed(entry.path) from error  # deleted or cut since it was listed
            # A connection that brings almost nothing does not count as progress.
            failures, got = (1 if got >= CHUNK else failures + 1), 0
            if problem.lasting or failures == connection.TRIES:
                raise problem from (None if problem is error else error)
            if failures == 2:  # a server that accepts and never answers has cost a minute
                tell(f"still waiting: {problem}; trying again")
            time.sleep(min(connection.FIRST_WAIT * 2 ** (failures - 1), connection.LONGEST_WAIT))


def _chunk(remote: Remote, entry: Entry, start: int) -> bytes:
    """The next bytes of a file in a store, at most CHUNK of them; all of it if its size is unknown."""
    if entry.size is None:
        return retried(lambda: remote.fs.cat_file(entry.path), remote.url)
    end = min(start + CHUNK, entry.size)
    try:
        data = retried(lambda: remote.fs.cat_file(entry.path, start=start, end=end), remote.url)
    except RemoteError as error:
        if error.missing or "Range" in str(error.__cause__):
            raise Changed(entry.path) from error  # deleted or cut since it was listed
        raise
    # A server that does not support ranges sends the whole file.
    return data[start:end] if len(data) == entry.size else data[: end - start]


def _link(source: Path, to: Path, old: Stored) -> Stored:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, to)
    except OSError:  # a file system without hard links
        shutil.copy2(source, to)
    return Stored(old.version, old.size, old.sha256, to.stat().st_mtime_ns)


def _check_space(remote: Remote, missing: list[Entry], workshop: Workshop) -> None:
    begun = sum(p.stat().st_size for p in workshop.parts.iterdir())
    needed = sum(entry.size or 0 for entry in missing) - begun
    free = shutil.disk_usage(workshop.files).free
    if needed > free:
        raise ExciteError(
            f"the disk is too full to stage {remote.url}: it needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are "
            f"free at {workshop.files}; free some space or set {workshop.setting} to a larger disk"
        )


class progress:
    """A bar on standard error if that is a terminal, else a line every 30 seconds; yields ``tick(files, bytes)``."""

    def __init__(self, what: str, files: int, size: int, doing: str = "staging") -> None:
        self._what, self._files, self._size = f"{doing} {what}", files, size
        self._done = [0, 0]
        self._lock = threading.Lock()
        self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Any:
        if sys.stderr.isatty() and self._files:
            from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn

            from excite.console import bar  # rich takes a while to import

            self._bar = bar(BarColumn(24), DownloadColumn(), TransferSpeedColumn())
            self._task = self._bar.add_task(self._what, total=self._size or None)
            self._bar.start()
        return self._tick

    def _tick(self, files: int, size: int) -> None:
        with self._lock:
            self._done[0] += files
            self._done[1] += size
            text = f"{self._what}: {self._done[0]:,} of {self._files:,} files"
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done[1], description=text)
            elif time.monotonic() - self._said > LINE_EVERY:
                self._said = time.monotonic()
                tell(f"{text}, {self._done[1] / 1e6:,.0f} of {self._size / 1e6:,.0f} MB")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
