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

_context = get_context("forkserver")
# Nothing here computes when it is imported: a process that has run a parallel loop must not be forked.
_context.set_forkserver_preload(["torch", "excite.cli", "excite.training", "excite.inference", __name__])


def run_command(words: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``excite WORDS...`` does in ``folder``, with this process's environment."""
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as aside:
        process = _context.Process(target=_run, args=(arguments, str(folder), dict(os.environ), aside))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"excite {' '.join(arguments)}: more than {SECONDS} s")
        out, err = (Path(aside, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


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
