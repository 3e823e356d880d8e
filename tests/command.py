"""Running the real command cheaply: each time a process of its own, forked from one that has imported what is heavy.

Importing PyTorch takes two to five seconds of a busy core; a hundred tests that start Python anew would do little else.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

SECONDS = 300
#: Nothing here computes when it is imported: a process that has run a parallel loop must not be forked.
PRELOADED = [
    "torch",
    "torch._dynamo",  # what torch.optim imports when an optimizer is made
    "torch.distributed.tensor",  # and Accelerate when it prepares a model
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "excite.cli",
    "excite.training.loop",
    "excite.trained.accuracy",
    "excite.models.summary",
    __name__,
]

_context = get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class Command:
    """``excite WORDS...`` in a process of its own; of ``subprocess.Popen``'s interface what tests use."""

    def __init__(self, words: Sequence[object], folder: Path, **environment: str) -> None:
        self.words = [str(word) for word in words]
        self._aside = tempfile.TemporaryDirectory()
        arguments = (self.words, str(folder), {**os.environ, **environment}, self._aside.name)
        self._process = _context.Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As ``poll`` gives it."""
        return self.poll()

    def poll(self) -> int | None:
        """The exit status (-N where signal N ended it), or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str]:
        """Wait for the end: (output, errors). Once."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"excite {' '.join(self.words)}: more than {timeout} s")
        out, err = (Path(self._aside.name, name).read_text(encoding="utf-8") for name in ("out", "err"))
        self._aside.cleanup()
        return out, err


def run_command(words: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``excite WORDS...`` does in ``folder``, with this process's environment."""
    command = Command(words, folder)
    out, err = command.communicate()
    assert command.returncode is not None
    return subprocess.CompletedProcess(command.words, command.returncode, out, err)


def _run(arguments: Sequence[str], folder: str, environment: Mapping[str, str], aside: str) -> None:
    for stream, name in ((0, os.devnull), (1, f"{aside}/out"), (2, f"{aside}/err")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, stream)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["excite", *arguments]
    from excite.cli import main

    main()
