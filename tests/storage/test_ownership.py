"""One run, one identity, one address, one owner: however many machines start at once, and whenever they are killed."""

import json
import shutil
import threading
import uuid
from pathlib import Path

import pytest

from excite.errors import ExciteError
from excite.storage import check_target, fetch_run, keep_at, left_behind, mirrored, open_run, runs, upload_missing
from excite.storage.connection import connect
from excite.storage.exclusive import create, replace
from excite.storage.identity import begin, begun_at, claim, is_blank, read_begun
from excite.storage.mirror import Mirror
from excite.storage.owner import OWNER, TakenOver, read_owner, take, this_owner
from excite.storage.runs import complete_steps, local_names, read_marker, write_marker
from excite.training import loop, train
from excite.training.run_folder import choose_run_folder
from tests.storage.conftest import eventually, tree
from tests.storage.test_mirror import add_step, copied, lines, make_run, own_files, remove_step, run
from tests.training.small import small

__all__ = ["lines", "run"]  # fixtures


class Machine:
    """Another disk, another cache; ``use`` makes it the one that this process is on."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self._patch, self.folder = monkeypatch, folder

    def use(self) -> "Machine":
        self._patch.setenv("EXCITE_RUNS", str(self.folder / "runs"))
        self._patch.setenv("EXCITE_CACHE", str(self.folder / "cache"))
        return self

    def begins(self, url: str) -> Path:
        """What ``excite train --run-dir URL`` does with its folder."""
        folder = choose_run_folder("x", Path("unused"), self.use().opens(url))
        keep_at(folder, "runs", url)
        return folder

    def opens(self, url: str) -> Path:
        return open_run(url)


@pytest.fixture
def a(monkeypatch, tmp_path) -> Machine:
    return Machine(monkeypatch, tmp_path / "a")


@pytest.fixture
def b(monkeypatch, tmp_path) -> Machine:
    return Machine(monkeypatch, tmp_path / "b")


def id_of(folder: Path) -> str:
    begun = read_begun(folder)
    assert begun is not None
    return begun["id"]


# --- the folder -----------------------------------------------------------------------------------------------------

LEFTOVERS = {
    "nothing": {},
    "an unfinished identity": {".run.json.tmp-17-new": b"", "..run.json.tmp-17-new.tmp-17": b"{"},
    "an identity": {"run.json": b'{"id": "0f8fad5b-d9cb-469f-a165-70867728950e"}'},
    "half an identity": {"run.json": b'{"id": "0f8fad5b-d9'},
    "an identity of zeros": {"run.json": bytes(90)},
    "an identity that is a list": {"run.json": b"[3]"},
    "an unfinished recipe": {"run.json": b"", ".recipe.yaml.tmp-17": b"name: sm"},
    "half a marker": {"remote.json": b"{"},
}


@pytest.mark.parametrize("left", LEFTOVERS.values(), ids=LEFTOVERS.keys())
def test_a_run_is_begun_anew_where_a_kill_left_its_beginning(left, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    for name, data in left.items():
        (folder / name).write_bytes(data)
    assert is_blank(folder)
    results = train(small("epochs=1", "limit_train=32", "limit_val=32"), run_dir=folder, quiet=True)
    assert results["run"] == str(folder)
    assert uuid.UUID(id_of(folder))


def test_an_identity_that_is_there_is_kept(tmp_path):
    first = begin(choose_run_folder("x", tmp_path, tmp_path / "x"))
    assert begin(choose_run_folder("x", tmp_path, tmp_path / "x")) == first == id_of(tmp_path / "x")
    new = choose_run_folder("x", tmp_path, None)
    assert sorted(tree(new)) == ["run.json"]
    assert id_of(new) != first


def test_a_folder_of_something_else_is_refused_as_before(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text("{}")
    (tmp_path / "x" / "thesis.tex").write_text("")
    with pytest.raises(ExciteError, match="neither empty nor a run folder"):
        choose_run_folder("x", tmp_path, tmp_path / "x")
    assert (tmp_path / "x" / "run.json").read_text() == "{}"


def test_the_identity_is_the_first_file_of_a_run(tmp_path, monkeypatch):
    def killed(run, *words):
        assert [name for name in sorted(tree(run.folder)) if not name.startswith(".owner.")] == ["run.json"]
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "open_folder", killed)
    with pytest.raises(ZeroDivisionError):
        train(small("epochs=1"), run_dir=tmp_path / "x", quiet=True)


# --- conditional writes ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["s3", "file", "memory"])
def place(request, bucket, tmp_path):
    """An address in each kind of store."""
    name = uuid.uuid4().hex
    urls = {"s3": f"{bucket.url}/{name}", "file": f"file://{tmp_path}/{name}", "memory": f"memory://{name}"}
    remote = connect(urls[request.param])
    if not remote.is_object_store:
        remote.fs.makedirs(remote.path)
    return remote


def test_only_the_first_of_many_writes_creates_a_file(place):
    won, gate = [], threading.Barrier(8)

    def write(number: int) -> None:
        remote = connect(place.url)
        gate.wait()
        if create(remote, place.at("f"), str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert place.fs.cat_file(place.at("f")) == str(won[0]).encode()
    assert create(place, place.at("f"), str(won[0]).encode()), "an answer that was lost: the file is ours"


def test_a_file_is_replaced_only_while_it_is_what_was_read(place):
    create(place, place.at("f"), b"1")
    tag = place.fs.info(place.at("f")).get("ETag")
    assert replace(place, place.at("f"), b"2", tag)
    if tag is not None:
        assert not replace(place, place.at("f"), b"3", tag)
        assert place.fs.cat_file(place.at("f")) == b"2"


def test_a_store_without_conditions_is_looked_at_before_and_after(bucket, monkeypatch):
    """It refuses the header, or ignores it (as with an older s3fs, whose pipe_file has no mode)."""
    remote = connect(f"{bucket.url}/x")
    genuine = type(remote.fs)._call_s3

    async def refused(fs, method, *words, **options):
        if {"IfNoneMatch", "IfMatch"} & options.keys():
            raise OSError(38, "A header you provided implies functionality that is not implemented")
        return await genuine(fs, method, *words, **options)

    def refused_here(method, **options):
        raise OSError(38, "A header you provided implies functionality that is not implemented")

    monkeypatch.setattr(type(remote.fs), "_call_s3", refused)
    monkeypatch.setattr(remote.fs, "call_s3", refused_here)
    assert create(remote, remote.at("f"), b"1")
    assert not create(remote, remote.at("f"), b"2")
    assert replace(remote, remote.at("f"), b"3", '"another"')
    assert bucket.get("x/f") == b"3"

    async def older(fs, path, data, **options):
        await genuine(fs, "put_object", Bucket=bucket.name, Key=path.partition("/")[2], Body=data)

    monkeypatch.setattr(type(remote.fs), "_pipe_file", older)
    monkeypatch.setattr(remote.fs, "pipe_file", lambda path, data: bucket.fs.pipe_file(path, data))
    assert not create(remote, remote.at("f"), b"4")
    assert create(remote, remote.at("g"), b"5")


def test_two_that_take_an_address_over_at_once_do_not_both_get_it(place, monkeypatch):
    take(place, this_owner("elsewhere"))
    mine, theirs = this_owner("mine"), this_owner("theirs")
    from excite.storage import owner

    def late(remote):
        found = read_owner(remote)
        monkeypatch.setattr(owner, "read_owner", read_owner)
        take(remote, theirs)
        return found

    monkeypatch.setattr(owner, "read_owner", late)
    if place.protocol == "memory" or place.is_local:  # the last of several wins, and the others see it before they send
        take(place, mine)
        assert read_owner(place) == mine
        return
    with pytest.raises(TakenOver, match=f"was taken over by process {theirs['pid']} on "):
        take(place, mine)
    assert read_owner(place) == theirs


# --- reservation ----------------------------------------------------------------------------------------------------


def test_machines_that_start_in_one_second_get_different_names(bucket, tmp_path):
    folders = [tmp_path / str(number) / "x-20260101-120000" for number in range(6)]
    gate, failed = threading.Barrier(6), []

    def start(folder: Path) -> None:
        begin(folder)
        gate.wait()
        try:
            keep_at(folder, f"{bucket.url}/runs", None)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=start, args=(folder,)) for folder in folders]
    for folder in folders:
        folder.mkdir(parents=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    urls = {read_marker(folder)["url"] for folder in folders}
    names = ["x-20260101-120000", *(f"x-20260101-120000-at-{n}" for n in range(1, 6))]
    assert urls == {f"{bucket.url}/runs/{name}" for name in names}
    for folder in folders:
        assert json.loads(bucket.get(read_marker(folder)["url"].removeprefix(f"{bucket.url}/") + "/run.json"))[
            "id"
        ] == id_of(folder)


def test_a_name_reserved_before_a_kill_is_still_this_runs(bucket, tmp_path):
    folder = tmp_path / "x"
    begin_here = choose_run_folder("x", tmp_path, folder)
    keep_at(begin_here, f"{bucket.url}/runs", None)
    (folder / "remote.json").unlink()
    keep_at(folder, f"{bucket.url}/runs", None)
    assert read_marker(folder)["url"] == f"{bucket.url}/runs/x"
    make_run(tmp_path / "other" / "x")
    upload_missing(tmp_path / "other" / "x", f"{bucket.url}/older/x")
    bucket.fs.rm_file(f"{bucket.name}/older/x/run.json")  # of a version that wrote none
    (folder / "remote.json").unlink()
    keep_at(folder, f"{bucket.url}/older", None)
    assert read_marker(folder)["url"] == f"{bucket.url}/older/x-at-1"


@pytest.mark.parametrize("uploaded", [False, True], ids=["nothing but its name", "all of it"])
def test_only_one_of_two_begins_a_run_at_the_same_address_at_the_same_time(bucket, a, b, uploaded):
    url = f"{bucket.url}/runs/x"
    for machine in (a, b):
        machine.use()
        check_target("runs", url)
    there = a.begins(url)
    # The second one's look is the one that counts; the first one's has been used.
    runs._looked[url] = (False, None)
    if uploaded:
        upload_missing(make_run(there, 2))
    before = copied(bucket, "runs/x")
    with pytest.raises(ExciteError, match=rf"process \d+ on .* began a run at {url} .* while this command was start"):
        b.begins(url)
    assert copied(bucket, "runs/x") == before
    check_target("runs", url)  # the same command again
    assert id_of(b.begins(url)) == id_of(there)


def test_many_that_begin_at_the_same_address_at_once_are_one(bucket, tmp_path):
    url, gate = f"{bucket.url}/runs/x", threading.Barrier(6)
    begun: list[str] = []
    refused: list[str] = []

    def start(folder: Path) -> None:
        begin(folder)
        gate.wait()
        there = claim(connect(url), folder)
        (begun if there is None else refused).append(id_of(folder) if there is None else there["id"])

    threads = []
    for number in range(6):
        (tmp_path / str(number)).mkdir()
        threads.append(threading.Thread(target=start, args=(tmp_path / str(number),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1
    assert refused == begun * 5


def test_a_refused_beginning_leaves_no_folder(bucket, a, b):
    url = f"{bucket.url}/runs/x"
    b.use()
    check_target("runs", url)
    looked = dict(runs._looked)
    a.begins(url)
    runs._looked.update(looked)
    with pytest.raises(ExciteError, match="began a run at"):
        b.begins(url)
    assert not (b.folder / "runs" / "x").exists()


@pytest.mark.parametrize("data", [b"", b"{", b'{"id": 3}', bytes(50)])
def test_a_damaged_identity_at_an_address_identifies_nothing(bucket, a, data):
    bucket.put({"runs/x/run.json": data})
    folder = a.begins(f"{bucket.url}/runs/x")
    assert json.loads(bucket.get("runs/x/run.json"))["id"] == id_of(folder)


def test_a_beginning_for_one_address_is_not_taken_to_another(bucket, a):
    """Otherwise two runs at two addresses would be the same one."""
    first = id_of(a.begins(f"{bucket.url}/one/x"))
    assert id_of(a.begins(f"{bucket.url}/two/x")) != first


def test_a_run_of_an_older_version_is_known_by_its_environment(bucket, tmp_path):
    """It has no run.json; each copy gets the same id."""
    older = make_run(tmp_path / "older", 2)
    bucket.put({f"runs/r/{name}": data for name, data in tree(older).items()})
    write_marker(older, f"{bucket.url}/runs/r")
    with mirrored(older, print):
        add_step(older, 4)
    assert complete_steps(bucket.names("runs/r")) == [2, 4]
    other = make_run(tmp_path / "other", 2, started="2026-02-02T12:00:00")
    with pytest.raises(ExciteError, match="holds a different run"):
        upload_missing(other, f"{bucket.url}/runs/r")
    copy = make_run(tmp_path / "copy", 2, 4, 6)
    assert upload_missing(copy, f"{bucket.url}/runs/r")[1] > 0
    assert id_of(copy) == id_of(older)
    assert begun_at(connect(f"{bucket.url}/runs/r")) == read_begun(older)


def test_an_older_versions_beginning_is_gone_on_with(bucket, a):
    older = make_run(a.folder / "lost")
    bucket.put({f"runs/x/{name}": data for name, data in tree(older).items()})
    folder = a.begins(f"{bucket.url}/runs/x")
    (folder / "environment.json").write_text("begun again")
    with mirrored(folder, print):
        add_step(folder, 2)
    assert complete_steps(bucket.names("runs/x")) == [2]


# --- ownership ------------------------------------------------------------------------------------------------------


def test_who_goes_on_with_a_run_is_its_owner_and_the_other_stops(run, bucket, lines, b):
    url = f"{bucket.url}/runs/r"
    with mirrored(run, lines.append) as first:
        eventually(lambda: first.unsent() == [])
        elsewhere = fetch_run(b.use() and url)
        told: list[str] = []
        with mirrored(elsewhere, told.append) as second:
            eventually(lambda: second._owns)
            add_step(run, 6)
            eventually(lambda: len(lines) == 2)
            assert complete_steps(bucket.names("runs/r")) == [2, 4]
            add_step(elsewhere, 6)
            add_step(elsewhere, 8)
        assert copied(bucket, "runs/r") == own_files(elsewhere)
        there = copied(bucket, "runs/r")
        (run / "results.json").write_text("{}")
    owner = read_owner(connect(url))
    who = f"process {owner['pid']} on {owner['host']} ({owner['since']})"
    assert lines[1].startswith(
        f"{url} was taken over by {who}: nothing more is uploaded; training continues, {run} has"
    )
    assert told[1].startswith(f"{url} is gone on with from here; its uploads came from process ")
    assert copied(bucket, "runs/r") == there, "two runs are never mixed"
    assert complete_steps(local_names(run)) == [2, 4, 6]
    assert lines[2] == left_behind(run)
    assert f"could not upload 5 files of {run} to {url}, which {who} has taken over; to upload" in lines[2]


def test_who_was_taken_over_can_only_sync_to_another_address(run, bucket, b, tmp_path):
    url = f"{bucket.url}/runs/r"
    upload_missing(run, url)
    elsewhere = fetch_run(b.use() and url)
    with mirrored(elsewhere, print):
        pass
    add_step(run, 6)
    there = copied(bucket, "runs/r")
    with pytest.raises(ExciteError, match=r"was taken over by process .*: nothing was uploaded; give another address"):
        upload_missing(run)
    assert copied(bucket, "runs/r") == there
    assert upload_missing(run, f"{bucket.url}/runs/r-2")[0] == f"{bucket.url}/runs/r-2"
    assert copied(bucket, "runs/r-2") == own_files(run)
    assert read_marker(run)["url"] == f"{bucket.url}/runs/r-2"
    told: list[str] = []
    upload_missing(run, url, told.append)  # named in so many words: taken back
    assert told[1].startswith(f"{url} is gone on with from here")
    assert copied(bucket, "runs/r") == own_files(run)


def test_a_second_process_in_the_same_folder_owns_it_but_sync_from_there_does_not(run, bucket, lines):
    url = f"{bucket.url}/runs/r"
    with mirrored(run, lines.append) as first:
        eventually(lambda: first.unsent() == [])
        before = read_owner(connect(url))
        upload_missing(run)
        upload_missing(run, url)
        assert read_owner(connect(url)) == before
        again: list[str] = []
        with mirrored(run, again.append) as second:  # as after a restart, while the first still hangs somewhere
            eventually(lambda: second._owns)
            add_step(run, 6)
            eventually(lambda: len(lines) == 2 and complete_steps(bucket.names("runs/r")) == [2, 4, 6])
    assert "was taken over by process" in lines[1]
    assert again == [f"uploads    {url}"]


def test_an_address_that_was_emptied_without_a_failure_is_filled_again(run, bucket, lines):
    with mirrored(run, lines.append) as mirror:
        eventually(lambda: mirror.unsent() == [])
        bucket.fs.rm(f"{bucket.name}/runs", recursive=True)
        add_step(run, 6)
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [2, 4, 6])
    assert copied(bucket, "runs/r") == own_files(run)
    assert lines == [f"uploads    {bucket.url}/runs/r"]


def test_an_address_that_was_emptied_and_given_to_another_run_is_left_alone(run, bucket, lines, tmp_path):
    with mirrored(run, lines.append) as mirror:
        eventually(lambda: mirror.unsent() == [])
        bucket.fs.rm(f"{bucket.name}/runs", recursive=True)
        other = make_run(tmp_path / "other", 2, started="2026-02-02T12:00:00")
        upload_missing(other, f"{bucket.url}/runs/r")
        add_step(run, 6)
        eventually(lambda: len(lines) == 2)
    assert "was taken over by process" in lines[1]
    assert copied(bucket, "runs/r") == own_files(other)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"token": 3}'])
def test_a_damaged_owner_is_nobody(run, bucket, data):
    bucket.put({f"runs/r/{OWNER}": data})
    with mirrored(run, print):
        pass
    assert copied(bucket, "runs/r") == own_files(run)


def test_what_serves_uploading_is_not_fetched(run, bucket, b):
    upload_missing(run)
    bucket.put({"runs/r/.excite-write-check-1": b""})
    assert OWNER in bucket.names("runs/r", private=True)
    assert tree(fetch_run(b.use() and f"{bucket.url}/runs/r")).keys() == tree(run).keys()


# --- sync -----------------------------------------------------------------------------------------------------------


def test_sync_takes_a_run_to_a_new_address_when_the_old_one_is_gone(run, bucket, server, tmp_path):
    upload_missing(run)
    bucket.fs.rm(bucket.name, recursive=True)
    new = type(bucket)(server)
    assert upload_missing(run, f"{new.url}/kept/r")[0] == f"{new.url}/kept/r"
    assert copied(new, "kept/r") == own_files(run)
    add_step(run, 6)
    assert upload_missing(run)[0] == f"{new.url}/kept/r"
    assert copied(new, "kept/r") == own_files(run)
    other = make_run(tmp_path / "other", 9, started="2026-02-02T12:00:00")
    begin(other)
    with pytest.raises(ExciteError, match=f"{new.url}/kept/r holds a different run than"):
        upload_missing(other, f"{new.url}/kept/r")
    assert read_marker(other) == {}
    assert copied(new, "kept/r") == own_files(run)


def test_sync_to_a_new_address_does_not_mind_a_damaged_marker(run, bucket):
    (run / "remote.json").write_text("{")
    upload_missing(run, f"{bucket.url}/new")
    assert read_marker(run)["url"] == f"{bucket.url}/new"


# --- checkpoints ----------------------------------------------------------------------------------------------------


def set_step_aside(run: Path, kind: str, step: int) -> None:
    (run / f"checkpoints/step-{step:08d}").rename(run / f"checkpoints/{kind}-step-{step:08d}")


@pytest.mark.parametrize("kind", ["damaged", "set-aside"])
def test_what_a_run_set_aside_is_not_newer_elsewhere_and_is_not_uploaded(run, bucket, lines, kind):
    add_step(run, 6)
    upload_missing(run)
    set_step_aside(run, kind, 6)
    with mirrored(run, lines.append) as mirror:
        eventually(lambda: mirror.unsent() == [] and mirror._compared)
        # A copy of what is damaged here may be whole there: it stays until the run is further.
        eventually(lambda: complete_steps(bucket.names("runs/r")) == ([2, 4, 6] if kind == "damaged" else [2, 4]))
        add_step(run, 8)
        eventually(lambda: complete_steps(bucket.names("runs/r")) == [2, 4, 8])
    assert lines == [f"uploads    {bucket.url}/runs/r"]
    assert not any("damaged" in name or "set-aside" in name for name in bucket.names("runs/r"))


def test_a_newer_checkpoint_that_this_run_never_had_is_still_newer(run, bucket, b, lines):
    add_step(run, 6)
    upload_missing(run)
    elsewhere = fetch_run(b.use() and f"{bucket.url}/runs/r")
    add_step(elsewhere, 8)
    upload_missing(elsewhere, f"{bucket.url}/runs/r")
    set_step_aside(run, "damaged", 6)
    with mirrored(run, lines.append):
        pass
    assert "has a checkpoint of step 8, which is newer than" in lines[1]


def test_what_is_damaged_here_and_whole_there_is_fetched(run, bucket):
    add_step(run, 6)
    upload_missing(run)
    set_step_aside(run, "damaged", 6)
    assert complete_steps(local_names(fetch_run(f"{bucket.url}/runs/r"))) == [2, 4, 6]
    set_step_aside(run, "set-aside", 6)
    assert complete_steps(local_names(fetch_run(f"{bucket.url}/runs/r"))) == [2, 4], "set aside on purpose"


def without_md5(monkeypatch) -> None:
    """As for objects of several parts: nothing but their size is known."""
    from excite.storage import listing

    monkeypatch.setattr(listing, "_md5", lambda info: None)


def test_half_a_checkpoint_of_a_machine_that_vanished_is_never_completed_with_others(run, bucket, monkeypatch):
    without_md5(monkeypatch)
    name = "checkpoints/step-00000004/model.safetensors"
    theirs = (run / name).read_bytes()[::-1]
    begin(run)
    bucket.put({"runs/r/run.json": (run / "run.json").read_bytes(), f"runs/r/{name}": theirs})
    upload_missing(run)
    assert copied(bucket, "runs/r") == own_files(run)


def test_a_manifest_tells_two_checkpoints_of_one_step_apart(run, bucket, monkeypatch):
    without_md5(monkeypatch)
    folder = run / "checkpoints" / "step-00000004"
    (folder / "manifest.json").write_text('{"model.safetensors": "1"}')
    upload_missing(run)
    assert not [n for n in Mirror(run, f"{bucket.url}/runs/r", print).missing() if n.startswith("checkpoints/")]
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[::-1])
    (folder / "manifest.json").write_text('{"model.safetensors": "2"}')
    upload_missing(run)
    assert copied(bucket, "runs/r") == own_files(run)


def test_state_is_sent_last_and_the_manifest_before_it(run, bucket):
    (run / "checkpoints" / "step-00000004" / "manifest.json").write_text("{}")
    names = Mirror(run, f"{bucket.url}/runs/r", print).missing()
    newest = [name.rpartition("/")[2] for name in names if "step-00000004" in name]
    assert newest == ["ema.safetensors", "manifest.json", "model.safetensors", "state.pt"]


def test_a_checkpoint_deleted_here_is_deleted_there_by_its_owner_only(run, bucket, b):
    upload_missing(run)
    elsewhere = fetch_run(b.use() and f"{bucket.url}/runs/r")
    with mirrored(elsewhere, print):
        pass
    remove_step(run, 2)
    with pytest.raises(ExciteError, match="was taken over"):
        upload_missing(run)
    assert complete_steps(bucket.names("runs/r")) == [2, 4]
    shutil.rmtree(run)
