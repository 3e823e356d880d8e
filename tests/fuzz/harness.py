"""The harness of the fuzzing: seeded cases, limits on time and memory, a watch on what must never happen.

A surface is a function that takes a :class:`Case`, makes an input from its random numbers, and gives it to the code
under test. Whatever that raises, other than what :func:`Surface.run` is told to expect, is a fault. So is a case that
takes too long, that asks for more memory than is allowed, that starts a program, or that writes outside its folder.

    EXCITE_FUZZ_CASES=10000   cases of each surface (200 in the default tests)
    EXCITE_FUZZ_SEED=0        another seed gives other cases
    EXCITE_FUZZ_ONLY=17       this case alone, to see it again
    EXCITE_FUZZ_KEPT=DIR      where the inputs that failed are kept
    EXCITE_FUZZ_TABLE=FILE    a CSV file that gets a row for each surface: cases, how many were refused, faults, seconds
"""

import csv
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from excite.data import jpeg
from excite.errors import ExciteError
from tests.bounded import bounded

CASES = int(os.environ.get("EXCITE_FUZZ_CASES", "200"))
LONG = CASES >= 10_000
SEED = int(os.environ.get("EXCITE_FUZZ_SEED", "0"))
ONLY = os.environ.get("EXCITE_FUZZ_ONLY")
TABLE = os.environ.get("EXCITE_FUZZ_TABLE")
KEPT = Path(os.environ.get("EXCITE_FUZZ_KEPT", Path(tempfile.gettempdir()) / "excite-fuzz"))
CORPUS = Path(__file__).with_name("corpus")
#: Different faults after which a surface stops.
MOST_FAULTS = 20
#: What a message says where memory ran out: the code asked for more than the input can back.
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "not enough memory", "out of memory")
LONGEST_MESSAGE, LONGEST_WITH_PATHS = 3000, 20_000  # a path has at most 4095 bytes, and may be said thrice


class Hang(BaseException):
    """A case took too long. No ``except Exception`` of the code under test can take it for bad input."""


class Forbidden(AssertionError):
    """The code under test did what no input may make it do."""


@dataclass
class Case:
    """One case: its random numbers, and a folder that is empty when it begins."""

    surface: str
    index: int
    rng: random.Random
    folder: Path

    @property
    def expensive(self) -> bool:
        """Whether this case is one of the few on which the default tests spend seconds; at length, all are."""
        return LONG or self.index % 10 == 0

    def file(self, name: str, content: bytes) -> Path:
        """Write the input."""
        path = self.folder / name
        path.write_bytes(content)
        return path


def found(surface: str) -> list[Path]:
    """The inputs in ``corpus/`` that once ended badly."""
    paths = sorted((CORPUS / surface).iterdir())
    assert paths
    return paths


# --- what must never happen -------------------------------------------------------------------------------------------

#: Events of Python's audit hooks that run something, or reach out.
_RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn"}
_REACHES = {"socket.connect", "urllib.Request", "ctypes.dlopen"}
#: Events that change a file; their first arguments are paths.
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


class _Watch:
    """Records forbidden events. (An error raised in an audit hook could be swallowed by the code under test.)"""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.seen: list[str] = []
        self.connects = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None or event not in _EVENTS:
            return
        if event == "ctypes.dlopen" and arguments[0] is None:  # this process itself
            return
        if event == "socket.connect" and self.connects and arguments[1][0] == "127.0.0.1":
            return
        if event in _RUNS or event in _REACHES:
            self.seen.append(f"{event} {arguments[:2]!r:.200}")
            return
        path = arguments[1] if event in ("os.symlink", "os.link") else arguments[0]
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # below an open folder, as shutil.rmtree goes
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(path))
        mode = arguments[1] if event == "open" else "w"
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if event == "open" and not isinstance(mode, str):
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if len(arguments) > 2 else False
        if writes and isinstance(path, str | bytes | os.PathLike) and not self._mine(path):
            self.seen.append(f"{event} {path!r:.200}")

    def _mine(self, path: Any) -> bool:
        absolute = os.path.abspath(os.fsdecode(path))
        return absolute.startswith(self.allowed or ()) or absolute == os.devnull


_EVENTS = _RUNS | _REACHES | _CHANGES | {"open"}
_watch = _Watch()


@contextmanager
def watched(*folders: Path, connects: bool = False) -> Iterator[None]:
    """In this block nothing may be started, no connection made, and no file changed outside these folders.

    ``connects``: connections to this machine may be made.

    Raises:
        Forbidden: it happened, whatever the code under test made of it.
    """
    if not getattr(sys, "_excite_fuzz_watch", False):
        sys.addaudithook(lambda event, arguments: _watch.hook(event, arguments))
        sys._excite_fuzz_watch = True  # type: ignore[attr-defined]
    _watch.connects = connects
    _watch.seen, _watch.allowed = [], tuple(str(folder) for folder in folders)
    try:
        yield
    finally:
        _watch.allowed = None
    if _watch.seen:
        raise Forbidden("; ".join(_watch.seen[:3]))


def check_sentence(error: BaseException, one_line: bool = True) -> None:
    """A message for a user is one line, not endless, and no excuse for memory that should not have been asked for.

    ``one_line`` is false where the user's own words have line breaks, which the command line escapes, and long paths.
    """
    text = str(error)
    assert text, "an empty message"
    assert "\n" not in text or not one_line, f"several lines: {text!r:.300}"
    assert len(text) <= (LONGEST_MESSAGE if one_line else LONGEST_WITH_PATHS), (
        f"a message of {len(text)} characters: {text!r:.300}"
    )
    assert not any(words in text for words in OUT_OF_MEMORY), f"memory ran out: {text:.300}"


