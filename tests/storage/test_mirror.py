"""A run folder and its copy: whole checkpoints only, nothing lost when the connection is, the newer copy wins."""

import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from excite.errors import ExciteError
from excite.storage import fetch_run, left_behind, mirror, mirrored, open_run, runs, upload_missing
from excite.storage.mirror import Mirror
from excite.storage.runs import complete_steps, read_marker, uploads_to, write_marker
from tests.storage.conftest import eventually, tree


def make_run(folder: Path, *steps: int, started: str = "2026-01-01T12:00:00") -> Path:
    """Files named as those of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("name: small\n")
    (folder / "environment.json").write_text(json.dumps({"started": started}))
    (folder / "metrics.jsonl").write_text("")
    for step in steps:
        add_step(folder, step)
    return folder


def add_step(run: Path, step: int) -> None:
    """As the training does: a line of metrics, then a checkpoint that appears whole."""
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    aside = run / "checkpoints" / f".step-{step:08d}.tmp-1"
    aside.mkdir(parents=True)
    for name in ("model.safetensors", "ema.safetensors", "state.pt"):
        (aside / name).write_bytes(f"{name} of {step} ".encode() * 1000)
    aside.rename(run / "checkpoints" / f"step-{step:08d}")


def remove_step(run: Path, step: int) -> None:
    shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")


def own_files(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(run).items() if name != "remote.json"}


def copied(bucket, name: str) -> dict[str, bytes]:
    return {file: bucket.get(f"{name}/{file}") for file in bucket.names(name)}


@pytest.fixture
def lines():
    return []


@pytest.fixture
def run(tmp_path, bucket):
    folder = make_run(tmp_path / "runs" / "r", 2, 4)
    write_marker(folder, f"{bucket.url}/runs/r")
    return folder


def test_a_checkpoint_that_is_pruned_while_it_is_sent_is_no_failure(run, bucket, lines, monkeypatch):
    """It used to be told as an upload that failed, at an address with "nothing" there."""
    known, gone = Mirror._put, []

    def slow(self, remote, path, target):
        if "step-00000002" in target and not gone:
            gone.append(target)
            remove_step(run, 2)  # after the file was looked at, before it is opened
        known(self, remote, path, target)

    monkeypatch.setattr(Mirror, "_put", slow)
    with mirrored(run, lines.append):
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [4])
    assert gone
    assert not [line for line in lines if "failed" in line]


def test_a_run_is_copied_while_it_goes_on_and_what_it_prunes_goes_there_too(run, bucket, lines):
    (run / ".model.safetensors.tmp-17").write_bytes(b"half")
    with mirrored(run, lines.append):
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [2, 4])
        add_step(run, 6)
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [2, 4, 6])
        remove_step(run, 2)
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [4, 6])
        (run / "results.json").write_text("{}")
    (run / ".model.safetensors.tmp-17").unlink()
    assert copied(bucket, "runs/r") == own_files(run)
    assert left_behind(run) == ""
    assert lines == [f"uploads    {bucket.url}/runs/r"]


def test_a_reader_never_sees_half_a_checkpoint(run, bucket, monkeypatch):
    """Whatever the moment: a step with state.pt has its weights, and the metrics that lead up to it."""
    seen: list[tuple[str, str]] = []
    mirroring = Mirror(run, f"{bucket.url}/runs/r", lambda line: None)
    mirroring.missing()
    remote = mirroring._remote
    for name in ("put_file", "rm_file"):
        genuine = getattr(remote.fs, name)

        def watched(*words, genuine=genuine, kind=name):
            seen.append((kind, words[-1].partition("/runs/r/")[2]))
            return genuine(*words)

        monkeypatch.setattr(remote.fs, name, watched)
    mirroring.copy()
    sent = [name for kind, name in seen if kind == "put_file"]
    newer, older = "checkpoints/step-00000004", "checkpoints/step-00000002"
    small = ["environment.json", "metrics.jsonl", "recipe.yaml"]
    parts = ["ema.safetensors", "model.safetensors", "state.pt"]
    assert sent == [*small, *(f"{newer}/{p}" for p in parts), *(f"{older}/{p}" for p in parts)]
    seen.clear()
    remove_step(run, 2)
    (run / "results.json").write_text("{}")
    mirroring.copy()
    assert seen[0] == ("put_file", "results.json")
    assert seen[1] == ("rm_file", f"{older}/state.pt")
    assert {name for _, name in seen[2:]} == {f"{older}/{p}" for p in parts[:2]}


def test_growing_files_are_not_sent_at_every_look(run, bucket, monkeypatch):
    monkeypatch.setenv("EXCITE_UPLOAD_EVERY", "1000")
    mirroring = Mirror(run, f"{bucket.url}/runs/r", lambda line: None)
    mirroring.copy()
    (run / "metrics.jsonl").write_text("more")
    mirroring.copy()
    assert mirroring.unsent() == ["metrics.jsonl"]
    add_step(run, 6)  # but a checkpoint never comes without its metrics
    mirroring.copy()
    assert mirroring.unsent() == []
    assert bucket.get("runs/r/metrics.jsonl") == (run / "metrics.jsonl").read_bytes()


def test_a_file_replaced_while_it_is_sent_goes_again(run, bucket, monkeypatch):
    mirroring = Mirror(run, f"{bucket.url}/runs/r", lambda line: None)
    mirroring.missing()
    genuine = mirroring._remote.fs.put_file

    def racing(path, target):
        genuine(path, target)
        if path.endswith("recipe.yaml"):
            (run / "recipe.yaml").write_text("name: other\n")
            monkeypatch.setattr(mirroring._remote.fs, "put_file", genuine)

    monkeypatch.setattr(mirroring._remote.fs, "put_file", racing)
    mirroring.copy()
    assert mirroring.unsent() == ["recipe.yaml"]
    mirroring.copy_all()
    assert bucket.get("runs/r/recipe.yaml") == b"name: other\n"


@pytest.mark.parametrize("lost", [False, True], ids=["cut", "cut and emptied"])
def test_a_cut_connection_is_told_once_and_everything_follows_later(run, bucket, proxy, lines, lost):
    with mirrored(run, lines.append):
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [2, 4])
        proxy.turn("refused")
        add_step(run, 6)
        eventually(lambda: len(lines) == 2)
        remove_step(run, 2)
        if lost:
            bucket.fs.rm(bucket.name, recursive=True)
            bucket.fs.mkdir(bucket.name)
        proxy.turn("open")
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [4, 6])
        eventually(lambda: len(lines) == 3)
    assert copied(bucket, "runs/r") == own_files(run)
    assert lines[1].startswith(f"uploading failed: {bucket.url}/runs/r could not be reached")
    assert lines[1].endswith(f"training continues, {run} has everything, and the upload will be tried again")
    assert lines[2] == f"uploading to {bucket.url}/runs/r continues"


@pytest.mark.parametrize("trouble", ["cut", "frozen"])
def test_the_end_waits_a_bounded_time_and_says_what_is_missing(run, bucket, proxy, server, lines, trouble, monkeypatch):
    monkeypatch.setenv("EXCITE_UPLOAD_WAIT", "1")
    started = time.monotonic()
    try:
        with mirrored(run, lines.append) as mirroring:
            # All of the run, so that what is missing are the four files of the next step; and the answers that say so,
            # which come after the bucket has the files.
            eventually(lambda: mirroring.unsent() == [])
            server.freeze() if trouble == "frozen" else proxy.turn("refused")
            add_step(run, 6)
        assert time.monotonic() - started < 60  # not the hours that a frozen server might take
        assert lines[-1] == left_behind(run)
        assert f"could not upload 4 files of {run} to {bucket.url}/runs/r; to upload: excite sync" in lines[-1]
    finally:
        server.thaw()
        with contextlib.suppress(OSError):
            proxy.turn("open")
    assert upload_missing(run)[0] == f"{bucket.url}/runs/r"
    assert copied(bucket, "runs/r") == own_files(run)
    assert left_behind(run) == ""
    assert upload_missing(run) == (f"{bucket.url}/runs/r", 0)


def test_what_was_sent_but_could_not_be_compared_is_not_taken_for_kept(run, bucket, proxy, lines, monkeypatch):
    monkeypatch.setenv("EXCITE_UPLOAD_WAIT", "0.5")
    with mirrored(run, lines.append) as mirroring:
        eventually(lambda: mirroring.unsent() == [])
        assert bucket.names("runs/r") == sorted(own_files(run))
        proxy.turn("refused")
    assert left_behind(run).startswith(f"could not upload 10 files of {run} to ")


def test_an_error_in_the_training_is_not_hidden_and_its_files_are_uploaded(run, bucket, lines):
    def training() -> None:
        with mirrored(run, lines.append):
            add_step(run, 6)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training()
    assert copied(bucket, "runs/r") == own_files(run)


@pytest.mark.heavy
def test_the_training_is_never_held_up(run, bucket, server, monkeypatch, lines):
    monkeypatch.setenv("EXCITE_UPLOAD_WAIT", "0.1")
    server.freeze()
    try:
        steps = 0
        with mirrored(run, lines.append):
            started = time.monotonic()
            while time.monotonic() - started < 0.5:
                steps += 1
        assert steps > 1000
    finally:
        server.thaw()
    eventually(lambda: not any(t.name == "excite-upload" for t in threading.enumerate()))


def test_nothing_there_that_is_newer_or_another_run_is_overwritten(run, bucket, lines, tmp_path):
    newer = make_run(tmp_path / "newer", 4, 8)
    upload_missing(newer, f"{bucket.url}/runs/r")
    before = copied(bucket, "runs/r")
    with mirrored(run, lines.append):
        eventually(lambda: len(lines) == 2)
    assert "has a checkpoint of step 8, which is newer than" in lines[1]
    assert copied(bucket, "runs/r") == before
    other = make_run(tmp_path / "other", 9, started="2026-02-02T12:00:00")
    with pytest.raises(ExciteError, match="holds a different run than"):
        upload_missing(other, f"{bucket.url}/runs/r")
    assert copied(bucket, "runs/r") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "is not a run folder"),
        (("runs/r", "https://h/x"), "is read-only"),
        (("plain",), "has no address"),
    ],
)
def test_sync_says_what_it_lacks(run, words, message, tmp_path):
    make_run(tmp_path / "plain")
    with pytest.raises(ExciteError, match=message):
        upload_missing(*words)


@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_a_run_folder_that_somebody_sent_uploads_nothing(kind, tmp_path, bucket, lines):
    """Its marker may name any address, with this user's credentials and rights."""
    foreign = make_run(tmp_path / "runs" / "sent", 2)
    (foreign / "authorized_keys").write_text("theirs")
    url = f"{bucket.url}/theirs" if kind == "bucket" else f"file://{tmp_path}/home/.ssh"
    (foreign / "remote.json").write_text(json.dumps({"url": url, "fetched": False, "pending": 3}))
    with mirrored(foreign, lines.append) as mirror:
        assert mirror is None
    assert len(lines) == 1
    assert f"names {url}, an address that you have not given on this machine: nothing is uploaded" in lines[0]
    assert "excite sync" in lines[0]
    assert left_behind(foreign) == ""
    assert uploads_to(foreign) is None
    with pytest.raises(ExciteError, match="have not given on this machine"):
        upload_missing(foreign)
    assert bucket.names("theirs") == []
    assert not (tmp_path / "home").exists()

    told: list[str] = []
    assert upload_missing(foreign, url, told.append) == (url, 7)
    assert told == [f"uploading {foreign} to {url}"]
    assert uploads_to(foreign) == url
    assert upload_missing(foreign, None)[0] == url, "now it is an address that was given"


