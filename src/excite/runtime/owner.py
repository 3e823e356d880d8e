"""One owner of a run folder: a lock for as long as a process trains in it."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from excite.errors import ExciteError
from excite.files import read_json, write_json

#: Seconds for a process that was just killed to be gone.
PATIENCE = 5.0
_LOCK, _OWNER = ".owner.lock", ".owner.json"


@contextmanager
def owned(folder: Path) -> Iterator[str]:
    """Context in which no other process trains in ``folder``. The system ends the lock with the process.

    Yields:
        "", or a sentence that the file system has no locks.

    Raises:
        ExciteError: another process trains in it; the message has its number and its machine.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise ExciteError(
            f"{folder} is being trained by {_owner(folder)}; wait until it has ended, or end it"
        ) from None
    except (OSError, NotImplementedError) as error:
        yield f"{folder} cannot be locked ({error}): take care that no second process trains in it"
        return
    try:
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(folder / _OWNER, {"pid": os.getpid(), "host": platform.node(), "started": started})
        yield ""
        (folder / _OWNER).unlink(missing_ok=True)
    finally:
        lock.release()


def _owner(folder: Path) -> str:
    try:
        known = read_json(folder / _OWNER)
        return f"process {int(known['pid'])} on {str(known['host'])[:80]} since {str(known['started'])[:40]}"
    except (ExciteError, KeyError, TypeError, ValueError):
        return "another process"
