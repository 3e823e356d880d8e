"""What git is asked, and that a folder cannot make it run anything."""

import shutil
import subprocess

import pytest

from excite.bench.build import source_version
from excite.runtime import git
from excite.runtime.environment import git_state


def run(folder, *words):
    settings = ("-c", "user.name=n", "-c", "user.email=a@b")
    return subprocess.run(["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("there is no git on this machine")
    folder = tmp_path / "checkout"
    folder.mkdir()
    run(folder, "init", "-q")
    (folder / "a.txt").write_text("a")
    (folder / ".gitattributes").write_text("*.txt filter=mine\n")
    run(folder, "add", "-A")
    run(folder, "commit", "-qm", "first")
    return folder


def test_the_commit_and_whether_files_differ(repository, monkeypatch):
    commit = run(repository, "rev-parse", "HEAD").strip()
    assert git.checkout(repository) == git.Checkout(commit, changed=False)
    inner = repository / "inner"
    inner.mkdir()
    (repository / "a.txt").write_text("b")
    monkeypatch.chdir(inner)
    assert git_state() == {"commit": commit, "changed": True}
    assert git.checkout(inner, only=True) == git.Checkout(commit, changed=False)
    (inner / "new").write_text("")
    assert git.checkout(inner, only=True) == git.Checkout(commit, changed=True)
    assert git.knows(repository, "a.txt")
    assert not git.knows(inner, "new")


def test_nothing_outside_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() is None
    assert source_version()


def test_no_program_that_the_folder_names_is_started(repository, tmp_path, monkeypatch):
    started = tmp_path / "started"
    program = f"echo >> {started}; cat"
    names = ["core.fsmonitor", "core.pager", "core.sshCommand", "diff.external", "filter.mine.clean"]
    for name in [*names, "filter.mine.process", "filter.mine.smudge"]:
        run(repository, "config", name, program)
    hook = repository / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho >> {started}\n")
    hook.chmod(0o755)
    (repository / "a.txt").write_text("another")  # so that its contents must be looked at
    monkeypatch.chdir(repository)
    state = git_state()
    assert state is not None
    assert state["changed"]
    assert not started.exists()
    subprocess.run(["git", "status", "--porcelain"], cwd=repository, capture_output=True, check=False)
    assert started.exists(), "git itself would have started them"