def test_given_addresses_are_believed_only_where_nobody_else_can_write_them(run, tmp_path, bucket):
    assert uploads_to(run) == f"{bucket.url}/runs/r"
    (given,) = (tmp_path / "cache").glob("upload-addresses.txt")
    assert given.stat().st_mode & 0o777 == 0o600
    given.chmod(0o666)
    assert uploads_to(run) is None
    write_marker(run, f"{bucket.url}/runs/r")
    assert uploads_to(run) == f"{bucket.url}/runs/r"
    assert given.stat().st_mode & 0o777 == 0o600


def test_a_job_that_is_started_again_gives_its_address_again(run, tmp_path, bucket):
    for out, run_dir in ((f"{bucket.url}/runs", None), ("runs", f"{bucket.url}/runs/r")):
        (tmp_path / "cache" / "upload-addresses.txt").unlink()  # another machine
        runs.keep_at(run, f"{bucket.url}/elsewhere", None)
        assert uploads_to(run) is None
        runs.keep_at(run, out, run_dir)
        assert uploads_to(run) == f"{bucket.url}/runs/r"


def test_a_damaged_marker_and_wrong_seconds_are_one_sentence(run, monkeypatch):
    monkeypatch.setenv("EXCITE_UPLOAD_WAIT", "soon")
    with pytest.raises(ExciteError, match="EXCITE_UPLOAD_WAIT is 'soon': give seconds"), mirrored(run, print):
        pass
    (run / "remote.json").write_text("{")
    with pytest.raises(ExciteError, match=r"remote\.json cannot be read"), mirrored(run, print):
        pass


