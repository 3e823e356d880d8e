"""How every Python process is started that this package starts: no file of the current folder stands in for a module.

``python -m`` and ``python -c`` look for modules in the current folder first, so that a ``json.py`` which came with
somebody's images would be run. ``-P`` (Python 3.11) leaves that folder out.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: What ``-P`` is called in the environment: for processes that a library starts, and for older Pythons, which do not
#: know the option and overlook the variable.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def python_command(*words: str) -> list[str]:
    """The command of a child: this interpreter with ``words``, such as ``"-m", "excite.bench.worker"``."""
    return [sys.executable, *python_options(), *words]


def python_options() -> tuple[str, ...]:
    """What stands between the interpreter and ``-m``, for launchers that put the interpreter there themselves."""
    return ("-P",)


@contextmanager
def safe_children() -> Iterator[None]:
    """Whatever starts a Python process in this block, this package or a library, starts it so."""
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
    """The same for all that this process will start: for commands, whose environment is their own."""
    os.environ.update(SAFE_PATH)


def forget_current_folder() -> None:
    """Leave the current folder out of this process's own search, where ``python -m excite`` put it first.

    Only while Python still looks for the module to run; a package that lies in the current folder stays findable.
    """
    here = os.getcwd()
    if sys.argv[:1] == ["-m"] and sys.path[:1] in ([""], [here]) and not __file__.startswith(here + os.sep):
        del sys.path[0]
