"""Temporary names that say which process owns them, so that what a dead process left can be told from work going on.

Such a name is ``.NAME.tmp-PID-PLACE-START-N``: the process, a digest of where its number is valid (machine, start of
the machine, PID namespace), when it started (numbers are used again), and a count.
"""

import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Seconds after which another machine's leftovers may go. Whether its process lives cannot be seen from here, but no
#: file is written for a day without its time changing.
FOREIGN_SECONDS = 86400.0
#: Seconds by which two readings of a process's start may differ: the clock of the machine may have been set.
_CLOCK = 2.0
#: Bytes of the target's name that a temporary name repeats: a name may have 255 in all.
_SHOWN = 120

_count = itertools.count()
_OWNER = r"(?P<pid>\d+)-(?P<place>[0-9a-f]{8})-(?P<start>[0-9a-f]+)-[0-9A-Za-z_]+"
_ASIDE = re.compile(rf"\..+\.tmp-(?:{_OWNER}|(?P<old>\d+))(?:\.\w+)?")  # older versions wrote the number only
_SCRATCH = re.compile(rf"excite-[a-z]+-{_OWNER}")


@functools.cache
def _place() -> str:
    """A digest of where the numbers of this machine's processes are valid."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))  # two containers with one host name both have a process 1
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _started(pid: int) -> float | None:
    """When a process started, seconds since 1970; None if there is none."""
    import psutil

    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.AccessDenied:
        return float("nan")  # another user's: it lives
    except (psutil.Error, OSError, ValueError, OverflowError):
        return None


@functools.cache
def _own_mark(pid: int) -> str:
    """Who this process is; ``pid`` is its own, so that a forked child does not inherit its parent's."""
    return f"{pid}-{_place()}-{int(_started(pid) or 0):x}"


def owner_mark() -> str:
    """This process, and a number that it uses once: the end of a temporary name."""
    return f"{_own_mark(os.getpid())}-{next(_count)}"


def aside_of(path: Path) -> Path:
    """A new temporary name next to ``path``, short enough even if that name is as long as names can be."""
    name = os.fsdecode(os.fsencode(path.name)[:_SHOWN]).encode("utf-8", "ignore").decode()
    return path.with_name(f".{name}.tmp-{owner_mark()}")


def is_left_over(path: Path) -> bool:
    """Whether this is a temporary file or folder of a process that has ended.

    On another machine, or with a name of an older version, it counts as one a day after its last change
    (:data:`FOREIGN_SECONDS`): whether that process lives cannot be seen from here.
    """
    match = _ASIDE.fullmatch(path.name) or _SCRATCH.fullmatch(path.name)
    if match is None:
        return False
    found = match.groupdict()
    if found["place"] == _place():
        started = _started(int(found["pid"]))
        return started is None or abs(started - int(found["start"], 16)) > _CLOCK
    try:
        return time.time() - _last_change(path) > FOREIGN_SECONDS
    except OSError:
        return False


def _last_change(path: Path) -> float:
    """When anything in a file or folder last changed."""
    newest = path.lstat().st_mtime
    if path.is_dir() and not path.is_symlink():
        for folder, folders, files in os.walk(path):
            newest = max([newest, *(os.lstat(os.path.join(folder, name)).st_mtime for name in [*folders, *files])])
    return newest


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files and folders directly in ``folder`` whose process has ended; those of living ones stay.

    Returns:
        What was removed. What another user left is not touched.
    """
    removed = []
    try:
        entries = [Path(entry.path) for entry in os.scandir(folder) if ".tmp-" in entry.name or "excite-" in entry.name]
    except OSError:
        return []
    for path in entries:
        with suppress(OSError):
            if is_left_over(path) and _is_mine(path.lstat()):
                remove(path)
                removed.append(path)
    return removed


def names_in(folder: Path) -> list[str]:
    """Sorted names in a folder, without what dead processes left there, which is removed; [] if there is no folder.

    For whoever asks whether a folder is empty: a process that was killed while it wrote the first file left a temporary
    one, and must be able to begin again.
    """
    remove_leftovers(folder)
    return sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []


def _is_mine(found: os.stat_result) -> bool:
    return sys.platform == "win32" or found.st_uid == os.geteuid()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there; of a folder, as much as can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


_swept: set[tuple[int, str]] = set()


def sweep_once(folder: Path) -> None:
    """:func:`remove_leftovers`, once for each folder that this process works in."""
    key = (os.getpid(), os.path.abspath(folder))
    if key not in _swept:
        _swept.add(key)
        remove_leftovers(folder)


@contextmanager
def scratch_folder(kind: str, within: Path | None = None) -> Iterator[Path]:
    """A new folder, for this user only, that is removed at the end; one that a killed process left is removed first.

    Args:
        kind: lower-case letters; the folder is ``excite-KIND-...``.
        within: where; None: the folder for temporary files.
    """
    path = make_scratch(kind, within)
    try:
        yield path
    finally:
        remove(path)


def make_scratch(kind: str, within: Path | None = None) -> Path:
    """Like :func:`scratch_folder`, for the caller to remove."""
    within = Path(tempfile.gettempdir()) if within is None else within
    sweep_once(within)
    made = Path(tempfile.mkdtemp(prefix=f"excite-{kind}-{_own_mark(os.getpid())}-", dir=within))
    assert stat.S_IMODE(made.lstat().st_mode) & 0o077 == 0 or sys.platform == "win32"
    return made