def test_fetching_a_run_takes_whole_checkpoints_only_and_once(run, bucket, tmp_path, monkeypatch):
    (run / "checkpoints" / "step-00000006").mkdir()
    (run / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"half")
    upload_missing(run)
    remove_step(run, 6)
    here = own_files(run)
    shutil.rmtree(tmp_path / "runs")
    assert fetch_run(f"{bucket.url}/runs/r") == Path("runs/r")
    assert own_files(run) == here
    assert read_marker(run).items() >= {"url": f"{bucket.url}/runs/r", "fetched": True, "pending": 0}.items()
    inode = os.stat(run / "recipe.yaml").st_ino
    fetch_run(f"{bucket.url}/runs/r")
    assert os.stat(run / "recipe.yaml").st_ino == inode
    monkeypatch.setenv("EXCITE_RUNS", str(tmp_path / "elsewhere"))
    assert own_files(fetch_run(f"{bucket.url}/runs/r/")) == here
    assert open_run(f"{bucket.url}/runs/r") == tmp_path / "elsewhere" / "r"
    assert open_run(f"{bucket.url}/runs/new") == tmp_path / "elsewhere" / "new"


def test_the_newer_copy_wins_and_the_older_is_kept(run, bucket, tmp_path):
    upload_missing(run)
    add_step(run, 6)
    newer_here = own_files(run)
    assert fetch_run(f"{bucket.url}/runs/r") == Path("runs/r")
    assert own_files(run) == newer_here
    elsewhere = tmp_path / "elsewhere" / "r"
    shutil.copytree(run, elsewhere)
    add_step(elsewhere, 8)
    upload_missing(elsewhere)
    fetch_run(f"{bucket.url}/runs/r")
    assert own_files(run) == own_files(elsewhere)
    kept = [p for p in run.parent.iterdir() if p.name.startswith("r-older-")]
    assert [own_files(p) for p in kept] == [newer_here]
    add_step(elsewhere, 10)
    upload_missing(elsewhere)
    fetch_run(f"{bucket.url}/runs/r")  # what was here is a mere copy of what was there: nothing to keep
    assert own_files(run) == own_files(elsewhere)
    assert len([p for p in run.parent.iterdir() if p.name.startswith("r-older-")]) == 1


