"""Samples what a process and all its descendants hold: memory, descriptors, threads, shared memory, temporary files.

From outside, so that nothing of it is in the numbers. Linux only: they are read from /proc.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SHM = "/dev/shm"
MB = 1e6


@dataclass(frozen=True)
class Sample:
    """What a job holds at one moment.

    Attributes:
        seconds: since the start of the watch.
        memory: MB of anonymous and shared memory of all processes, each page once. Mapped files are not counted: how
            many of PyTorch's libraries are this job's own depends on who else runs.
        main: the same for the first process alone.
        descriptors, threads, processes: of all processes; zombies count as processes.
        shm_files, shm_mb: files in /dev/shm that are the job's, also those whose name is removed already.
        temporary: files and folders in the job's $TMPDIR.
        run_files: files and folders in its run folder.
    """

    seconds: float
    memory: float
    main: float
    descriptors: int
    threads: int
    processes: int
    shm_files: int
    shm_mb: float
    temporary: int
    run_files: int


#: The numbers that have to be flat.
MEASURES = tuple(name for name in Sample.__annotations__ if name != "seconds")


@dataclass
class Watch:
    """Takes samples of one job.

    Args:
        pid: its first process.
        temporary: its $TMPDIR.
        run: its run folder.
    """

    pid: int
    temporary: Path
    run: Path
    samples: list[Sample] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)
    _before: frozenset[int] = field(default_factory=lambda: frozenset(_named()))
    _ours: set[int] = field(default_factory=set)
    _others: set[int] = field(default_factory=set)

    def sample(self) -> Sample | None:
        """One more sample; None if the job has ended."""
        try:
            first = psutil.Process(self.pid)
            if first.status() == psutil.STATUS_ZOMBIE:
                return None
            family = [first, *first.children(recursive=True)]
        except psutil.Error:
            return None
        memory, descriptors, threads, shared = [], 0, 0, dict[int, int]()
        for process in family:
            # One that ends while it is looked at counts as nothing.
            memory.append(_memory(process.pid))
            try:
                descriptors, threads = descriptors + process.num_fds(), threads + process.num_threads()
            except psutil.Error:
                continue
            shared |= _held(process.pid)
        shared |= self._left({process.pid for process in family}, shared)
        taken = Sample(
            seconds=time.monotonic() - self._since,
            memory=sum(memory) / MB,
            main=memory[0] / MB,
            descriptors=descriptors,
            threads=threads,
            processes=len(family),
            shm_files=len(shared),
            shm_mb=sum(shared.values()) / MB,
            temporary=len(_below(self.temporary)),
            run_files=len(_below(self.run)),
        )
        self.samples.append(taken)
        return taken

    def left_over(self) -> list[str]:
        """What is there although the job has ended; nothing if all is well."""
        shared = self._left(set(), {})
        named = [entry.path for entry in os.scandir(SHM) if entry.inode() in shared]
        # PyTorch makes this folder whenever it is imported, for all processes of a user, and keeps it.
        return [*named, *(path for path in _below(self.temporary) if not path.startswith(f"{self.temporary}/torchind"))]

    def _left(self, family: set[int], known: Mapping[int, int]) -> dict[int, int]:
        """Files with a name in /dev/shm that are new, and that no process outside of the job holds."""
        named = {number: size for number, size in _named().items() if number not in self._before}
        new = {number for number in named if number not in known} - self._ours - self._others
        if new:
            for pid in psutil.pids():  # it takes long, and is done once for every file
                if pid not in family:
                    self._others |= new & _held(pid).keys()
            self._ours |= new - self._others
        return {number: size for number, size in named.items() if number in self._ours}


def _below(folder: Path) -> list[str]:
    """Files and folders in a folder, in which others come and go."""
    return [os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)]


def _memory(pid: int) -> int:
    """Bytes of anonymous and shared memory, with a page that N processes share counted as 1/N in each of them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return 1024 * (values["Pss_Anon"] + values["Pss_Shmem"] + values.get("SwapPss", 0))


def _named() -> dict[int, int]:
    """Number -> bytes of the files that have a name in /dev/shm. Folders are somebody else's: excite makes none."""
    found = {}
    for entry in os.scandir(SHM):
        with suppress(OSError):
            if entry.is_file(follow_symlinks=False):
                stat = entry.stat(follow_symlinks=False)
                found[stat.st_ino] = stat.st_blocks * 512
    return found


def _held(pid: int) -> dict[int, int]:
    """Number -> bytes of the files in /dev/shm that a process has open or mapped."""
    found = {}
    for number in _listed(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{number}"
        try:
            if os.readlink(link).startswith(f"{SHM}/"):
                stat = os.stat(link)
                found[stat.st_ino] = stat.st_blocks * 512
        except OSError:
            continue
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in maps:
        if f" {SHM}/" in line:
            span, _, _, _, inode, _ = line.split(maxsplit=5)
            low, high = (int(end, 16) for end in span.split("-"))
            found.setdefault(int(inode), high - low)
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


@dataclass
class Watched:
    """How a watched job went.

    Attributes:
        status: its exit status.
        said: "done N", or else its last line.
        done: how much it says that it has done.
        samples: those after it was warm.
        left: what it left behind, see :meth:`Watch.left_over`.
    """

    status: int
    said: str
    done: int
    samples: list[Sample]
    left: list[str]


def run_watched(words: Sequence[str], scratch: Path, run: Path, every: float) -> Watched:
    """Run ``words`` in a process of its own and take a sample every so many seconds until it ends.

    It prints "warm" once it has done everything once, and at the end "done N".

    Args:
        words: the command.
        scratch: a new folder, for its $TMPDIR and what it prints.
        run: its run folder.
        every: seconds between two samples.
    """
    temporary, said = scratch / "tmp", scratch / "said.txt"
    temporary.mkdir(parents=True)
    with said.open("wb") as out:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    watch = Watch(process.pid, temporary, run)
    warm, kept = False, list[Sample]()
    try:
        while process.poll() is None:
            sample, lines = watch.sample(), said.read_bytes().split(b"\n")
            if sample is not None and warm and not any(line.startswith(b"done ") for line in lines):
                kept.append(sample)  # once it is done it gives back what it has, which takes a while
            warm = warm or b"warm" in lines
            time.sleep(every)
    finally:
        process.kill()
        process.wait()
    lines = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    told = next((line for line in reversed(lines) if line.startswith("done ")), "")
    wait_for_the_end(process.pid)
    last = told or (lines[-1] if lines else "")
    return Watched(process.returncode, last, int(told.split()[1]) if told else 0, kept, watch.left_over())


def wait_for_the_end(session: int) -> None:
    """Wait for the last processes of a session: multiprocessing's helpers end a moment after the one they served."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not any(_session(pid) == session for pid in psutil.pids()):
            return
        time.sleep(0.1)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0
