"""The real launchers: how jobs of several processes start, end, fail and come back."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from excite.data.loader import epoch_order
from tests.training import jobs
from tests.training.small import metrics, same, small, tensors

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in the processes of run_job: equal sums need equal threads


def write_recipe(folder: Path, *overrides: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(small(*overrides).to_yaml())
    return path


def start(folder: Path, *words: object, module: str | None = None) -> subprocess.Popen[str]:
    """Start ``python -m MODULE WORDS`` (or excite) in ``folder``."""
    command = [sys.executable, "-m", module or "excite", *map(str, words)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, errors="replace"
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """(exit status, output, errors); nothing that it started may outlive it."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    out, err = process.communicate(timeout=timeout)
    psutil.wait_procs(family, timeout=10)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return process.returncode, out, err


def wait_for_checkpoint(parent: Path, process: subprocess.Popen[str], count: int = 1) -> Path:
    """The run folder below ``parent``, once it holds ``count`` checkpoints."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        found = list(parent.glob("*/checkpoints/step-*/state.pt"))
        if len(found) >= count:
            return found[0].parents[2]
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint in time; exit status {process.poll()}")


def trainers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes below a launcher."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [p for p in children if "RANK" in p.environ()]


def said_first(recipe: Path) -> list[str]:
    """All that a job of several processes says on standard error when nothing is wrong: once, not once a process."""
    return [f"training {recipe}: loading PyTorch ...", "setting up the data and the network ..."]


@pytest.mark.slow
def test_devices_starts_processes(tmp_path):
    """``devices=2``: one run, one voice, and the same weights as any other way of starting two processes."""
    recipe = write_recipe(tmp_path)
    process = start(tmp_path, "train", recipe, "epochs=1", "devices=2", "--json", "--out", "runs")
    status, out, err = finish(process)
    assert (status, err.splitlines()) == (0, said_first(recipe))
    results = json.loads(out)  # and nothing else was printed
    assert results["devices"] == 2
    run = tmp_path / results["run"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert [r["step"] for r in metrics(run)] == list(range(1, 7))
    expected = jobs.run_job(jobs.train_small, 2, tmp_path / "expected", "epochs=1")[0]["run"]
    assert same(tensors(expected), tensors(run))


def bad_image_of_rank_1(folder: Path) -> Path:
    """Class folders of 32 images, of which one that rank 1 of 2 reads first is broken."""
    from PIL import Image

    paths = []
    for name in ("a", "b"):
        for part in ("train", "val"):
            (folder / part / name).mkdir(parents=True)
            for i in range(16):
                path = folder / part / name / f"{i:02d}.png"
                Image.new("L", (8, 8), 8 * i).save(path)
                paths += [path] if part == "train" else []
    broken = sorted(paths)[epoch_order(len(paths), 0, 0)[1]]
    # Damaged inside: header and end are whole, so that the look before the first step does not find it.
    whole = broken.read_bytes()
    inside = whole.index(b"IDAT") + 6
    broken.write_bytes(whole[:inside] + b"\xff" * 6 + whole[inside + 6 :])
    return broken


@pytest.mark.slow
def test_the_process_that_fails_says_why_and_all_end(tmp_path):
    broken = bad_image_of_rank_1(tmp_path / "images")
    data = ["data.source=folder", "data.root=images", "data.mode=stream", "data.workers=0", "limit_train=null"]
    words = [*data, "limit_val=null", "on_bad_train=stop", "train.batch_size=16", "augment.crop=none"]
    process = start(tmp_path, "train", write_recipe(tmp_path), *words, "devices=2", "--json")
    status, out, err = finish(process)
    assert (status, out) == (1, "")
    *begun, told = err.splitlines()
    assert not any("error" in line for line in begun), err  # said once, by one process
    assert re.fullmatch(rf"error: rank 1: .*{re.escape(broken.name)}.*", told), err


@pytest.mark.slow
def test_torchrun_tells_a_mistake_once(tmp_path):
    torchrun = ["--standalone", "--nproc-per-node", 2, "-m", "excite", "train", write_recipe(tmp_path)]
    for words, sentence in (
        (["epochz=3"], "unknown key 'epochz' in an override; did you mean 'epochs'?"),
        (["data.source=cifar10", "data.root=/nowhere", "in_chans=3"], "data.root=/nowhere does not exist"),
        (["train.batch_size=33"], "train.batch_size (33) must be a multiple of processes (2)"),
    ):
        status, _, err = finish(start(tmp_path, *torchrun, *words, module="torch.distributed.run"))
        assert status != 0
        told = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1
        assert re.match(r"error: rank [01]: ", told[0])
        assert sentence in told[0]
        # The launcher's own summary, which we cannot keep it from printing, names the same sentence as the root cause.
        assert told[0] in err.partition("Root Cause")[2]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_nodes_train_together(tmp_path):
    """Two launchers, as on two machines, that meet on the loopback device."""
    recipe, port = write_recipe(tmp_path), jobs.free_port()
    meet = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    words = [*meet, "--rdzv-id", "test", "-m", "excite", "train", recipe, "--out", "runs"]
    nodes = [start(tmp_path, *words, module="torch.distributed.run") for _ in range(2)]
    outputs = []
    for node in nodes:
        status, out, err = finish(node)
        assert status == 0, err
        outputs.append(out)
    assert sorted("finished 18 steps" in out for out in outputs) == [False, True]  # rank 0 alone speaks
    run = next((tmp_path / "runs").iterdir())
    assert json.loads((run / "results.json").read_text())["devices"] == 2
    expected = jobs.run_job(jobs.train_small, 2, tmp_path / "expected")[0]["run"]
    assert same(tensors(expected), tensors(run))


@pytest.mark.slow
def test_accelerate_launch(tmp_path):
    """With --multi_gpu, since its launcher for CPUs is mpirun; the processes train on the CPU."""
    words = ["--multi_gpu", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"]
    job = ["--dynamo_backend", "no", "-m", "excite", "train", write_recipe(tmp_path), "device=cpu", "--out", "runs"]
    process = start(tmp_path, *words, *job, module="accelerate.commands.launch")
    status, out, err = finish(process)
    assert status == 0, err
    assert "2 processes" in out
    expected = jobs.run_job(jobs.train_small, 2, tmp_path / "expected")[0]["run"]
    assert same(tensors(expected), tensors(next((tmp_path / "runs").iterdir())))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.variation)])
def test_a_killed_process_is_restarted_and_the_run_ends_as_if_nothing_had_happened(tmp_path, victim):
    words = ["epochs=10", "train.batch_size=10", "checkpoint.every_steps=3", "checkpoint.every_epochs=10"]
    words += ["log.every_steps=5"]
    recipe = write_recipe(tmp_path, *words)
    launch = ["--standalone", "--nproc-per-node", 2, "--max-restarts", 2, "-m", "excite"]
    process = start(tmp_path, *launch, "train", recipe, "--out", "runs", module="torch.distributed.run")
    run = wait_for_checkpoint(tmp_path / "runs", process, count=2)
    next(p for p in trainers(process) if p.environ()["RANK"] == str(victim)).send_signal(signal.SIGKILL)
    status, out, err = finish(process)
    assert status == 0, err
    resumed = re.search(rf"run folder runs/{run.name}, going on after step (\d+)", out)
    assert resumed, out
    assert int(resumed.group(1)) % 20, "killed in the middle of an epoch, not at its end"
    assert list((tmp_path / "runs").iterdir()) == [run]  # the same folder
    expected = jobs.run_job(jobs.train_small, 2, tmp_path / "expected", *words)[0]["run"]
    for name in ("model.safetensors", "ema.safetensors"):
        assert same(tensors(expected, name), tensors(run, name))
    assert metrics(run, "eval")[-1] == metrics(expected, "eval")[-1]
    assert [r["step"] for r in metrics(run)] == sorted({r["step"] for r in metrics(run)})


@pytest.mark.slow
@pytest.mark.parametrize("source", [pytest.param("memory", marks=pytest.mark.variation), "stream"])
def test_sigterm_saves_first(tmp_path, source, request):
    """The launcher passes a signal on to the whole group of each process, to processes that decode images as well."""
    words = ["epochs=200", "checkpoint.every_steps=2"]
    if source == "stream":
        root = request.getfixturevalue("cifar")["folder"]
        words += ["data.source=folder", f"data.root={root}", "data.mode=stream", "data.workers=1", "in_chans=3"]
        words += ["crop=random_resized", "data.image_size=16", "limit_train=256"]
    process = start(tmp_path, "train", write_recipe(tmp_path, *words), "devices=2", "--out", "runs")
    run = wait_for_checkpoint(tmp_path / "runs", process)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process, timeout=60)
    assert status == 128 + signal.SIGTERM, err
    *_, last = err.splitlines()
    told = re.fullmatch(r"stopped by SIGTERM after step (\d+), which is saved; resume with: excite (.*)", last)
    assert told, err
    assert (run / "checkpoints" / f"step-{int(told.group(1)):08d}" / "state.pt").is_file()
    epochs = int(told.group(1)) // 6 + 1 if source == "memory" else int(told.group(1)) // 8 + 1
    status, out, err = finish(start(tmp_path, *told.group(2).split(), f"epochs={epochs}"))
    assert status == 0, err
    assert f"going on after step {told.group(1)}" in out


@pytest.mark.slow
def test_a_killed_process_ends_the_job_in_one_sentence(tmp_path):
    process = start(tmp_path, "train", write_recipe(tmp_path, "epochs=200"), "devices=2", "--out", "runs", "--json")
    wait_for_checkpoint(tmp_path / "runs", process)
    next(p for p in trainers(process) if p.environ()["RANK"] == "1").send_signal(signal.SIGKILL)
    status, out, err = finish(process, timeout=60)
    assert (status, out) == (1, "")
    told = "error: rank 1: the process was ended by SIGKILL (out of memory?); step "
    assert err.splitlines()[-1].startswith(told)  # what was saved: see test_lost.py


@pytest.mark.slow
def test_run_dir_begins_and_goes_on(tmp_path):
    """The command of a job that a scheduler may start again."""
    recipe = write_recipe(tmp_path, "epochs=200", "checkpoint.every_steps=2")
    process = start(tmp_path, "train", recipe, "--run-dir", "job/run", "devices=2")
    wait_for_checkpoint(tmp_path / "job", process)
    for child in trainers(process):
        child.kill()
    assert finish(process)[0] == 1
    done = json.loads((tmp_path / "job/run/metrics.jsonl").read_text().splitlines()[-1])["step"]
    words = ["train", recipe, "--run-dir", "job/run", "devices=2", f"epochs={done // 6 + 2}"]
    status, out, err = finish(start(tmp_path, *words))
    assert status == 0, err
    assert "going on after step" in out
    status, out, err = finish(start(tmp_path, *words))
    assert (status, err.splitlines()) == (0, said_first(recipe))
    assert "is finished: nothing to resume" in out
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("Dear ...")
    status, _, err = finish(start(tmp_path, "train", recipe, "--run-dir", "other"))
    message = "error: other is neither empty nor a run folder (it has no recipe.yaml); give a new folder"
    assert (status, err.splitlines()[-1]) == (1, message)