def test_fetching_refuses_another_run_and_what_is_no_run(run, bucket, tmp_path):
    upload_missing(run)
    shutil.rmtree(run)
    make_run(run, 2, started="2026-02-02T12:00:00")
    with pytest.raises(ExciteError, match="is not the run at"):
        fetch_run(f"{bucket.url}/runs/r")
    bucket.put({"photos/x.jpg": b"x"})
    with pytest.raises(ExciteError, match=r"this is not a run folder \(it has no recipe\.yaml\)"):
        fetch_run(f"{bucket.url}/photos")
    with pytest.raises(ExciteError, match="did you mean 'runs'"):
        fetch_run(f"{bucket.url}/run/r")


def test_fetching_without_a_connection_names_the_local_copy(run, bucket, proxy, monkeypatch):
    from excite.storage import connection

    monkeypatch.setattr(connection, "TRIES", 1)
    upload_missing(run)
    proxy.turn("refused")
    with pytest.raises(ExciteError, match="to resume from the local copy: excite train --resume runs/r"):
        fetch_run(f"{bucket.url}/runs/r")


def test_a_run_that_changes_while_it_is_fetched_is_listed_again(run, bucket, monkeypatch, tmp_path):
    upload_missing(run)
    shutil.copytree(run, tmp_path / "elsewhere")
    shutil.rmtree(run)
    genuine, once = runs.fetch, iter([True])

    def racing(remote, entries, workshop, reuse):
        if next(once, False):
            add_step(tmp_path / "elsewhere", 6)
            remove_step(tmp_path / "elsewhere", 2)
            upload_missing(tmp_path / "elsewhere")
        return genuine(remote, entries, workshop, reuse)

    monkeypatch.setattr(runs, "fetch", racing)
    fetch_run(f"{bucket.url}/runs/r")
    assert own_files(run) == own_files(tmp_path / "elsewhere")


def test_a_folder_of_this_machine_works_as_an_address_too(tmp_path, lines):
    """A network disk: files do not appear there at once, so they are renamed into place."""
    run = make_run(tmp_path / "runs" / "r", 2)
    write_marker(run, f"file://{tmp_path}/disk/r")
    with mirrored(run, lines.append):
        eventually(lambda: (tmp_path / "disk/r/checkpoints/step-00000002/state.pt").exists())
        add_step(run, 4)
        remove_step(run, 2)
    there = {name: data for name, data in tree(tmp_path / "disk" / "r").items() if name != ".owner.json"}
    assert there == own_files(run)
    assert not (tmp_path / "disk/r/checkpoints/step-00000002").exists()
    shutil.rmtree(run)
    assert own_files(fetch_run(f"file://{tmp_path}/disk/r")) == there


def test_pauses_grow(run, bucket, proxy, monkeypatch, lines):
    pauses: list[float] = []
    mirroring = Mirror(run, f"{bucket.url}/runs/r", lines.append)
    monkeypatch.setattr(mirroring, "copy", lambda: (_ for _ in ()).throw(ConnectionResetError("gone")))
    monkeypatch.setattr(mirror.random, "uniform", lambda low, high: 1.0)

    def wait(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 9:
            mirroring._abort.set()

    monkeypatch.setattr(mirroring._closing, "wait", wait)
    mirroring._work()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(lines) == 1
