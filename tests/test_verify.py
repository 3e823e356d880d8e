"""``excite verify``: files are what was written, a stretch trained again gives the same bits, and signatures."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import excite
from excite.errors import ExciteError
from excite.files import sha256_of
from excite.trained.signature import check_signature, sign
from excite.training import train
from excite.weights.digest import DIGEST, read_safetensors, write_safetensors
from excite.weights.locate import STATE, WEIGHTS, step_folder
from tests.training.small import small


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    return Path(train(small("epochs=2", "checkpoint.keep_last=2"), out=out, quiet=True)["run"])


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def contents(run: Path) -> dict[str, str]:
    return {str(path.relative_to(run)): sha256_of(path) for path in run.rglob("*") if path.is_file()}


def test_a_whole_run_is_trained_again_bit_for_bit(run):
    before = contents(run)
    found = excite.verify(run)
    assert found.good
    assert found.stretch is not None
    assert (found.stretch.first, found.stretch.last, found.stretch.differing) == (10, 12, [])
    assert not found.wrong
    assert contents(run) == before


def test_from_the_start_if_there_is_one_checkpoint(run):
    shutil.rmtree(step_folder(run, 12))
    (run / WEIGHTS).unlink()
    found = excite.verify(run)
    assert found.stretch is not None
    assert (found.stretch.first, found.stretch.last, found.stretch.differing) == (0, 10, [])


def slowly(run: Path, ms: float) -> None:
    """Have the metrics say that a step took this long."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [{**r, "ms_per_step": ms} if r["kind"] == "train" else r for r in records]
    path.write_text("".join(json.dumps(r) + "\n" for r in changed))


def test_it_says_beforehand_what_it_will_train_again(run):
    said: list[str] = []
    slowly(run, 30_000)
    excite.verify(run, say=said.append)
    asked = (
        "training again steps 11 to 12 (2), which took about 0:01:00 then, besides loading the images and evaluations"
    )
    assert said == [asked]


@pytest.mark.parametrize("words", [{}, {"time": "10m"}, {"time": 3599.0}])
def test_a_long_stretch_is_trained_again_only_if_that_is_asked_for(run, words, monkeypatch):
    """The only checkpoint is a long way from the start: nothing would end it."""
    shutil.rmtree(step_folder(run, 10))
    slowly(run, 300_000)
    said: list[str] = []
    found = excite.verify(run, say=said.append, **words)
    assert found.stretch is None
    assert said == []
    limit = {"": "0:10:00", "10m": "0:10:00", 3599.0: "0:59:59"}[words.get("time", "")]
    line = f"excite verify {run} --time 60m"
    told = (
        f"not trained again: steps 1 to 12 (12), which took about 1:00:00 then, longer than {limit}; to do it: {line}"
    )
    assert told in found.notes
    assert found.good
    monkeypatch.setattr("excite.trained.verify._to_step", lambda copy, stored, last: stored)
    for longer in ("60m", None):
        assert excite.verify(run, time=longer).stretch is not None


def forged(run: Path, change) -> None:
    """Change the optimiser of the last checkpoint and write it as if it were true."""
    from excite.training import checkpoint as ckpt

    folder = step_folder(run, 12)
    whole = ckpt.read_step(folder)
    assert whole.ema is not None
    tensors = {name: tensor.clone() for name, tensor in whole.weights.tensors.items()}
    change(tensors)
    shutil.rmtree(folder)
    made = ckpt.Snapshot(whole.state, tensors, whole.weights.meta, whole.ema.tensors, whole.ema.meta, whole.seconds)
    ckpt.save_step(run, made)


def test_forged_weights_are_found_by_training_again(run):
    """Their digests are right, but no training gives them."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["fc.weight"][0, 0] += 1e-3

    forged(run, change)
    assert excite.verify(run, files_only=True).good
    found = excite.verify(run)
    assert not found.good
    assert found.stretch is not None
    assert found.stretch.differing == ["model fc.weight"]
    assert 0 < found.stretch.largest < 0.1


def test_files_that_are_not_as_written(run):
    (step_folder(run, 10) / STATE).write_bytes(b"no")
    tensors, texts = read_safetensors(run / WEIGHTS)
    tensors["fc.bias"] += 1
    write_safetensors(run / WEIGHTS, tensors, {k: v for k, v in texts.items() if k != DIGEST})
    found = excite.verify(run, files_only=True)
    assert found.checkpoints[12] == ""
    assert "state.pt has 2 bytes instead of" in found.checkpoints[10]
    assert "says that it is of step 12, but differs from" in found.wrong[0]
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "top1": 99.0}))
    assert any("top1 is 99.0, but the header" in line for line in excite.verify(run, files_only=True).wrong)


def test_the_command(run, command):
    status, out, err = command("verify", run)
    assert status == 0, out + err
    assert "trained again steps 11 to 12 in" in " ".join(out.split())
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-9])
    status, out, err = command("verify", run, "--files-only")
    assert status == 1
    assert "NOT GOOD" in out
    assert "is not what was written, or not what its recipe gives" in err
    status, out, err = command("verify", run, "--time", "3")
    assert status == 1
    assert "for minutes type --time 3m" in err
    slowly(run, 400_000)
    status, out, err = command("verify", run, "--time", "10m")
    assert "note: not trained again: steps 11 to 12 (2), which took about 0:13:20 then" in " ".join(out.split())
    status, out, err = command("verify", run.parent)
    assert status == 1
    assert "is not a run folder: it has no recipe.yaml" in err


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, Path]:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "private.pem", folder / "public.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def test_a_signature_covers_the_run(run, keys, command):
    private, public = keys
    sign(run, private)
    check_signature(run, public)
    (run / "log.txt").write_text("more")  # not signed
    status, out, err = command("verify", run, "--files-only", "--key", public)
    assert status == 0, out + err
    assert "model.sig matches" in out
    results = (run / "results.json").read_text()
    (run / "results.json").write_text(results.replace("top1", "top2"))
    with pytest.raises(ExciteError, match=r"the signature of .* does not match"):
        check_signature(run, public)


def test_what_a_signature_needs(run, keys, tmp_path):
    _, public = keys
    with pytest.raises(ExciteError, match=r"has no model\.sig; sign it with: excite verify"):
        check_signature(run, public)
    with pytest.raises(ExciteError, match=r"--key .*missing\.pem: "):
        sign(run, tmp_path / "missing.pem")
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(ExciteError, match="could not be signed with"):
        sign(run, tmp_path / "bad.pem")
