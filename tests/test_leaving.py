"""Temporary names and their owners, writes that are refused, and commands that are told to stop."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from excite import files, leaving, owners
from excite.errors import ExciteError
from excite.export.formats import pt2
from excite.files import append_text, patient, write_json, write_text, written_aside
from excite.owners import aside_of, is_left_over, owner_mark, remove_leftovers, scratch_folder
from tests.command import Command

# --- whose a temporary name is --------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from pathlib import Path
from excite.files import written_aside
from excite.owners import scratch_folder
with scratch_folder("report") as scratch, written_aside(Path(sys.argv[1])) as aside:
    (scratch / "page").touch()
    aside.write_text("half")
    print(scratch, aside, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_process_removes_what_a_killed_one_left_and_nothing_before(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    target = tmp_path / "a.json"
    target.write_text("whole")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    scratch, aside = map(Path, child.stdout.readline().split())
    assert remove_leftovers(tmp_path) == remove_leftovers(temporary) == []  # it lives
    assert scratch.is_dir()
    assert aside.is_file()
    child.stdin.close()
    assert child.wait() == -signal.SIGKILL
    assert target.read_text() == "whole"
    monkeypatch.setattr(owners, "_swept", set())
    write_text(tmp_path / "b.txt", "another command works in the same place")
    with scratch_folder("export"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.txt", "tmp"]
    assert list(temporary.iterdir()) == []


def test_a_number_that_is_used_again_is_another_process(tmp_path):
    pid, place, start, count = owner_mark().split("-")
    mine = tmp_path / f".x.tmp-{pid}-{place}-{start}-{count}"
    other = tmp_path / f".x.tmp-{pid}-{place}-{int(start, 16) - 100:x}-{count}"
    users = [tmp_path / name for name in (".x.tmp-", ".x.tmp-a", "x.tmp-1", "excite-notes", ".x.tmp-1-2")]
    for path in (mine, other, *users):
        path.touch()
    assert remove_leftovers(tmp_path) == [other]


@pytest.mark.parametrize("name", [".x.tmp-1", ".x.tmp-1-00000000-1-0", "excite-job-1-00000000-1-abcd_efg"])
def test_what_another_machine_or_version_left_goes_after_a_day(tmp_path, name):
    """Whether its process lives cannot be seen from here."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "inside").touch()
    old = time.time() - owners.FOREIGN_SECONDS - 60
    os.utime(folder, (old, old))
    assert not is_left_over(folder)  # something in it is new
    os.utime(folder / "inside", (old, old))
    os.utime(folder, (old, old))
    assert remove_leftovers(tmp_path) == [folder]


def test_a_name_as_long_as_names_can_be_has_a_temporary_one(tmp_path):
    for name in ("a" * 250 + ".json", "é" * 124 + ".json"):
        write_json(tmp_path / name, 1)
        assert (tmp_path / name).read_text() == "1\n"
        assert len(os.fsencode(aside_of(tmp_path / name).name)) < 255
    with pytest.raises(ExciteError, match=r"could not be written: the name is too long; choose a shorter one"):
        write_json(tmp_path / ("a" * 300), 1)


