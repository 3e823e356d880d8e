"""Who may write to the address of a run: one process at a time, named in ``.owner.json`` there.

Whoever continues a run becomes its owner, by a conditional write. An earlier owner that is still alive looks before
each upload, finds another name, and uploads nothing more.
"""

import json
import uuid
from typing import Any, TypedDict

from excite.files import to_json
from excite.storage.address import Remote, RemoteError
from excite.storage.exclusive import create, replace
from excite.storage.identity import said_by, tag_of, this_process

#: At the address of a run. It is neither listed nor fetched with the run, like all names with a dot in front.
OWNER = ".owner.json"


class Owner(TypedDict):
    """The contents of the file.

    Attributes:
        token: random, of one process.
        place: random, of one run folder: who uploads from the same folder does no harm.
        since: ISO 8601, local time of that machine.
    """

    token: str
    place: str
    host: str
    pid: int
    since: str


class TakenOver(RemoteError):
    """Another process owns the address now. ``owner``: who."""

    def __init__(self, url: str, owner: Owner) -> None:
        self.owner = owner
        super().__init__(f"{url} was taken over by {words(owner)}", lasting=True)


def this_owner(place: str) -> Owner:
    """A fresh owner: this process, for the run folder with this mark."""
    host, pid, now = this_process()
    return {"token": uuid.uuid4().hex, "place": place, "host": host, "pid": pid, "since": now}


def words(owner: Owner) -> str:
    """Who that is, for messages."""
    return f"process {owner['pid']} on {owner['host']} ({owner['since']})"


def read_owner(remote: Remote) -> Owner | None:
    """The owner of an address; None if it has none, or a damaged file. Raises what the file system raises."""
    try:
        value: Any = json.loads(remote.fs.cat_file(remote.at(OWNER)))
        host, pid, since = said_by(value, "since")
        return {"token": str(value["token"]), "place": str(value["place"]), "host": host, "pid": pid, "since": since}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def take(remote: Remote, mine: Owner) -> Owner | None:
    """Become the owner of an address.

    Returns:
        The owner before, if there was one.

    Raises:
        TakenOver: another process became the owner at the same moment.
        Exception: what the file system raises.
    """
    path, data = remote.at(OWNER), (to_json(mine) + "\n").encode()
    tag = tag_of(remote, path)  # before the contents: if these change meanwhile, the write fails
    before = read_owner(remote)
    there = before is not None or tag is not None or remote.fs.exists(path)
    if replace(remote, path, data, tag) if there else create(remote, path, data):
        return before
    now = read_owner(remote)
    if now is None:
        raise RemoteError(f"{remote.url}: {OWNER} does not stay as it was written", lasting=False)
    raise TakenOver(remote.url, now)
