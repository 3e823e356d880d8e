"""One process trains in a run folder at a time."""

import os
import platform
import subprocess
import sys

import pytest
from filelock import FileLock

from excite.errors import ExciteError
from excite.runtime import owner
from excite.runtime.owner import owned
from excite.training import train
from tests.training.small import small

HOLD = """
import sys
from pathlib import Path
from excite.runtime.owner import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(owner, "PATIENCE", 0.0)


def test_a_second_process_is_told_who_is_first(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mine\n"
    refusal = rf"is being trained by process {holder.pid} on {platform.node()} since 2.*; wait until it has ended, or"
    with pytest.raises(ExciteError, match=refusal), owned(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with owned(tmp_path) as problem:  # the system has ended the lock with the process
        assert problem == ""
    assert not (tmp_path / ".owner.json").exists()


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path):
    run = train(small("epochs=1"), out=tmp_path, quiet=True)["run"]
    with owned(tmp_path / os.path.basename(run)), pytest.raises(ExciteError, match=rf"process {os.getpid()} on "):
        train(None, ["epochs=2"], resume=run, quiet=True)
    assert train(None, ["epochs=2"], resume=run, quiet=True)["epochs"] == 2


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with owned(tmp_path) as problem:
        assert "cannot be locked ([Errno 37] No locks available): take care that no second process" in problem
