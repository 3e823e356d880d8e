"""The real command against a real S3 server: data, checkpoints and runs at an address, killed and cut off at will."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import excite
from excite.cli import main
from excite.recipe import load_recipe
from excite.storage.runs import MARKER
from excite.training import train
from excite.training.run_folder import read_metrics
from excite.training.start import init_from
from tests.command import Command
from tests.storage.conftest import SECRET, eventually
from tests.training.small import metrics, same, small, tensors
from tests.training.test_resume import broken_off

STARTED: list[Command] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().kill()


def start(folder: Path, *words: object, **env: str) -> Command:
    """Start the real command; one thread, as in the reference run: bit-equality needs equal sums."""
    folder.mkdir(exist_ok=True)
    process = Command(words, folder, OMP_NUM_THREADS="1", EXCITE_UPLOAD_EVERY="0.1", **env)
    STARTED.append(process)
    return process


def run_to_end(process: Command, status: int = 0) -> str:
    output = "".join(process.communicate(timeout=280))
    assert process.returncode == status, output
    return output


@pytest.fixture
def images(tmp_path) -> Path:
    """A small class folder of digits."""
    from PIL import Image

    from excite.data import open_data

    data = open_data(small("limit_train=48", "limit_val=12").data)
    root = tmp_path / "images"
    for part, name in ((data.train, "train"), (data.val, "val")):
        for i, (pixels, label) in enumerate(zip(part.images, part.labels, strict=True)):
            (root / name / f"class {int(label) % 2}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0].numpy()).save(root / name / f"class {int(label) % 2}" / f"{i:03}.png")
    return root


FOLDER = ["data.source=folder", "limit_train=null", "limit_val=null", "train.batch_size=12"]


def upload(images: Path, bucket) -> None:
    bucket.put({f"data/{p.relative_to(images).as_posix()}": p.read_bytes() for p in images.rglob("*.png")})


def own_files(run: Path) -> dict[str, bytes]:
    return {
        p.relative_to(run).as_posix(): p.read_bytes()
        for p in run.rglob("*")
        if p.is_file() and p.name not in (MARKER, ".owner.lock")
    }


def copied(bucket, name: str) -> dict[str, bytes]:
    return {file: bucket.get(f"runs/{name}/{file}") for file in bucket.names(f"runs/{name}")}


@pytest.mark.heavy
def test_train_from_and_to_s3_lost_and_resumed_gives_the_same_weights(bucket, images, tmp_path):
    upload(images, bucket)
    recipe = small(*FOLDER, "epochs=2", f"data.root={bucket.url}/data")
    first = train(recipe, out=f"{bucket.url}/runs", quiet=True)
    run = tmp_path / first["run"]
    name = run.name
    stored = copied(bucket, name)
    assert stored == own_files(run)
    assert not any(SECRET.encode() in data or b"AKIATEST" in data for data in stored.values())
    assert load_recipe(str(run)).data.root == f"{bucket.url}/data"
    assert "60 files" in (run / "log.txt").read_text()
    run.rename(tmp_path / "undisturbed")
    # As if the machine had been lost after step 6, while step 8 was on its way.
    bucket.fs.rm_file(f"{bucket.name}/runs/{name}/checkpoints/step-00000008/state.pt")
    bucket.fs.rm_file(f"{bucket.name}/runs/{name}/results.json")
    again = train(None, resume=f"{bucket.url}/runs/{name}", quiet=True)
    assert tmp_path / again["run"] == run
    assert "going on after step 6" in (run / "log.txt").read_text()
    for kind in ("model.safetensors", "ema.safetensors"):
        assert same(tensors(tmp_path / "undisturbed", kind), tensors(run, kind))
    assert [(r["step"], r["loss"]) for r in metrics(run)] == [
        (r["step"], r["loss"]) for r in metrics(tmp_path / "undisturbed")
    ]
    assert copied(bucket, name) == own_files(run)

    _, result = excite.validate(f"{bucket.url}/runs/{name}")
    assert result.summary()["top1"] == again["top1"]
    predictor = excite.load(f"{bucket.url}/runs/{name}/model.safetensors")
    remote = predictor(f"{bucket.url}/data/val")
    local = predictor(images / "val")
    assert [p.top for p in remote] == [p.top for p in local]
    assert remote[0].path == f"{bucket.url}/data/val/class 0/{Path(local[0].path).name}"
    fresh = excite.create_model("cifar_seresnet20", num_classes=2, in_chans=1, image_size=8)
    init_from(fresh, f"{bucket.url}/runs/{name}")
    assert same(fresh.state_dict(), predictor.model.state_dict())


@pytest.mark.heavy
def test_a_run_at_an_address_without_a_checkpoint_is_begun_again_there(bucket, tmp_path, monkeypatch, capsys):
    url = f"{bucket.url}/runs/mine"
    broken_off(run_dir=url)
    begun = bucket.get("runs/mine/run.json")
    monkeypatch.setenv("EXCITE_RUNS", str(tmp_path / "another-machine"))
    monkeypatch.setattr(sys, "argv", ["excite", "train", "--resume", url])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err.splitlines()[-1]
    line = f"excite train {url} --run-dir {url}"
    before = f"error: {url} has no checkpoint to resume from: it ended before its first; to begin it again in its place"
    assert told == f"{before}: {line}"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    run = tmp_path / "another-machine" / "mine"
    assert [path.name for path in run.parent.iterdir() if not path.name.startswith(".")] == ["mine"]
    assert copied(bucket, "mine") == own_files(run)
    assert bucket.get("runs/mine/run.json") == begun
    assert bucket.get("runs/mine/checkpoints/step-00000006/state.pt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "small.yaml", "--out", "{bucket}x/runs"], "there is no bucket"),
        (["train", "--resume", "{bucket}/runs/nothing"], "does not exist"),
        (["train", "small.yaml", "--run-dir", "https://host/runs/x"], "is read-only"),
        (["train", "small.yaml", "data.source=idx", "data.root=s3://a:b@c/d"], "contains a user name or password"),
        (["validate", "{bucket}/runs/nothing"], "does not exist"),
        (["predict", "{bucket}/m.safetensors", "{bucket}/x.jpg"], "does not exist"),
        (["sync", "nowhere"], "is not a run folder"),
    ],
)
def test_the_command_says_in_one_sentence_what_is_wrong(bucket, tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "small.yaml").write_text(small("epochs=1").to_yaml())
    monkeypatch.setattr(sys, "argv", ["excite", *(word.format(bucket=bucket.url) for word in words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    *begun, told = capsys.readouterr().err.splitlines()
    assert not any("error" in line for line in begun)  # what the command was about to do
    assert told.startswith("error: ")
    assert message in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_train_from_and_to_s3_killed_and_resumed_elsewhere_gives_the_same_weights(bucket, images, tmp_path):
    upload(images, bucket)
    (tmp_path / "small.yaml").write_text(small(*FOLDER, "epochs=12").to_yaml())
    process = start(
        tmp_path / "a", "train", tmp_path / "small.yaml", f"data.root={bucket.url}/data", "--out", f"{bucket.url}/runs"
    )
    eventually(
        lambda: any(name.endswith("state.pt") for name in bucket.names("runs")) or process.poll() is not None, 280
    )
    process.kill()
    output = process.communicate()[0]
    assert process.returncode == -9, f"the run ended before it was killed: {output}"
    name = bucket.names("runs")[0].partition("/")[0]
    shutil.rmtree(tmp_path / "a")  # the machine is gone
    shutil.rmtree(tmp_path / "cache")
    output = run_to_end(start(tmp_path / "b", "train", "--resume", f"{bucket.url}/runs/{name}"))
    assert "going on after step" in output
    assert "60 files" in output
    run = tmp_path / "b" / "runs" / name
    undisturbed = train(small(*FOLDER, "epochs=12", f"data.root={images}"), out=tmp_path / "undisturbed", quiet=True)[
        "run"
    ]
    for kind in ("model.safetensors", "ema.safetensors"):
        assert same(tensors(undisturbed, kind), tensors(run, kind))
    assert [(r["step"], r["loss"]) for r in metrics(run)] == [(r["step"], r["loss"]) for r in metrics(undisturbed)]
    assert copied(bucket, name) == own_files(run)


def wait_for_step(process: Command, parent: Path, step: int) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for run in parent.glob("small-*"):
            if any(record["step"] >= step for record in read_metrics(run / "metrics.jsonl")):
                return run
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["cut", "frozen", "restarted empty"])
def test_training_goes_on_while_the_store_is_away_and_all_arrives_in_the_end(bucket, proxy, server, tmp_path, trouble):
    (tmp_path / "small.yaml").write_text(small("epochs=30").to_yaml())
    process = start(
        tmp_path / "a", "train", tmp_path / "small.yaml", "--out", f"{bucket.url}/runs", EXCITE_UPLOAD_WAIT="200"
    )
    run = wait_for_step(process, tmp_path / "a" / "runs", 12)
    eventually(lambda: any(name.endswith("state.pt") for name in bucket.names("runs")))
    if trouble == "cut":
        proxy.turn("refused")
    elif trouble == "frozen":
        server.freeze()
    else:
        server.stop()
    wait_for_step(
        process, tmp_path / "a" / "runs", read_metrics(run / "metrics.jsonl")[-1]["step"] + 60
    )  # it does not wait
    log = run / "log.txt"
    if trouble == "cut":
        eventually(lambda: "uploading failed" in log.read_text(), 150)
        proxy.turn("open")
    elif trouble == "frozen":
        server.thaw()
    else:
        server.start()
        eventually(lambda: "uploading failed" in log.read_text(), 150)  # there is no bucket
        bucket.fs.mkdir(bucket.name)
    output = run_to_end(process)
    assert copied(bucket, run.name) == own_files(run)
    if trouble != "frozen":  # a server that answers late was never away
        assert output.count("uploading failed") == 1
        assert output.count("continues\n") == 1
    undisturbed = train(small("epochs=30"), out=tmp_path / "undisturbed", quiet=True)["run"]
    assert same(tensors(undisturbed), tensors(run))


@pytest.mark.slow
def test_a_store_that_stays_away_costs_nothing_but_the_exit_status(bucket, proxy, tmp_path):
    (tmp_path / "small.yaml").write_text(small("epochs=12").to_yaml())
    process = start(
        tmp_path / "a", "train", tmp_path / "small.yaml", "--out", f"{bucket.url}/runs", EXCITE_UPLOAD_WAIT="2"
    )
    run = wait_for_step(process, tmp_path / "a" / "runs", 12)
    proxy.turn("refused")
    output = run_to_end(process, 1)
    assert "finished 72 steps" in output
    assert f"to {bucket.url}/runs/{run.name}; to upload: excite sync runs/{run.name}" in output
    assert (run / "results.json").is_file()
    proxy.turn("open")
    output = run_to_end(start(tmp_path / "a", "sync", f"runs/{run.name}"))
    assert f"{bucket.url}/runs/{run.name} has all of runs/{run.name}" in output
    assert copied(bucket, run.name) == own_files(run)


@pytest.mark.slow
def test_two_processes_train_to_s3_and_a_restarted_job_goes_on_from_there(bucket, tmp_path):
    """Only the first process uploads; with --run-dir the same command begins, and goes on on an empty machine."""
    (tmp_path / "small.yaml").write_text(small("epochs=2", "devices=2").to_yaml())
    words = ("train", tmp_path / "small.yaml", "--run-dir", f"{bucket.url}/runs/job")
    run_to_end(start(tmp_path / "a", *words))
    assert {"results.json", "recipe.yaml", "model.safetensors"} <= set(bucket.names("runs/job"))
    output = run_to_end(start(tmp_path / "b", *words))
    assert "runs/job is finished: nothing to resume" in output
