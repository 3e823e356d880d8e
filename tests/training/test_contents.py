"""Contents are checked: whatever happens to the files of a checkpoint, the last good one is used and that is said."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from excite.errors import ExciteError
from excite.files import sha256_of
from excite.recipe import Recipe
from excite.trained.predictor import load
from excite.training import checkpoint as ckpt
from excite.training import train
from excite.training.saver import Saver
from excite.weights.digest import DIGEST, read_safetensors, write_safetensors
from excite.weights.locate import EMA, MANIFEST, STATE, WEIGHTS, join_step, saved_steps, split_step, step_folder
from excite.weights.own import read_own
from tests.training.small import small

RECIPE = ("checkpoint.keep_last=3", "epochs=2")


def train_small(out: Path, *overrides: str) -> Path:
    return Path(train(small(*RECIPE, *overrides), out=out, quiet=True)["run"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of two epochs, 12 steps."""
    return train_small(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """A copy of that run as if it had been killed after its last checkpoint but before its results."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "results.json").unlink()
    return run


def hashes(run: Path) -> dict[str, str]:
    names = [WEIGHTS, *(f"checkpoints/step-00000012/{name}" for name in (WEIGHTS, EMA, STATE))]
    return {name: sha256_of(run / name) for name in names}


# --- the same content, the same file ----------------------------------------------------------------------------------


def test_two_identical_runs_give_identical_files(finished, tmp_path):
    assert hashes(train_small(tmp_path)) == hashes(finished)


def test_a_manifest_is_what_sha256sum_says(finished):
    folder = step_folder(finished, 12)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["files"].keys() == {WEIGHTS, EMA, STATE}
    for name, record in manifest["files"].items():
        assert record == {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}


def test_a_digest_does_not_depend_on_order_and_covers_everything(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(0), "c": torch.tensor(True)}
    path, texts = tmp_path / "x.safetensors", {"excite": '{"classes": ["ä", "b"]}', "z": '\x1f\\"'}
    write_safetensors(path, tensors, texts)
    stored, found = read_safetensors(path)
    digest = found[DIGEST]
    for changed in (
        {**tensors, "b": tensors["b"] + 1},
        {**tensors, "b": tensors["b"].reshape(3, 2)},
        {**tensors, "b": tensors["b"].view(torch.int32)},
        {**tensors, "a": tensors["c"], "c": tensors["a"]},
        {k: v for k, v in tensors.items() if k != "a"},
    ):
        write_safetensors(path, changed, texts)
        assert read_safetensors(path)[1][DIGEST] != digest
    write_safetensors(path, dict(reversed(tensors.items())), dict(reversed(texts.items())))
    assert read_safetensors(path)[1][DIGEST] == digest
    assert torch.equal(stored["b"], tensors["b"])
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_no_flipped_bit_of_a_weights_file_goes_unnoticed(finished, tmp_path):
    """Either the file is refused, or everything that was read from it is as it was."""
    path, draw = tmp_path / WEIGHTS, random.Random(3)
    whole = (finished / WEIGHTS).read_bytes()
    before = read_own(finished / WEIGHTS)
    length = int.from_bytes(whole[:8], "little")
    places = [draw.randrange(8 + length) for _ in range(150)] + [
        draw.randrange(8 + length, len(whole)) for _ in range(50)
    ]
    refused = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            found = read_own(path)
        except ExciteError:
            refused += 1
            continue
        assert found.meta == before.meta
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert refused > 150


def test_damaged_shipped_weights_are_refused_by_every_reader(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    damage_a_bit(run / WEIGHTS)
    for read in (load, lambda r: train(small(f"init_from={r}"), out=tmp_path, quiet=True)):
        with pytest.raises(ExciteError, match="is damaged: its content is not what was written"):
            read(run)


# --- the last good checkpoint -----------------------------------------------------------------------------------------


def damage_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)


def zero_a_block(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 4096] = bytes(len(raw[middle : middle + 4096]))
    path.write_bytes(raw)


def of_another_step(path: Path) -> None:
    shutil.copy(path.parents[1] / "step-00000010" / path.name, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE: list[Callable[[Path], None]] = [damage_a_bit, zero_a_block, of_another_step, empty, truncate, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [WEIGHTS, EMA, STATE, MANIFEST])
def test_the_checkpoint_before_a_damaged_one_is_used(begun, finished, name, damage):
    assert saved_steps(begun)[-2:] == [10, 12]
    damage(step_folder(begun, 12) / name)
    train(resume=begun, quiet=True)
    assert hashes(begun) == hashes(finished)
    said = (begun / "log.txt").read_text()
    assert "the checkpoint of step 12 is not good and is kept as damaged-step-00000012: " in said
    assert (begun / "checkpoints" / "damaged-step-00000012").is_dir()


def test_everything_in_a_manifest_may_be_wrong(begun):
    folder = step_folder(begun, 12)
    good = json.loads((folder / MANIFEST).read_text())
    record = good["files"][WEIGHTS]
    for changes in (
        {"files": {}},
        {"files": {**good["files"], WEIGHTS: {**record, "sha256": "0" * 64}}},
        {"files": {**good["files"], "../" * 8 + "etc/passwd": record}},
        {"files": 3},
        {"step": "x"},
        {"seconds": -1},
    ):
        (folder / MANIFEST).write_text(json.dumps({**good, **changes}))
        with pytest.raises(ckpt.Damaged):
            ckpt.read_step(folder)
    (folder / MANIFEST).write_text(json.dumps({**good, "run": "theirs"}))
    with pytest.raises(ckpt.Damaged, match="is a checkpoint of another run"):
        ckpt.read_step(folder, "ours")


def test_without_a_good_checkpoint_the_reason_is_said_and_nothing_is_renamed(begun):
    for step in saved_steps(begun):
        truncate(step_folder(begun, step) / STATE)
    before = sorted(p.name for p in (begun / "checkpoints").iterdir())
    with pytest.raises(ExciteError, match=r"no good checkpoint: .*bytes instead of .*; its best weights are good, and"):
        train(resume=begun, quiet=True)
    damage_a_bit(begun / WEIGHTS)
    with pytest.raises(ExciteError, match=r"no good checkpoint: .*; to train a new run with its recipe: excite train "):
        train(resume=begun, quiet=True)
    assert sorted(p.name for p in (begun / "checkpoints").iterdir()) == before


def test_checkpoints_that_are_not_finite_are_not_good(begun):
    folder = step_folder(begun, 12)
    whole = ckpt.read_step(folder)
    tensors = {name: tensor.clone() for name, tensor in whole.weights.tensors.items()}
    tensors["bn1.running_var"][3] = float("nan")
    shutil.rmtree(folder)
    ckpt.save_step(begun, ckpt.Snapshot(whole.state, tensors, whole.weights.meta, None, whole.weights.meta, 1.0))
    with pytest.raises(ckpt.Damaged, match=r"bn1\.running_var in .* has values that are not finite"):
        ckpt.read_step(folder)


def test_a_checkpoint_of_an_older_version_is_read(begun, finished):
    """It has no manifest, no digests and its seconds in the state."""
    for step in saved_steps(begun):
        folder = step_folder(begun, step)
        seconds = json.loads((folder / MANIFEST).read_text())["seconds"]
        (folder / MANIFEST).unlink()
        state = torch.load(folder / STATE, weights_only=True)
        for key in ("parameters", "parts", "bad"):
            state.pop(key)
        torch.save({**state, "seconds": seconds}, folder / STATE)
        for name in (WEIGHTS, EMA):
            tensors, texts = read_safetensors(folder / name)
            from safetensors.torch import save_file

            save_file(tensors, folder / name, {k: v for k, v in texts.items() if k != DIGEST})
    train(resume=f"{begun}@10", quiet=True)
    assert (
        hashes(begun)[f"checkpoints/step-00000012/{WEIGHTS}"]
        == hashes(finished)[f"checkpoints/step-00000012/{WEIGHTS}"]
    )
    assert not list(begun.glob("checkpoints/damaged-*"))


def test_a_folder_without_a_checkpoint_does_not_block_saving(begun, finished):
    """Left by a tool that copied half of a run: step 12 is set aside when step 12 is saved."""
    (step_folder(begun, 12) / STATE).unlink()
    (step_folder(begun, 12) / MANIFEST).unlink()
    train(resume=f"{begun}@10", quiet=True)
    assert hashes(begun) == hashes(finished)


# --- old checkpoints go ----------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """The files of checkpoints that are read for their SHA-256 from now on."""
    found: list[Path] = []
    monkeypatch.setattr(ckpt, "sha256_of", lambda path: [found.append(path), sha256_of(path)][1])
    return found


def test_a_good_checkpoint_is_not_deleted_in_favour_of_a_damaged_one(begun, read):
    assert saved_steps(begun) == [8, 10, 12]
    damage_a_bit(step_folder(begun, 10) / STATE)
    assert ckpt.prune(begun, keep_last=3, best=None) == [
        "the checkpoint of step 10 is not good and is kept as damaged-step-00000010: "
        f"{step_folder(begun, 10) / STATE} is not what was written: its SHA-256 differs from the one in manifest.json"
    ]
    assert saved_steps(begun) == [8, 12]
    assert ckpt.prune(begun, keep_last=2, best=None) == []
    assert saved_steps(begun) == [8, 12]
    assert ckpt.prune(begun, keep_last=1, best=None) == []
    assert saved_steps(begun) == [12]
    assert (begun / "checkpoints" / "damaged-step-00000010").is_dir()


@pytest.mark.parametrize("damage", [damage_a_bit, zero_a_block, empty, truncate])
@pytest.mark.parametrize("name", [WEIGHTS, STATE, MANIFEST])
def test_the_best_checkpoint_stays_if_it_is_good(begun, name, damage):
    assert ckpt.prune(begun, keep_last=1, best=8) == []
    assert saved_steps(begun) == [8, 12]
    damage(step_folder(begun, 8) / name)
    (told,) = ckpt.prune(begun, keep_last=1, best=8)
    assert "the checkpoint of step 8 is not good" in told
    assert saved_steps(begun) == [12]


def test_a_copy_of_another_step_does_not_count(begun):
    shutil.rmtree(step_folder(begun, 12))
    shutil.copytree(step_folder(begun, 10), step_folder(begun, 12))
    (told,) = ckpt.prune(begun, keep_last=1, best=None)
    assert told.endswith("step-00000012 is of step 10")
    assert saved_steps(begun) == [10]


def test_a_checkpoint_that_stays_is_read_once(begun, read):
    assert ckpt.prune(begun, keep_last=2, best=8) == []
    assert sorted({path.parent.name for path in read}) == ["step-00000008", "step-00000010", "step-00000012"]
    read.clear()
    assert ckpt.prune(begun, keep_last=2, best=8) == []
    assert read == []
    damage_a_bit(step_folder(begun, 12) / EMA)
    (told,) = ckpt.prune(begun, keep_last=2, best=8)
    assert "step 12 is not good" in told
    assert {path.parent.name for path in read} == {"step-00000012"}


def test_a_training_reads_none_of_its_own_checkpoints_again(tmp_path, read):
    """Each is read for its manifest, before it has its name."""
    run = train_small(tmp_path)
    assert saved_steps(run) == [8, 10, 12]
    assert read
    assert all(".tmp-" in path.parent.name for path in read)


def test_a_training_keeps_the_good_ones_and_says_so(tmp_path, finished, monkeypatch):
    """Something writes into a checkpoint while the run goes on."""
    real = ckpt.save_step

    def save_step(run, snapshot):
        if snapshot.state["step"] == 10:
            damage_a_bit(step_folder(run, 8) / WEIGHTS)
        return real(run, snapshot)

    monkeypatch.setattr(ckpt, "save_step", save_step)
    run = train_small(tmp_path)
    assert saved_steps(run) == [6, 10, 12]
    assert hashes(run) == hashes(finished)
    assert "step 8 is not good and is kept as damaged-step-00000008: " in (run / "log.txt").read_text()


# --- choosing a step --------------------------------------------------------------------------------------------------


def test_a_run_and_a_step(finished, tmp_path):
    folder = step_folder(finished, 10)
    assert split_step(str(finished)) == (str(finished), None)
    assert split_step(f"{finished}@10") == (str(finished), 10)
    assert split_step(str(folder)) == (str(finished), 10)
    assert split_step("s3://bucket/run@10") == ("s3://bucket/run", 10)
    assert split_step("s3://user@host/run") == ("s3://user@host/run", None)
    for run, step in (
        (str(finished), 10),
        (str(finished), None),
        ("s3://bucket/run", 10),
        ("s3://user@host/run", None),
    ):
        assert split_step(join_step(run, step)) == (run, step)
    (tmp_path / "odd@12").mkdir()
    assert split_step(str(tmp_path / "odd@12")) == (str(tmp_path / "odd@12"), None)


@pytest.mark.parametrize("form", ["{run}@10", "{run}/checkpoints/step-00000010"])
def test_resume_from_a_step(begun, finished, form):
    train(resume=form.format(run=begun), quiet=True)
    assert hashes(begun) == hashes(finished)
    assert (begun / "checkpoints" / "set-aside-step-00000012").is_dir()
    said = (begun / "log.txt").read_text()
    assert "resuming from step 10, as asked; later checkpoints are kept as set-aside-step-00000012" in said


def test_a_step_that_is_not_there(begun):
    with pytest.raises(ExciteError, match=r"has no checkpoint of step 11: it has those of steps .*10, 12"):
        train(resume=f"{begun}@11", quiet=True)
    damage_a_bit(step_folder(begun, 10) / EMA)
    with pytest.raises(
        ExciteError, match=r"no good checkpoint of step 10: .*; the last good one: excite train --resume"
    ):
        train(resume=f"{begun}@10", quiet=True)


def test_the_best_weights_are_those_of_the_step_that_is_resumed(begun, finished):
    """Resuming before the best evaluation must not keep its weights with another evaluation's numbers."""
    best = read_own(begun / WEIGHTS).meta["step"]
    assert best == 12
    train(resume=f"{begun}@10", overrides=["eval.every_epochs=1"], quiet=True)
    results = json.loads((begun / "results.json").read_text())
    metrics = read_own(begun / WEIGHTS).meta["metrics"]
    assert metrics is not None
    assert metrics["top1"] == results["top1"]
    assert hashes(begun) == hashes(finished)


@pytest.mark.parametrize("damage", [damage_a_bit, truncate, Path.unlink])
def test_shipped_weights_that_are_lost_come_back_from_their_checkpoint(begun, finished, damage):
    damage(begun / WEIGHTS)
    train(resume=begun, quiet=True)
    assert hashes(begun) == hashes(finished)
    assert "the best weights so far are taken from step-00000012/ema.safetensors" in (begun / "log.txt").read_text()


def test_if_no_checkpoint_has_them_the_last_are_evaluated(begun, tmp_path):
    state = ckpt.load_state(step_folder(begun, 12))
    (begun / WEIGHTS).unlink()
    assert state["best"] is not None
    assert state["best"]["step"] == 12
    folder = step_folder(begun, 12)
    whole = ckpt.read_step(folder)
    shutil.rmtree(folder)
    elsewhere: ckpt.State = {**whole.state, "best": {**state["best"], "step": 6, "epoch": 1.0}}
    assert whole.ema is not None
    ckpt.save_step(
        begun,
        ckpt.Snapshot(
            elsewhere, whole.weights.tensors, whole.weights.meta, whole.ema.tensors, whole.ema.meta, whole.seconds
        ),
    )
    results = train(resume=begun, quiet=True)
    assert results["best_epoch"] == 2
    assert read_own(begun / WEIGHTS).meta["step"] == 12
    assert "no checkpoint has the best weights so far (step 6)" in (begun / "log.txt").read_text()


# --- writing while training goes on -----------------------------------------------------------------------------------


def test_a_write_that_fails_ends_the_run(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise ExciteError("the disk is full")

    monkeypatch.setattr(ckpt, "save_step", full)
    with pytest.raises(ExciteError, match="the disk is full"):
        train(small("epochs=1"), out=tmp_path, quiet=True)


def test_the_saver_keeps_the_order_and_reports_errors():
    saver, done = Saver(), []
    for number in range(6):
        saver.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    saver.wait()
    assert done == list(range(6))

    def fail() -> None:
        raise ExciteError("no")

    saver.submit(fail)
    with pytest.raises(ExciteError, match="no"):
        saver.wait()
    saver.submit(lambda: done.append(7))
    saver.close()
    assert done[-1] == 7


def test_checkpoints_are_those_of_a_saver_that_writes_at_once(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Saver.__init__, "__defaults__", (False,))
    assert not Saver().background
    assert hashes(train_small(tmp_path)) == hashes(finished)


def test_a_recipe_in_a_header_is_the_run_s(finished):
    meta = read_own(step_folder(finished, 12) / WEIGHTS).meta
    assert Recipe.from_dict({**meta["recipe"]}) == small(*RECIPE)
    assert meta["metrics"] is None  # the moving average was evaluated, not these
    average = read_own(step_folder(finished, 12) / EMA).meta["metrics"]
    assert average == read_own(finished / WEIGHTS).meta["metrics"]
    assert read_own(step_folder(finished, 10) / EMA).meta["metrics"] is None