# --- running cases ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A case that failed: its number, and where and how."""

    index: int
    place: str
    text: str


class Surface:
    """Runs the cases of a surface within its limits.

    Args:
        name: of the surface; one of its seeds.
        seconds: of one case, after which it hangs.
        megabytes: beyond what the process has at the beginning.
        cases: how many.
        writable: folders in which files may be changed, besides that of the case.
        one_line: see :func:`check_sentence`.
        connects: see :func:`watched`.
    """

    def __init__(
        self,
        name: str,
        *,
        seconds: float = 10,
        megabytes: int = 256,
        cases: int | None = None,
        writable: tuple[Path, ...] = (),
        one_line: bool = True,
        connects: bool = False,
    ) -> None:
        self.connects = connects
        self.one_line = one_line
        self.name, self.seconds, self.megabytes, self.writable = name, seconds, megabytes, writable
        self.cases = CASES if cases is None else cases
        self.faults: dict[str, Fault] = {}
        self.refused = 0

    def run(
        self, check: Callable[[Case], None], *, test: str, expected: tuple[type[BaseException], ...] = (ExciteError,)
    ) -> None:
        """Run the cases, and fail with all different faults.

        Args:
            check: the surface.
            test: ``FILE::TEST``, for the line that shows a fault again.
            expected: the errors that bad input may end in; each must be one sentence.
        """
        torch.ones(1000).sum()  # what PyTorch sets aside once
        jpeg.available()  # which builds them
        KEPT.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        running = KEPT / f"{self.name}.running"  # where the interpreter itself ends, this says in which case
        with _folder() as place, bounded(self.megabytes, 0), running.open("w") as now:
            before = signal.signal(signal.SIGALRM, _hangs)
            try:
                for index in [int(ONLY)] if ONLY else range(self.cases):
                    os.pwrite(now.fileno(), f"{index:<12}".encode(), 0)
                    self._one(index, place, check, expected)
                    if len(self.faults) >= MOST_FAULTS:
                        break
            finally:
                signal.signal(signal.SIGALRM, before)
        running.unlink(missing_ok=True)
        if TABLE:
            self._record(Path(TABLE), time.monotonic() - begun)
        if self.faults:
            pytest.fail(self._said(test), pytrace=False)
        if ONLY:  # what the test asserts about all of its cases says nothing about one
            pytest.skip(f"case {ONLY} of seed {SEED} ends well")

    def _record(self, table: Path, seconds: float) -> None:
        new = not table.is_file()
        with table.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if new:
                rows.writerow(["surface", "cases", "refused", "faults", "seconds", "seed", "date"])
            counts = [1 if ONLY else self.cases, self.refused, len(self.faults)]
            rows.writerow([self.name, *counts, f"{seconds:.0f}", SEED, date.today().isoformat()])

    def _one(self, index: int, place: Path, check: Callable[[Case], None], expected: tuple[Any, ...]) -> None:
        folder = place / "case"
        folder.mkdir()
        case = Case(self.name, index, random.Random(f"{self.name} {SEED} {index}"), folder)
        faulthandler.dump_traceback_later(10 * self.seconds, exit=True)  # compiled code does not heed a signal
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            with (
                watched(folder, *self.writable, connects=self.connects),
                warnings.catch_warnings(record=True) as warned,
            ):
                warnings.simplefilter("always")
                try:
                    check(case)
                except expected as error:
                    self.refused += 1
                    check_sentence(error, self.one_line)
            for warning in warned:
                raise Forbidden(f"warns: {warning.message} ({warning.filename}:{warning.lineno})")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._add(index, error, folder)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(folder, onerror=_unlocked)

    def _add(self, index: int, error: BaseException, folder: Path) -> None:
        place = _place_of(error)
        if place in self.faults:
            return
        kept = KEPT / f"{self.name}-{SEED}-{index}"
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(shutil.Error):  # it may hold a pipe
            shutil.copytree(folder, kept, symlinks=True, ignore_dangling_symlinks=True)
        lines = "".join(traceback.format_exception(error)).splitlines()[-30:]
        text = "\n".join(line[:300] for line in lines)
        self.faults[place] = Fault(index, place, f"{text}\n  input: {kept}")

    def _said(self, test: str) -> str:
        parts = [f"{self.name}: {len(self.faults)} faults in {self.cases} cases"]
        for fault in self.faults.values():
            again = f"EXCITE_FUZZ_SEED={SEED} EXCITE_FUZZ_ONLY={fault.index} python -m pytest 'tests/fuzz/{test}'"
            parts.append(f"--- case {fault.index} of seed {SEED}; again: {again}\n{fault.text}")
        return "\n".join(parts)


def _hangs(*_: Any) -> None:
    raise Hang("this takes too long")


def _unlocked(function: Any, path: str, _: Any) -> None:
    """Remove what a case made unreadable."""
    os.chmod(os.path.dirname(path), 0o700)
    os.chmod(path, 0o700)
    function(path)


def _place_of(error: BaseException) -> str:
    """Type and innermost line of ours: the same for cases that fail in the same way."""
    origin: BaseException = error
    while isinstance(origin, AssertionError | ExciteError) and origin.__context__ is not None:
        origin = origin.__context__
    frames = traceback.extract_tb(origin.__traceback__)
    ours = [f for f in frames if "/excite/" in f.filename] or frames
    kind = str(error)[:25] if isinstance(error, AssertionError) else type(error).__name__
    return f"{kind} {ours[-1].filename}:{ours[-1].lineno}" if ours else kind


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory where the system has one: writing the files takes longer than reading them."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)
