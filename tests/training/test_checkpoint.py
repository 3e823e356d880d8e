"""Checkpoints: whole or absent, self-contained, and never anything that can execute."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from excite import files
from excite.errors import ExciteError
from excite.models import create_model
from excite.recipe import Recipe
from excite.training import checkpoint as ckpt
from excite.training import train
from excite.training.start import init_from
from excite.weights.locate import find_weights, saved_steps, step_folder
from excite.weights.own import load_into, read_own
from tests.training.small import small


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished small run."""
    return Path(train(small("checkpoint.keep_last=2"), out=tmp_path_factory.mktemp("runs"), quiet=True)["run"])


def test_weights_file_is_self_contained(run):
    with safe_open(run / "model.safetensors", framework="pt") as file:
        meta = json.loads(file.metadata()["excite"])
    assert meta["classes"] == [str(d) for d in range(10)]
    assert Recipe.from_dict(meta["recipe"]) == small("checkpoint.keep_last=2")
    assert meta["metrics"].keys() == {
        *("images", "loss", "top1", "top5", "balanced", "macro_f1"),
        *("not_finite", "first_not_finite"),
    }
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["preprocessing"]["image_size"] == 8
    model = create_model(meta["model"]["name"], **meta["model"]["args"])
    load_into(model, read_own(run))


def test_state_loads_with_weights_only_and_old_checkpoints_go(run):
    steps = saved_steps(run)
    best = json.loads((run / "results.json").read_text())["best_epoch"] * 6
    assert set(steps) == {16, 18, best}
    for step in steps:
        torch.load(step_folder(run, step) / "state.pt", weights_only=True)
    names = {p.name for p in run.rglob("*") if p.is_file()}
    assert names == {
        *("curves.png", "environment.json", "ema.safetensors", "log.txt", "metrics.jsonl", "model.safetensors"),
        *("recipe.yaml", "results.json", "state.pt", "manifest.json", "run.json", ".owner.lock"),
    }


def test_checkpoint_folder_means_the_moving_average_and_a_run_means_its_best(run):
    assert find_weights(run) == run / "model.safetensors"
    folder = step_folder(run, 18)
    assert find_weights(folder) == folder / "ema.safetensors"


@pytest.mark.parametrize("when", ["model.safetensors", "state.pt"])
def test_a_failed_write_leaves_the_previous_checkpoint_whole(run, monkeypatch, when):
    """The disk fills up while this file is written: the error says so, and nothing half-written stays."""
    folder = step_folder(run, 18)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    real = files._sync

    def full(path: Path) -> None:
        if path.name == when:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(files, "_sync", full)
    whole = ckpt.read_step(folder)
    meta, tensors = whole.weights.meta, whole.weights.tensors
    snapshot = ckpt.Snapshot({**whole.state, "step": 99}, tensors, meta, None, meta, 1.0)
    with pytest.raises(ExciteError, match=r"the disk is full: .*step-00000099 could not be written"):
        ckpt.save_step(run, snapshot)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert not list(run.rglob("*.tmp-*"))
    assert 99 not in saved_steps(run)


def test_a_really_full_disk(tmp_path, excite):
    """The same with a real file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"needs the right to mount a small file system: {mount.stderr.strip()}")
    try:
        path = tmp_path / "small.yaml"
        path.write_text(small("checkpoint.keep_last=5", "ema_decay=0").to_yaml())
        done = excite("train", path, "--out", disk, check=False)
        assert done.returncode == 1
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        run = next(disk.iterdir())
        steps = saved_steps(run)
        assert steps  # and the last of them is whole:
        ckpt.load_state(step_folder(run, steps[-1]))
        read_own(step_folder(run, steps[-1]))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_foreign_and_damaged_files_are_refused_in_one_sentence(tmp_path, run):
    with pytest.raises(ExciteError, match="there is no run folder or checkpoint"):
        read_own(tmp_path / "nothing")
    with pytest.raises(ExciteError, match="it is not a run folder"):
        read_own(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, foreign)
    with pytest.raises(ExciteError, match="was not written by excite"):
        read_own(foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ExciteError, match="not a readable safetensors file"):
        read_own(cut)
    pickled = tmp_path / "model.pth"
    torch.save({"w": torch.zeros(1)}, pickled)
    with pytest.raises(ExciteError, match="not a readable safetensors file"):
        read_own(pickled)


def test_init_from_gives_another_number_of_classes_a_new_head(run):
    model = create_model("cifar_seresnet20", in_chans=1, num_classes=3)
    fresh = init_from(model, str(run))
    assert sorted(fresh) == ["fc.bias", "fc.weight"]
    assert torch.equal(model.conv1.weight, read_own(run).tensors["conv1.weight"])
    with pytest.raises(ExciteError, match=r"does not fit .*: layer1\.0"):
        init_from(create_model("cifar_resnet20", in_chans=1), str(run))


def test_init_from_refuses_gates_whose_tensors_fit_but_compute_something_else(run):
    """The checkpoint's gates are sigmoid(...), these are 2 sigmoid(...) of the same tensors."""
    model = create_model("cifar_resnet20", in_chans=1, gate={"name": "se", "identity": True, "reduction": 16})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        ExciteError, match=r"init_from: .* has the gate se identity=False at layer1\.0, .*identity=True"
    ):
        init_from(model, str(run))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
