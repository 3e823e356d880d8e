"""Start Python child processes in which no file of the current folder can shadow a module.

``python -m`` and ``python -c`` look for modules in the current folder first, so a ``json.py`` that came with a data set
would be run. ``-P`` (Python 3.11) leaves that folder out.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: The environment variable for ``-P``: for processes that a library starts, and for older Pythons, which reject the
#: option but ignore the variable.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def python_command(*words: str) -> list[str]:
    """The command line of a child process: this interpreter with ``words``, such as ``"-m", "excite.bench.worker"``."""
    return [sys.executable, *python_options(), *words]


def python_options() -> tuple[str, ...]:
    """Options to put between the interpreter and ``-m``, for launchers that add the interpreter themselves."""
    return ("-P",)


@contextmanager
def safe_children() -> Iterator[None]:
    """Every Python process started in this block, by this package or a library, ignores the current folder."""
    before = {key: os.environ.get(key) for key in SAFE_PATH}
    os.environ.update(SAFE_PATH)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def make_children_safe() -> None:
    """Like :func:`safe_children`, for the rest of this process: for commands, which own their environment."""
    os.environ.update(SAFE_PATH)


def forget_current_folder() -> None:
    """Remove the current folder from ``sys.path``, where ``python -m excite`` put it first.

    Only while Python is still looking for the module to run, and not if this package itself is in the current folder.
    """
    here = os.getcwd()
    if sys.argv[:1] == ["-m"] and sys.path[:1] in ([""], [here]) and not __file__.startswith(here + os.sep):
        del sys.path[0]
