"""Kernels in C++: compiled once with the machine's own compiler, cached, loaded with ctypes.

They use no headers but those of the standard library, so compiling takes seconds with any C++17 compiler. Wherever they
are used, something slower with the same results stands in for them on machines where they cannot be built.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from excite.files import cache_folder, not_ours
from excite.owners import make_scratch, remove, scratch_folder
from excite.runtime.job import local_rank
from excite.text import tell

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-trapping-math", "-fPIC")


class Kernels:
    """A C++ file of this package, and the library made from it.

    Args:
        package: the package that the file is in.
        file: its name.
        name: of the library, without ending.
        flags: more flags of the compiler.
        prepare: called with the library once it is loaded, to declare its functions. RuntimeError or OSError says why
            it cannot be used.
        before: called before it is loaded.
    """

    def __init__(
        self,
        package: str,
        file: str,
        name: str,
        flags: tuple[str, ...],
        prepare: Callable[[ctypes.CDLL], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._package, self._file, self._name, self._flags = package, file, name, flags
        self._prepare, self._before = prepare, before
        self._lock = threading.Lock()
        self._library: ctypes.CDLL | None = None
        self._why_not: str | None = None
        self._build_seconds: float | None = None

    def available(self) -> bool:
        """Whether they are available. The first call builds them (in seconds); later processes reuse them."""
        if self._library is None and self._why_not is None:
            with self._lock:
                if self._library is None and self._why_not is None:
                    try:
                        self._library = self._load()
                    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
                        self._why_not = str(error).strip() or type(error).__name__
        return self._library is not None

    def why_not(self) -> str | None:
        """Why they could not be built; None if they are available."""
        return None if self.available() else self._why_not

    def build_seconds(self) -> float | None:
        """How long this process took to compile them; None if they were already built, or are not available."""
        return self._build_seconds

    @property
    def library(self) -> ctypes.CDLL:
        """The library, if they are available."""
        assert self._library is not None
        return self._library

    def _load(self) -> ctypes.CDLL:
        if os.environ.get("EXCITE_KERNELS") == "off":
            raise RuntimeError("EXCITE_KERNELS=off")
        if sys.platform != "linux":
            raise RuntimeError(f"they are only built on Linux, not on {sys.platform}")
        compiler = _compiler()
        flags = (*FLAGS, *self._flags)
        source = resources.files(self._package).joinpath(self._file).read_bytes()
        key = hashlib.sha256(source)
        # -march=native: what was built on one machine must not be loaded on another that shares the home folder.
        for part in (_version(compiler), " ".join(flags), platform.machine(), _cpu_flags()):
            key.update(part.encode())
        path = private_folder() / f"{self._name}-{key.hexdigest()[:16]}.so"
        descriptor = _open_own(path)
        if descriptor is None:
            if local_rank() == 0:
                tell("compiling kernels for this CPU, once on this machine; this takes up to a minute ...")
            started = time.perf_counter()
            _build(compiler, flags, source, path)
            self._build_seconds = time.perf_counter() - started
            descriptor = _open_own(path)
            if descriptor is None:
                raise RuntimeError(f"{path} has been changed")
        self._before()
        # Through the descriptor: it is the file that was checked, even if its name has been reused since. It stays
        # open, because the loader identifies a library by its path.
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        self._prepare(library)
        return library


def private_folder() -> Path:
    """The folder for compiled kernels: in the cache, or, if others can write there, a new one for this process.

    Anybody who can put a file there could have it run as part of this process.
    """
    folder = cache_folder() / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    reason = not_ours(folder.lstat(), stat.S_ISDIR)
    if reason is None:
        return folder
    private = make_scratch("kernels")
    atexit.register(remove, private)
    if local_rank() == 0:
        tell(
            f"the cache of compiled kernels, {folder}, {reason}: they are compiled again for this process; delete that "
            "folder, or set EXCITE_CACHE to one of your own"
        )
    return private


def _open_own(path: Path) -> int | None:
    """A descriptor of the compiled file; None if there is none, or if others could have written it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if not_ours(os.fstat(descriptor), stat.S_ISREG) is None:
        return descriptor
    os.close(descriptor)
    return None


def _compiler() -> list[str]:
    """The command of the compiler, which may have arguments: CXX="ccache g++". Raises RuntimeError if there is none."""
    wanted = os.environ.get("CXX", "").strip()
    if wanted:
        return [wanted] if shutil.which(wanted) else wanted.split()
    found = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if found is None:
        raise RuntimeError("there is no C++ compiler (g++ or clang++) on this machine")
    return [found]


def _ran(command: list[str], seconds: float) -> "subprocess.CompletedProcess[str]":
    """A command that has ended. Compilers write in the user's language, and perhaps not in the encoding of Python."""
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds)


def _version(compiler: list[str]) -> str:
    done = _ran([*compiler, "--version"], 60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(compiler)} --version fails: {done.stderr.strip()[:200]}")
    return done.stdout


def _cpu_flags() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE)
    return found.group() if found else ""


def _build(compiler: list[str], flags: tuple[str, ...], source: bytes, path: Path) -> None:
    """Compile to a temporary name, then rename, so that processes building at the same time get a complete file."""
    with scratch_folder("build", path.parent) as folder:
        code, objects, aside = (folder / name for name in ("kernels.cpp", "kernels.o", path.name))
        code.write_bytes(source)
        # Linked without -fopenmp, so that PyTorch's OpenMP library is used rather than a second thread pool.
        for command in (
            [*compiler, *flags, "-c", str(code), "-o", str(objects)],
            [*compiler, "-shared", str(objects), "-o", str(aside)],
        ):
            done = _ran(command, 600)
            if done.returncode:
                raise RuntimeError(f"{' '.join(compiler)} could not compile them: {done.stderr.strip()[:500]}")
        aside.chmod(0o700)  # with any umask
        aside.replace(path)
