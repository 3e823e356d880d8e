"""Lists the files at an address: safe names, sizes, and what distinguishes versions of a file."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from excite.errors import ExciteError, nearest
from excite.storage.address import READ_ONLY, Remote, RemoteError
from excite.storage.connection import retried
from excite.storage.patience import waiting_for
from excite.threads import Threads

THREADS = 16  # requests at a time: a small file costs a round trip, not bandwidth


@dataclass(frozen=True)
class Entry:
    """A remote file.

    Attributes:
        path: its path in the file system.
        size: in bytes; None if the server does not say.
        version: changes whenever the file does: its size with its ETag, else with its time.
        md5: hex digest of the contents, if the store gives one.
    """

    path: str
    size: int | None
    version: str
    md5: str | None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "Entry":
        """From fsspec's information on a file."""
        size = info.get("size")
        marks = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "generation", "VersionId")
        times = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")
        mark = next((info[key] for key in (*marks, *times) if info.get(key)), "")
        if isinstance(mark, datetime):  # some file systems give the time in different forms in lists and elsewhere
            mark = mark.timestamp()
        return cls(info["name"], size, f"{size} {mark}".replace('"', ""), _md5(info))


def _md5(info: Mapping[str, Any]) -> str | None:
    """S3's ETag is the MD5 of an object uploaded in one piece ("-" marks others); other stores have a field for it."""
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
    """A digest of a set of files in exactly these versions."""
    return hashlib.sha256(json.dumps(sorted((k, e.version) for k, e in entries.items())).encode()).hexdigest()[:16]


def list_files(remote: Remote, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Entry]:
    """The files below an address, by their path relative to it; a single file under its own name.

    Raises:
        RemoteError: there is nothing, access is denied, or the connection fails.
        ExciteError: a name would lead out of the folder that it is staged into.
    """
    # On the web, a folder is an address that ends with "/", whose page is a list of links.
    info = None if remote.path.endswith("/") else _info(remote)
    if info is not None and info.get("type") == "file":
        return {safe(remote.name, remote.url): Entry.of({**info, "name": remote.path})}
    found = retried(lambda: remote.fs.find(remote.path, detail=True, withdirs=False), remote.url)
    entries = _entries(remote, _named(found), remote.path, wanted)
    if not entries and info is None:
        raise nothing(remote)
    return entries


def list_pattern(remote: Remote) -> tuple[str, dict[str, Entry]]:
    """The common path, and the files that match a pattern such as ``s3://bucket/photos/*.jpg``, relative to it."""
    base = re.split(r"[*?\[]", remote.path, maxsplit=1)[0].rpartition("/")[0]
    found = retried(lambda: remote.fs.glob(remote.path, detail=True), remote.url)
    return base, _entries(remote, _named(found), base, lambda name: True)


def _named(found: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was found, each with its name: fsspec tells nothing else of a page that is a file."""
    return [{"name": path, **info} for path, info in found.items()]


def _entries(
    remote: Remote, infos: Iterable[Mapping[str, Any]], base: str, wanted: Callable[[str], bool]
) -> dict[str, Entry]:
    files: dict[str, Mapping[str, Any]] = {}
    for info in infos:
        if info.get("type") == "directory" or info["name"].endswith("/"):  # S3 marks folders with empty objects
            continue
        name = info["name"][len(base.rstrip("/")) :].removeprefix("/")
        if wanted(name):
            files[safe(name, remote.url)] = info
    if remote.protocol in READ_ONLY:  # a page of links has neither sizes nor versions
        with Threads(THREADS) as pool:
            told = pool.map(lambda i: retried(lambda: remote.fs.info(i["name"]), remote.url), files.values())
            files = dict(zip(files, told, strict=True))
    return {name: Entry.of(info) for name, info in files.items()}


def safe(name: str, url: str) -> str:
    """Return the name if it stays inside the folder that it will be staged into; raise ExciteError otherwise."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise ExciteError(f"{url} holds a file named {name!r}, which cannot be staged into a folder: rename it there")
    if any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        raise ExciteError(f"{url} holds a file whose name is too long for a disk, {name[:60]!r}...: rename it there")
    return name


def _info(remote: Remote) -> dict[str, Any] | None:
    """The store's information on an address; None if there is nothing."""
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
    """The error for a missing address: the bucket, or the first name below it that does not exist, with a near one."""
    root, _, rest = remote.path.strip("/").partition("/")
    if remote.protocol in READ_ONLY or remote.is_local:
        return RemoteError(f"{remote.url} does not exist; check its spelling", True)
    try:
        with waiting_for(remote.url):
            return _first_missing(remote, root, rest)
    except Exception as error:  # users who may read a file need not be allowed to list folders
        return RemoteError(f"{remote.url} does not exist, or you may not list it ({type(error).__name__})", True)


def _first_missing(remote: Remote, root: str, rest: str) -> RemoteError:
    if not remote.fs.exists(root):
        return RemoteError(f"{remote.url}: there is no bucket {root!r}, or you may not list it", True)
    place = root
    for name in rest.split("/") if rest else []:
        names = [path.rstrip("/").rpartition("/")[2] for path in remote.fs.ls(place, detail=False)]
        if name not in names:
            hint = nearest(name, names)
            return RemoteError(f"{remote.url} does not exist: {place} has no {name!r}{hint}", True)
        place += f"/{name}"
    return RemoteError(f"{remote.url} holds no files", True)
