"""A run killed anywhere and resumed ends with the same weights, bit for bit, as one left alone."""

import json
import random
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from excite.errors import ExciteError
from excite.recipe import load_recipe
from excite.training import loop, train
from excite.training.reporting import NonFiniteLoss
from tests.command import Command
from tests.training.small import metrics, same, small, tensors


def write_recipe(folder: Path, *overrides: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(small(*overrides).to_yaml())
    return path


def start(folder: Path, *words: object) -> Command:
    """Start ``excite train``; one thread, as in the reference run in this process: equal sums need equal threads."""
    return Command(["train", *words], folder, OMP_NUM_THREADS="1")


def wait_for_step(process: Command, parent: Path, step: int) -> Path:
    """Wait until the run in ``parent`` has written down step ``step`` (or has ended), and return its folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        runs = list(parent.glob("small-*"))
        lines = (runs[0] / "metrics.jsonl").read_text() if runs and (runs[0] / "metrics.jsonl").exists() else ""
        steps = [int(s) for s in re.findall(r'"kind": "train", "step": (\d+)', lines)]
        if process.poll() is not None or (steps and max(steps) >= step):
            return runs[0]
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
@pytest.mark.parametrize("source", [pytest.param("memory", marks=pytest.mark.variation), "stream"])
def test_sigkill_at_random_steps_and_resume_gives_the_same_weights(tmp_path, source, request):
    extra: list[str] = []
    if source == "stream":
        folder = request.getfixturevalue("cifar")["folder"]
        extra = [
            "data.source=folder",
            f"data.root={folder}",
            "data.mode=stream",
            "data.workers=2",
            "in_chans=3",
            "crop=random_resized",
            "epochs=2",
            "data.image_size=16",
            "log.every_steps=1",
            "limit_train=256",
        ]
    path = write_recipe(tmp_path, *extra)
    undisturbed = train(small(*extra), out=tmp_path / "undisturbed", quiet=True)["run"]
    total = metrics(undisturbed)[-1]["step"]
    draw = random.Random(7)
    killed_at = sorted(draw.sample(range(4, total - 1), 2))
    process = start(tmp_path, path, "--out", "killed")
    for step in killed_at:
        run = wait_for_step(process, tmp_path / "killed", step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
        process = start(tmp_path, "--resume", run)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    for name in ("model.safetensors", "ema.safetensors"):
        assert same(tensors(undisturbed, name), tensors(run, name))
    # The curves are whole too: every step once, with the same losses.
    assert [(r["step"], r["loss"]) for r in metrics(run)] == [(r["step"], r["loss"]) for r in metrics(undisturbed)]
    assert metrics(run, "eval")[-1] == metrics(undisturbed, "eval")[-1]


def test_a_different_seed_gives_different_weights(tmp_path):
    """The comparison above would be worthless if everything compared equal."""
    runs = [train(small("epochs=1", f"seed={seed}"), out=tmp_path, quiet=True)["run"] for seed in (0, 1)]
    assert not same(tensors(runs[0]), tensors(runs[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("SIGTERM", signal.SIGTERM), ("Ctrl-C", signal.SIGINT)])
def test_signals_save_first_and_say_how_to_go_on(tmp_path, name, number):
    path = write_recipe(tmp_path, "checkpoint.every_steps=null", "epochs=4")
    process = start(tmp_path, path, "--out", "runs")
    run = wait_for_step(process, tmp_path / "runs", 3)
    process.send_signal(number)
    output = "".join(process.communicate(timeout=120))
    assert process.returncode == 128 + number, output
    saved = re.search(
        rf"stopped by {name} after step (\d+), which is saved; resume with: (excite train --resume \S+)", output
    )
    assert saved, output
    assert (run / "checkpoints" / f"step-{int(saved.group(1)):08d}" / "state.pt").is_file()
    process = start(tmp_path, *saved.group(2).split()[2:])
    output = "".join(process.communicate(timeout=120))
    assert process.returncode == 0, output
    same_recipe = small("checkpoint.every_steps=null", "epochs=4")
    undisturbed = train(same_recipe, out=tmp_path / "undisturbed", quiet=True)["run"]
    assert same(tensors(undisturbed), tensors(run))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train(small("epochs=1"), out=tmp_path, quiet=True)
    again = train(small("epochs=1"), resume=first["run"], quiet=True)
    assert again == json.loads((Path(first["run"]) / "results.json").read_text())


def test_resuming_with_another_recipe_keeps_the_old_one(tmp_path):
    first = train(small("epochs=1"), out=tmp_path, quiet=True)["run"]
    longer = train(None, ["epochs=2"], resume=first, quiet=True)
    assert (longer["run"], longer["epochs"]) == (first, 2)
    assert load_recipe(first) == small("epochs=2")
    assert load_recipe(f"{first}/recipe-until-step-6.yaml") == small("epochs=1")
    assert "the recipe has changed, so from this step on it is a different run" in (Path(first) / "log.txt").read_text()
    assert [r["step"] for r in metrics(first)] == list(range(1, 13))


def test_resume_does_not_need_what_the_run_was_initialised_from(tmp_path):
    source = Path(train(small("epochs=1"), out=tmp_path / "source", quiet=True)["run"])
    first = train(small("epochs=1", f"init_from={source}"), out=tmp_path, quiet=True)["run"]
    source.rename(tmp_path / "gone")
    assert train(None, ["epochs=2"], resume=first, quiet=True)["epochs"] == 2


def test_resume_refuses_other_data(tmp_path):
    run = train(small("epochs=1"), out=tmp_path, quiet=True)["run"]
    with pytest.raises(ExciteError, match="the training images have changed since it was started"):
        train(small("epochs=2", "limit_train=150", "train.batch_size=25"), resume=run, quiet=True)
    with pytest.raises(ExciteError, match=r"no checkpoint to resume from: it ended before its first$"):
        train(small(), resume=tmp_path / "empty", quiet=True)
    with pytest.raises(ExciteError, match="give a recipe to train"):
        train()


def test_resume_refuses_renamed_classes(tmp_path):
    """Their labels are the same numbers, so the images look unchanged."""
    run = train(small("epochs=1"), out=tmp_path, quiet=True)["run"]
    names = "data.class_names=[a,b,c,d,e,f,g,h,i,j]"
    with pytest.raises(ExciteError, match=r"the classes have changed since it was started \('0' is now 'a'\)"):
        train(small("epochs=2", names), resume=run, quiet=True)


def broken_off(**place: object) -> None:
    """A run that ends before its first checkpoint."""

    def failing(*_: object) -> None:
        raise NonFiniteLoss("not finite")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "record_evaluation", failing)
        with pytest.raises(NonFiniteLoss):
            train(small("epochs=1", "checkpoint.every_steps=null"), quiet=True, **place)


def test_a_run_without_a_checkpoint_says_the_line_that_begins_it_again(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    expected = train(small("epochs=1"), out=tmp_path / "expected", quiet=True)["run"]
    broken_off(run_dir="runs/my run")
    status, _, err = command("train", "--resume", "runs/my run")
    assert status == 1
    told = r"runs/my run has no checkpoint to resume from: it ended before its first; to begin it again in its place: "
    line = re.fullmatch(f"error: {told}excite (.*)", err.splitlines()[-1])
    assert line is not None, err
    status, _, err = command(*shlex.split(line[1]), "--json")
    assert status == 0, err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["my run"]
    assert same(tensors("runs/my run"), tensors(expected))