# --- the door of all writes -----------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path):
    """A full disk: what the system says of it through each library."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]).returncode:
        pytest.skip("only root can mount a small disk")
    (tmp_path / "old").write_text("old")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


LARGE = {"x": torch.zeros(1 << 16)}


def saved(path: Path, write) -> None:
    with patient(path) as file:
        write(file)


def exported():
    return torch.export.export(torch.nn.Linear(200, 200), (torch.zeros(1, 200),))


@pytest.mark.parametrize(
    "write",
    [
        lambda aside: save_file(LARGE, aside),
        lambda aside: saved(aside, lambda file: torch.save(LARGE, file)),
        lambda aside: aside.write_bytes(bytes(1 << 18)),
        lambda aside: pt2.write(exported(), aside, {}, 20),
    ],
)
def test_a_full_disk_is_one_sentence_through_every_library(full, write):
    def replace() -> None:
        with written_aside(full / "old") as aside:
            write(aside)

    with pytest.raises(ExciteError, match=r"^the disk is full: .*/old could not be written; free some space"):
        replace()
    assert (full / "old").read_text() == "old"
    with pytest.raises(ExciteError, match="the disk is full"):
        append_text(full / "old", "x" * (1 << 18))
    assert (full / "old").read_text() == "old"  # nothing of it


def test_an_error_that_is_none_of_the_disk_is_left_alone(tmp_path):
    def fail() -> None:
        with written_aside(tmp_path / "a"):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_folder_that_vanishes_is_told(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    append_text(run / "log", "a\n")
    (run / "log").unlink()
    with pytest.raises(ExciteError, match=r"run/log has vanished while it was being written"):
        append_text(run / "log", "b\n", create=False)
    shutil.rmtree(run)
    for create in (True, False):
        with pytest.raises(ExciteError, match=rf"the folder {run} has vanished \(was it moved or deleted\?\)"):
            append_text(run / "log", "b\n", create=create)


def test_a_read_only_disk_is_told(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "_sync", refuse)
    with pytest.raises(ExciteError, match=r"the disk is read-only; name another place, or mount it for writing"):
        write_text(tmp_path / "a", "b")


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in leaving.stop_signals()}
    leaving.stop_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    leaving._stopping = leaving._waiting = 0


def test_a_signal_breaks_off_what_it_may_and_waits_for_what_it_may_not(handlers, tmp_path):
    def work() -> None:
        with written_aside(tmp_path / "a") as aside:
            aside.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the handler did not run")

    with pytest.raises(leaving.Stopped) as stopped:
        work()
    assert stopped.value.number == signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    leaving.stop_on_signals()
    done = []

    def go_on() -> None:
        with leaving.unbroken():
            os.kill(os.getpid(), signal.SIGHUP)
            done.append("whole")

    with pytest.raises(leaving.Stopped):
        go_on()
    assert done == ["whole"]
    os.kill(os.getpid(), signal.SIGTERM)  # once is enough: it is ending


PAUSED = """
import os, signal, sys
from excite import cli
from excite.files import written_aside
from pathlib import Path

def paused(path, *words, **options):
    with written_aside(Path(path)) as aside:
        aside.write_text("half")
        os.kill(os.getpid(), signal.{name})
        raise AssertionError

{patch}
sys.argv = ["excite", *sys.argv[1:]]
cli.main()
"""
PATCHES = {
    "export": ("excite.export:export", "import excite.export as m; m.export = lambda *a, **k: paused('out')"),
    "convert": ("", "import excite.weights.conversion as m; m._write_own = lambda *a, **k: paused('out')"),
    "recipes": ("", "import excite.recipe as m; m.list_recipes = lambda *a, **k: paused('out')"),
}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("command", ["export", "recipes"])
def test_every_command_ends_on_a_signal_in_one_sentence(tmp_path, tiny, command, name):
    words = {"export": ["export", tiny.bare, "-f", "pt2", "--out", "x.pt2"], "recipes": ["recipes"]}[command]
    program = PAUSED.format(name=name, patch=PATCHES[command][1])
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    *_, last = done.stderr.splitlines()
    assert re.match(rf"stopped by {'Ctrl-C' if name == 'SIGINT' else name}: nothing .*repeat the command$", last)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_under_nohup_a_command_goes_on(tmp_path):
    program = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from excite import leaving; "
        "leaving.stop_on_signals(); os.kill(os.getpid(), signal.SIGHUP); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("went on\n", 0)


def test_a_real_command_is_stopped_while_it_works(tmp_path, tiny):
    """A stop at whatever it does when its first line is there."""
    command = Command(["report", tiny.bare, "--out", "page.html"], tmp_path)
    errors = Path(command._aside.name, "err")
    while command.poll() is None and not (errors.is_file() and errors.read_text()):
        time.sleep(0.01)
    command.send_signal(signal.SIGTERM)
    _, err = command.communicate()
    assert command._process.exitcode == 128 + signal.SIGTERM, err
    assert err.splitlines()[-1].startswith("stopped by SIGTERM: the page was not written")
    assert list(tmp_path.iterdir()) == []
