"""Decoding workers need nothing of the program that trains."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest
from PIL import Image

from excite.data import worker_context as worker_context_module
from excite.data.worker_context import worker_context

# As a stranger writes it: no `if __name__ == "__main__"`.
PROGRAM = """
print("the program runs as", __name__)
from excite.data import EvalLoader, open_data
from excite.data.config import AugmentConfig, DataConfig
config = DataConfig(source="folder", root="{root}", image_size=16, mode="stream", workers=2)
data = open_data(config, AugmentConfig())
loader = EvalLoader(data.val, batch_size=2, device="cpu", data_config=config, rank=0, world=1)
print("images", sum(len(labels) for _, labels, _ in loader))
"""
RIGHT = "the program runs as __main__\nimages 6\n"


@pytest.fixture
def program(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (20, 20), (i, i, i)).save(folder / f"{i}.png")
    return PROGRAM.format(root=tmp_path / "images")


@pytest.fixture
def folder(tmp_path):
    """A current folder with modules that are called as Python's own."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("random", "queue", "signal", "selectors", "socket", "struct", "statistics"):
        (here / f"{name}.py").write_text("raise SystemExit('a module of the current folder was imported')\n")
    return here


def run(*words, folder, text=None):
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, input=text, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("how", ["a file", "standard input", "an argument"])
@pytest.mark.heavy
def test_a_program_without_a_guard_runs_once(how, program, folder, tmp_path):
    (tmp_path / "program.py").write_text(program)
    if how == "a file":
        done = run(tmp_path / "program.py", folder=folder)
    elif how == "standard input":
        done = run("-P", "-", folder=folder, text=program)
    else:
        done = run("-P", "-c", program, folder=folder)
    assert (done.stdout, done.stderr, done.returncode) == (RIGHT, "", 0)


def test_workers_find_pythons_own_modules_before_those_beside_the_program(tmp_path, monkeypatch):
    folder, other = str(tmp_path), "/usr/lib/python3"
    (tmp_path / "program.py").write_text("")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", f"{folder}/program.py", raising=False)  # pytest-xdist's
    ours = [folder, other] if sys.flags.safe_path else [other, folder]
    assert worker_context_module._programs_folder_last([folder, other]) == ours
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>")  # then it is the current folder
    monkeypatch.chdir(tmp_path)
    assert worker_context_module._programs_folder_last([folder, other]) == ours
    monkeypatch.setattr(
        "excite.data.worker_context.__file__", f"{folder}/excite/data/worker_context.py"
    )  # this package lies in it itself
    assert worker_context_module._programs_folder_last([folder, other]) == [folder, other]


def test_the_users_own_processes_are_left_alone():
    before, safe = multiprocessing.spawn.get_preparation_data, os.environ.get("PYTHONSAFEPATH")
    context = worker_context()
    assert multiprocessing.spawn.get_preparation_data is before
    assert os.environ.get("PYTHONSAFEPATH") == safe
    process = context.Process(target=os.getpid)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert multiprocessing.spawn.get_preparation_data is before
    assert type(multiprocessing.get_context(context.get_start_method())).Process is not type(context).Process


class _SlowToPickle:
    def __reduce__(self):
        time.sleep(0.3)
        return (int, ())


def test_a_closed_queue_has_no_thread_left():
    """A feeding thread that outlives its queue takes semaphores along: "leaked", says the interpreter's end."""
    queue = worker_context().Queue()
    queue.put(_SlowToPickle())
    queue.cancel_join_thread()  # as torch's loader does
    queue.close()
    assert not queue._thread.is_alive()
