"""How much memory this process may still use. Containers, batch systems and ``ulimit -d`` allow less than there is."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

#: A cgroup without a limit has this many bytes or more; version 1 writes a number close to 2^63.
_NONE = 1 << 60
_CGROUPS = Path("/sys/fs/cgroup")


def memory_left() -> int:
    """Bytes of memory that this process can still use, as far as the system, its cgroups and its limits say."""
    left = int(psutil.virtual_memory().available)
    return max(0, min([left, *_left_in_cgroups(), *_left_of_limit()]))


def _left_of_limit() -> Iterator[int]:
    """``ulimit -d``: memory that is not a mapped file."""
    if sys.platform != "linux":
        return
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        yield soft - int(psutil.Process().memory_info().data)


def _left_in_cgroups() -> Iterator[int]:
    """What the cgroups of this process, and those above them, have left. Pages of files can be dropped."""
    for folder, limit, usage, kind in _cgroups():
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdecimal() and int(most) < _NONE:
            yield int(most) - used + sum(int(files.get(f"{kind}{name}_file", 0)) for name in ("active", "inactive"))


def _cgroups() -> Iterator[tuple[Path, str, str, str]]:
    """Folder, names of the files with the limit and the use, and what the totals in memory.stat begin with."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = _CGROUPS / "memory" if kinds else _CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_") if kinds else _NAMES
        inner = root / place.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == root or root in folder.parents:
                yield folder, *names


_NAMES = ("memory.max", "memory.current", "")
