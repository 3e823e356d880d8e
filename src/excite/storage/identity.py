"""The identity of a run: ``run.json``, the first file that is written to its folder and to its address.

Two folders are copies of one run if they have the same ``id``, whatever else differs: a run that is begun again on
another machine because the first one vanished is still the same run. Runs of versions that wrote no ``run.json`` are
compared by their ``environment.json``, which an id is derived from.
"""

import json
import os
import re
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

from excite.errors import ExciteError
from excite.files import to_json, write_text
from excite.storage.address import Remote
from excite.storage.connection import retried
from excite.storage.exclusive import create, create_here, replace
from excite.storage.listing import Entry, exists, list_files

#: In a run folder and at its address: its identity; in a run folder only: its address.
RUN, MARKER = "run.json", "remote.json"
_ENVIRONMENT = "environment.json"
_OLDER = uuid.UUID("7d9f1b0e-5a0c-4f0b-9a53-6f7c1f2f6c11")  # name space for ids of runs of older versions
_TEMPORARY = re.compile(r"\..*\.tmp-[\w.-]+")


class Begun(TypedDict):
    """The contents of ``run.json``: who began the run, and when (ISO 8601, local time)."""

    id: str
    begun: str
    host: str
    pid: int


def this_process() -> tuple[str, int, str]:
    """Host, process id, and the time now."""
    return socket.gethostname(), os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds")


def parse(data: bytes) -> Begun | None:
    """The contents of ``run.json``; None if it is damaged."""
    try:
        value = json.loads(data)
        host, pid, begun = said_by(value, "begun")
        return {"id": str(uuid.UUID(value["id"])), "begun": begun, "host": host, "pid": pid}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def said_by(value: Mapping[str, Any], time: str) -> tuple[str, int, str]:
    """Who wrote a file and when, as it says: host, process and time, in types and lengths that can be shown."""
    pid = value.get("pid")
    return str(value.get("host", "?"))[:100], pid if type(pid) is int else 0, str(value.get(time, "?"))[:40]


def read_begun(folder: Path) -> Begun | None:
    """The identity of a run folder; None if it has none (of an older version), or a damaged one."""
    try:
        return parse((folder / RUN).read_bytes())
    except OSError:
        return None


def begin(folder: Path) -> str:
    """The id of the run in a folder. A folder without one is given one now, before anything else is written to it.

    Raises:
        ExciteError: it cannot be written.
    """
    found = read_begun(folder)
    if found is not None:
        return found["id"]
    host, pid, now = this_process()
    made = Begun(id=_derived(_local(folder / _ENVIRONMENT)) or str(uuid.uuid4()), begun=now, host=host, pid=pid)
    text = to_json(made) + "\n"
    if not create_here(folder / RUN, text.encode()):
        found = read_begun(folder)
        if found is not None:  # another process was first
            return found["id"]
        write_text(folder / RUN, text)
    return made["id"]


def is_blank(folder: Path) -> bool:
    """Whether a folder holds no run yet: it is missing or empty, or has only what a kill at the beginning leaves."""
    return not folder.is_dir() or all(
        path.name.startswith(".") or path.name in (RUN, MARKER) for path in folder.iterdir()
    )


def clear_blank(folder: Path) -> None:
    """Delete what a kill at the beginning left in a blank folder, and the folder if nothing else is in it."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name in (RUN, MARKER) or _TEMPORARY.fullmatch(path.name):
                path.unlink()
        folder.rmdir()


def files_at(remote: Remote) -> dict[str, Entry]:
    """The files of the run at an address, without those that are not the run's; empty if there is nothing."""
    listed = list_files(remote) if exists(remote) else {}
    return {name: entry for name, entry in listed.items() if not is_private(name)}


def is_private(name: str) -> bool:
    """Whether a file at an address is not the run's, but serves uploading."""
    return any(part.startswith(".") for part in name.split("/"))


def begun_at(remote: Remote) -> Begun | None:
    """The identity at an address; None if there is none, or a damaged one."""
    data = _fetched(remote, RUN)
    return None if data is None else parse(data)


def claim(remote: Remote, folder: Path) -> Begun | None:
    """Reserve an address for the run in a folder, by a conditional write of its ``run.json``.

    Returns:
        None if the address is this run's now; else the run that has it.

    Raises:
        ExciteError: access is denied, or the connection fails.
    """
    path, own = remote.at(RUN), begin(folder)
    data = (folder / RUN).read_bytes()
    for _ in range(3):
        if retried(lambda: create(remote, path, data), remote.url):
            return None
        there = begun_at(remote)
        if there is not None:
            return None if there["id"] == own else there
        # It is damaged, so it identifies nothing.
        retried(lambda: replace(remote, path, data, tag_of(remote, path)), remote.url)
    raise ExciteError(f"{remote.url}/{RUN} keeps changing: do several machines begin a run there? give another address")


def tag_of(remote: Remote, path: str) -> str | None:
    """The ETag of a file, if the store gives one. Raises what the file system raises."""
    with suppress(FileNotFoundError):
        tag = remote.fs.info(path).get("ETag")
        return None if tag is None else str(tag)
    return None


def adopt(folder: Path, remote: Remote) -> None:
    """Make a folder part of the run at an address, by taking over its ``run.json``."""
    data = _fetched(remote, RUN)
    if data is not None:
        write_text(folder / RUN, data.decode("utf-8", errors="replace"))


def same_run(remote: Remote, entries: Mapping[str, Entry], local: Path) -> bool:
    """Whether a folder and the files at an address are of one run."""
    here, there = read_begun(local), begun_at(remote) if RUN in entries else None
    if here is not None and there is not None:
        return here["id"] == there["id"]
    # One of them is of an older version, or damaged: what the run recorded when it started identifies it.
    mine = _derived(_local(local / _ENVIRONMENT))
    theirs = _derived(_fetched(remote, _ENVIRONMENT) if _ENVIRONMENT in entries else None)
    return mine == theirs or (mine if here is None else here["id"]) == (theirs if there is None else there["id"])


def _derived(environment: bytes | None) -> str | None:
    return None if environment is None else str(uuid.uuid5(_OLDER, environment.hex()))


def _local(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _fetched(remote: Remote, name: str) -> bytes | None:
    def read() -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(remote.fs.cat_file(remote.at(name)))
        return None

    return retried(read, remote.url)
