"""What lies at an address: names made safe, sizes, and whatever tells one version of a file from another."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from excite.errors import ExciteError, nearest
from excite.storage.address import READ_ONLY, Remote, RemoteError
from excite.storage.connection import retried

THREADS = 16  # requests at a time: a small file costs a round trip, not bandwidth


@dataclass(frozen=True)
class Entry:
    """A remote file.

    Attributes:
        path: where the file system has it.
        size: bytes; None where the server does not say.
        version: changes when the file does: its ETag, else its time, with its size.
        md5: hex digest of the contents, where the store gives one.
    """

    path: str
    size: int | None
    version: str
    md5: str | None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "Entry":
        """From what fsspec tells of a file."""
        size = info.get("size")
        marks = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "generation", "VersionId")
        times = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")
        mark = next((info[key] for key in (*marks, *times) if info.get(key)), "")
        if isinstance(mark, datetime):  # some file systems give the time in one form in lists and in another elsewhere
            mark = mark.timestamp()
        return cls(info["name"], size, f"{size} {mark}".replace('"', ""), _md5(info))


def _md5(info: Mapping[str, Any]) -> str | None:
    """S3's ETag is the MD5 of an object put in one piece ("-" marks the others); other stores have a field for it."""
    tag = str(info.get("ETag") or "").strip('"')
    if re.fullmatch("[0-9a-f]{32}", tag):
        return tag
    given = info.get("md5Hash") or info.get("content_md5") or info.get("Content-MD5")
    if isinstance(given, bytes | bytearray):
        return bytes(given).hex()
    try:
        return base64.b64decode(given, validate=True).hex() if given else None
    except binascii.Error:
        return None


def digest(entries: Mapping[str, Entry]) -> str:
    """One name for a set of files in just these versions."""
    return hashlib.sha256(json.dumps(sorted((k, e.version) for k, e in entries.items())).encode()).hexdigest()[:16]


def list_files(remote: Remote, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Entry]:
    """The files below an address, by their path relative to it; a single file under its own name.

    Raises:
        RemoteError: nothing there, no access, no connection.
        ExciteError: a name that would lead out of the folder it is staged into.
    """
    # On the web a folder is an address that ends with "/", and the page there is a list of links.
    info = None if remote.path.endswith("/") else _info(remote)
    if info is not None and info.get("type") == "file":
        return {safe(remote.name, remote.url): Entry.of({**info, "name": remote.path})}
    found = retried(lambda: remote.fs.find(remote.path, detail=True, withdirs=False), remote.url)
    entries = _entries(remote, found.values(), remote.path, wanted)
    if not entries and info is None:
        raise nothing(remote)
    return entries


def list_pattern(remote: Remote) -> tuple[str, dict[str, Entry]]:
    """The files that a pattern such as ``s3://bucket/photos/*.jpg`` matches, and the path they are relative to."""
    base = re.split(r"[*?\[]", remote.path, maxsplit=1)[0].rpartition("/")[0]
    found = retried(lambda: remote.fs.glob(remote.path, detail=True), remote.url)
    return base, _entries(remote, found.values(), base, lambda name: True)


def _entries(
    remote: Remote, infos: Iterable[Mapping[str, Any]], base: str, wanted: Callable[[str], bool]
) -> dict[str, Entry]:
    files: dict[str, Mapping[str, Any]] = {}
    for info in infos:
        if info.get("type") == "directory" or info["name"].endswith("/"):  # S3 marks folders by empty objects
            continue
        name = info["name"][len(base.rstrip("/")) :].removeprefix("/")
        if wanted(name):
            files[safe(name, remote.url)] = info
    if remote.protocol in READ_ONLY:  # a page of links has neither sizes nor versions
        with ThreadPoolExecutor(THREADS) as pool:
            told = pool.map(lambda i: retried(lambda: remote.fs.info(i["name"]), remote.url), files.values())
            files = dict(zip(files, told, strict=True))
    return {name: Entry.of(info) for name, info in files.items()}


def safe(name: str, url: str) -> str:
    """The name, if it stays inside the folder it will be staged into; ExciteError otherwise."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise ExciteError(f"{url} holds a file named {name!r}, which cannot be staged into a folder: rename it there")
    if any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        raise ExciteError(f"{url} holds a file whose name is too long for a disk, {name[:60]!r}...: rename it there")
    return name


def _info(remote: Remote) -> dict[str, Any] | None:
    """What the store tells of an address; None where there is nothing."""
    try:
        return retried(lambda: remote.fs.info(remote.path), remote.url)
    except RemoteError as error:
        if error.missing:
            return None
        raise


def exists(remote: Remote) -> bool:
    """Whether there is a file or a folder with files at an address."""
    return _info(remote) is not None


def nothing(remote: Remote) -> RemoteError:
    """Say what is missing: the bucket, or the first name below it that is not there, and which one is near."""
    root, _, rest = remote.path.strip("/").partition("/")
    if remote.protocol in READ_ONLY or remote.is_local:
        return RemoteError(f"{remote.url} does not exist; check its spelling", True)
    place = root
    try:
        if not remote.fs.exists(root):
            return RemoteError(f"{remote.url}: there is no bucket {root!r}, or it may not be listed", True)
        for name in rest.split("/") if rest else []:
            names = [path.rstrip("/").rpartition("/")[2] for path in remote.fs.ls(place, detail=False)]
            if name not in names:
                hint = nearest(name, names)
                return RemoteError(f"{remote.url} does not exist: {place} has no {name!r}{hint}", True)
            place += f"/{name}"
    except Exception as error:  # whoever may read a file need not be allowed to list folders
        return RemoteError(f"{remote.url} does not exist, or may not be listed ({type(error).__name__})", True)
    return RemoteError(f"{remote.url} holds no files", True)
