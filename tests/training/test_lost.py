"""A run whose decoding workers or other processes are lost is saved, and says why in one sentence."""

import errno
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from excite.data import EvalLoader, TrainLoader, open_data, watched
from excite.data import loader as loader_module
from excite.data.ahead import decoded_batches
from excite.data.watched import LoaderFailed
from excite.errors import ExciteError
from excite.files import WriteFailed, sha256_of
from excite.runtime import waiting
from excite.runtime.ranks import Ranks
from excite.runtime.waiting import Waits, waits
from excite.training import checkpoint as ckpt
from excite.training import launch, loop, reporting, train
from excite.training.run_folder import Metrics
from excite.weights.locate import saved_steps, step_folder
from tests.training import jobs
from tests.training.dying import Dying
from tests.training.small import metrics, same, small, tensors
from tests.training.test_distributed_launch import ENV, finish, start, trainers, write_recipe

STREAM = ["data.source=folder", "data.mode=stream", "in_chans=3", "data.image_size=16", "crop=random_resized"]
STREAM += ["limit_train=null", "limit_val=null", "batch_size=8", "epochs=2", "checkpoint.every_steps=null"]


@pytest.fixture
def images(tmp_path):
    """Class folders of 48 + 8 images."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 4)):
        for name in ("a", "b"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def dying(monkeypatch):
    monkeypatch.setattr(loader_module, "FileDecoder", Dying)
    monkeypatch.setattr(watched, "LOOK", 0.05)


def streamed(root: Path, *words: str):
    return small(*STREAM, f"data.root={root}", "data.workers=1", *words)


def mark(root: Path, name: str, where: str = "train/a/07.png") -> None:
    path = root / where
    path.rename(path.with_name(f"{path.stem}-{name}.png"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "SIGKILL",
            r"was killed \(SIGKILL\).*memory.* ran out; use fewer workers \(data.workers=0\) or a smaller train",
        ),
        ("SIGBUS", r"was ended by SIGBUS .*/dev/shm has .* MB free of .*data\.workers=0"),
        ("SIGSEGV", r"crashed \(SIGSEGV\).*a fault in an image decoder; move that file away"),
    ],
)
def test_a_worker_that_dies_ends_the_run_saved(images, dying, tmp_path, capfd, name, why):
    expected = train(streamed(images), out=tmp_path / "expected", quiet=True)["run"]
    mark(images, name)
    with pytest.raises(LoaderFailed, match=why) as raised:
        train(streamed(images), out=tmp_path / "runs", quiet=True)
    text = str(raised.value)
    assert f"while it read {images}/train/a/07-{name}.png" in text
    run = next((tmp_path / "runs").iterdir())
    step = saved_steps(run)[-1]
    assert text.endswith(f"; step {step} is saved; go on with: excite train --resume {run}")
    assert step == metrics(run)[-1]["step"] > 0
    assert "\n" not in text
    assert capfd.readouterr().err == ""  # neither torch's handlers nor multiprocessing add to it
    train(resume=run, quiet=True)  # the image is met again, and is now read
    assert same(tensors(run), tensors(expected))
    assert [r["step"] for r in metrics(run)] == list(range(1, 13))


def test_a_worker_that_hangs_ends_the_run_saved(images, dying, tmp_path, monkeypatch):
    """Given up after four looks at 300 s each without any progress, from when the worker stopped."""
    monkeypatch.setenv("EXCITE_PATIENCE", "900")
    ticks, met = itertools.count(0, 300), images / "train/a/07-SIGSTOP.png.met"
    monkeypatch.setattr(waits, "clock", lambda: next(ticks) if met.exists() else 0)
    monkeypatch.setattr(waiting, "LOOK", 0.05)
    mark(images, "SIGSTOP")
    told = r"got nowhere for \d+ s \(images: worker 1 reads .*07-SIGSTOP.png\)"
    with pytest.raises(LoaderFailed, match=told) as raised:
        train(streamed(images), out=tmp_path / "runs", quiet=True)
    assert "EXCITE_PATIENCE=SECONDS; step " in str(raised.value)
    assert multiprocessing.active_children() == []  # the end of the program would wait for it


def all_files(run: str | Path) -> dict[str, str]:
    """What a run leaves for good, by its SHA-256; only the manifests' times differ between two identical runs."""
    names = [path for path in Path(run).rglob("*") if path.suffix in (".safetensors", ".pt")]
    return {str(path.relative_to(run)): sha256_of(path) for path in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The run that those of the next test should have been."""
    return Path(
        train(small("checkpoint.every_steps=null"), out=tmp_path_factory.mktemp("undisturbed"), quiet=True)["run"]
    )


FAILURES = {
    "images": (LoaderFailed("a worker is gone"), LoaderFailed, "a worker is gone; step {step} is saved; go on with: "),
    "store": (ExciteError("s3://b/x: no answer"), ExciteError, "s3://b/x: no answer; step {step} is saved; go on with"),
    "memory": (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        ExciteError,
        "more memory than there is: give a smaller eval.batch_size (it is 256); step {step} is saved; go on with: ",
    ),
    "fault": (ValueError("ours"), ValueError, "ours"),
}


@pytest.mark.parametrize("step", [6, 12, 18])
@pytest.mark.parametrize("kind", FAILURES)
def test_an_evaluation_that_fails_is_made_when_the_run_goes_on(undisturbed, tmp_path, monkeypatch, kind, step):
    """Twice: every step is kept, and weights, checkpoints and metrics become those of an undisturbed run."""
    real, (error, raised, text) = reporting.evaluate_run, FAILURES[kind]
    left = [type(error)(*error.args), type(error)(*error.args)]

    def evaluate_run(run, *words):
        if run.step == step and left:
            raise left.pop()
        return real(run, *words)

    monkeypatch.setattr(reporting, "evaluate_run", evaluate_run)
    with pytest.raises(raised, match=re.escape(text.format(step=step))) as first:
        train(small("checkpoint.every_steps=null"), out=tmp_path, quiet=True)
    run = next(tmp_path.iterdir())
    if kind == "fault":
        assert first.value.__notes__ == [f"step {step} is saved; go on with: excite train --resume {run}"]
    assert saved_steps(run)[-1] == step
    assert ckpt.load_state(step_folder(run, step))["evaluated"] == step - 6
    with pytest.raises(raised):
        train(resume=run, quiet=True)
    assert left == []
    train(resume=run, quiet=True)
    assert f"step {step} was saved without its evaluation, which comes first" in (run / "log.txt").read_text()
    assert all_files(run) == all_files(undisturbed)
    assert metrics(run, "eval") == metrics(undisturbed, "eval")
    assert [r["loss"] for r in metrics(run)] == [r["loss"] for r in metrics(undisturbed)]
    assert not list(run.rglob(".*.tmp-*"))


def test_an_evaluation_whose_line_cannot_be_written_is_made_again(undisturbed, tmp_path, monkeypatch):
    """The weights had been measured, but nobody would know the result."""
    real = Metrics.write

    def write(self, record):
        if record["kind"] == "eval" and record["step"] == 12:
            raise WriteFailed("metrics.jsonl could not be written: Input/output error", errno.EIO)
        real(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "write", write)
        with pytest.raises(WriteFailed, match="error; step 12 is saved; go on with"):
            train(small("checkpoint.every_steps=null"), out=tmp_path, quiet=True)
    run = next(tmp_path.iterdir())
    train(resume=run, quiet=True)
    assert all_files(run) == all_files(undisturbed)
    assert metrics(run, "eval") == metrics(undisturbed, "eval")


def test_an_evaluation_is_made_again_if_the_run_was_killed_before_it_was_saved(undisturbed, tmp_path, monkeypatch):
    """Its line is there, but the checkpoint still owes it: there is one line in the end."""
    left, saved = [LoaderFailed("a worker is gone")], loop.save
    real = reporting.evaluate_run
    monkeypatch.setattr(reporting, "evaluate_run", lambda *words: real(*words) if not left else raise_(left.pop()))
    with pytest.raises(LoaderFailed):
        train(small("checkpoint.every_steps=null"), out=tmp_path, quiet=True)
    run = next(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(loop, "save", lambda *_: raise_(KeyboardInterrupt()))  # not an error that saves anything
        with pytest.raises(KeyboardInterrupt):
            train(resume=run, quiet=True)
    assert loop.save is saved
    assert len(metrics(run, "eval")) == 1
    train(resume=run, quiet=True)
    assert all_files(run) == all_files(undisturbed)
    assert metrics(run, "eval") == metrics(undisturbed, "eval")


def raise_(error: BaseException):
    raise error


def test_weights_that_are_not_finite_are_not_saved_by_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "evaluate_run", lambda run: raise_(reporting.NonFiniteLoss("not finite")))
    with pytest.raises(reporting.NonFiniteLoss, match=r"^not finite$"):
        train(small("checkpoint.every_steps=null"), out=tmp_path, quiet=True)
    assert saved_steps(next(tmp_path.iterdir())) == []


def test_an_evaluation_whose_worker_dies_is_not_skipped_by_going_on(images, dying, tmp_path):
    expected = train(streamed(images), out=tmp_path / "expected", quiet=True)["run"]
    mark(images, "SIGKILL", "val/b/02.png")
    with pytest.raises(LoaderFailed, match=r"smaller eval.batch_size; step 6 is saved; go on with"):
        train(streamed(images), out=tmp_path / "runs", quiet=True)
    run = next((tmp_path / "runs").iterdir())
    assert saved_steps(run) == [6]
    again = train(resume=run, quiet=True)["run"]
    assert same(tensors(again), tensors(expected))
    assert metrics(again, "eval") == metrics(expected, "eval")


#: Where a process that is started anew finds the tests and the package.
ROOTS = (Path(__file__).parents[2], Path(__file__).parents[2] / "src")


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ("16k", "the decoding workers could not be started"),
        ("200k", "decoded images could not be handed over in shared memory"),
    ],
)
@pytest.mark.heavy
def test_full_shared_memory_is_told(images, tmp_path, size, what):
    """torch drops a batch that does not fit, and then waits for it for ever."""
    program = f"""
from excite.errors import ExciteError
from tests.training.test_lost import streamed, train
try:
    train(streamed({str(images)!r}, "data.image_size=96"), out={str(tmp_path / "runs")!r}, quiet=True)
except ExciteError as error:
    print(error)
"""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    own = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let tests mount a /dev/shm of their own")
    command = [*own, sys.executable, "-c", program]
    paths = os.pathsep.join([*map(str, ROOTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": paths})
    told = rf"{what} \(.*No space left on device.*\); /dev/shm has \d+ MB free of 0 MB; make that larger \(docker run "
    assert re.match(rf"{told}--shm-size=8g\), or decode without workers: data\.workers=0", done.stdout), done.stderr
    assert done.stderr == ""


# --- what is said while something waits -----------------------------------------------------------------------------


def test_long_waits_are_said_at_growing_intervals():
    now, said = [0.0], []
    waits = Waits(clock=lambda: now[0], say=said.append)
    waits._watch = lambda: None  # no thread: the test looks itself
    with waits.waiting(lambda: "images: photos/a.jpg"):
        with waits.waiting(lambda: "something inside"):
            for now[0] in (59, 60, 90, 119, 120, 239, 240, 700):
                waits.look()
        assert waits.longest() == (700, "images: photos/a.jpg")
    assert said == [f"waiting for {s} s now, for images: photos/a.jpg" for s in (60, 120, 240, 700)]
    assert waits.longest() is None
    waits.look()
    assert len(said) == 4


@contextmanager
def let_go_when_named(path: Path):
    """While the block waits for the image at ``path``, look as the thread that says so does; then let it be read."""
    seen, over = [], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            found = waits.longest()
            if found is not None and str(path) in found[1]:
                seen.append(found[1])
                Path(f"{path}.go").touch()
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_wait_names_the_file_wherever_images_are_read(images, dying, part, workers):
    """In a training and in an evaluation, with workers and without."""
    mark(images, "hold", f"{part}/a/02.png")
    recipe = streamed(images, f"data.workers={workers}")
    data = open_data(recipe.data, recipe.augment)
    options = {"batch_size": 4, "device": "cpu", "data_config": recipe.data}
    if part == "val":
        batches = iter(EvalLoader(data.val, **options))
    else:
        batches = TrainLoader(data.train, seed=0, augment=recipe.augment, **options).epoch(0)
    path = images / part / "a/02-hold.png"
    with let_go_when_named(path) as seen:
        assert len(list(batches)) == (2 if part == "val" else 12)
    assert seen == [f"images: worker 1 reads {path}" if workers else f"images: reading {path}"]


def test_a_wait_names_the_file_in_a_prediction(tmp_path):
    go = tmp_path / "b.png.go"

    def load(name: str) -> str:
        while name == str(tmp_path / "b.png") and not go.exists():
            time.sleep(0.01)
        return name

    names = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    with let_go_when_named(tmp_path / "b.png") as seen:
        assert len(list(decoded_batches(names, load, 3, path_of=str, beside=False))) == 1
    assert seen == [f"images: reading {tmp_path / 'b.png'}"]


# --- lost processes of a job ----------------------------------------------------------------------------------------

LONG = ["epochs=40", "checkpoint.every_steps=null", "checkpoint.every_epochs=40", "eval.every_epochs=40"]


def wait_for_steps(parent: Path, count: int, process) -> Path:
    """The run below ``parent`` once it has written ``count`` lines of metrics."""
    while process.poll() is None:
        found = list(parent.glob("*/metrics.jsonl"))
        if found and found[0].read_bytes().count(b"\n") >= count:
            return found[0].parent
        time.sleep(0.01)
    raise AssertionError(f"it ended: {process.communicate()}")


def killed(tmp_path: Path, number: int) -> tuple[Path, str]:
    process = start(tmp_path, "train", write_recipe(tmp_path, *LONG), "devices=2", "--out", "runs", "--json")
    run = wait_for_steps(tmp_path / "runs", 3, process)
    victim = next(p for p in trainers(process) if p.environ()["RANK"] == "1")
    os.kill(victim.pid, number)
    status, out, err = finish(process, timeout=200)
    assert (status, out) == (1, "")
    return run, err.splitlines()[-1]


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job_saved(tmp_path):
    """Rank 0 saves the last step that was done; that it is resumed changes no bit, nor do statistics of the norms."""
    run, said = killed(tmp_path, signal.SIGKILL)
    (step,) = saved_steps(run)
    assert said == (
        "error: rank 1: the process was ended by SIGKILL (out of memory?); "
        f"step {step} is saved; go on with: excite train --resume runs/{run.name}"
    )
    assert step >= 3
    status, _, err = finish(start(tmp_path, "train", "--resume", run, "--json"))
    assert status == 0, err
    expected = jobs.run_job(jobs.train_small, 2, tmp_path / "expected", *LONG)[0]["run"]
    for name in ("model.safetensors", "ema.safetensors"):
        assert same(tensors(expected, name), tensors(run, name))


@pytest.mark.heavy
@pytest.mark.parametrize("rank", [0, 1])
def test_an_evaluation_that_fails_in_one_of_two_processes_is_made_by_both(tmp_path, rank):
    words = ("checkpoint.every_steps=null",)
    expected = jobs.run_job(jobs.train_small, 2, tmp_path / "expected", *words)[0]["run"]
    said = jobs.run_job(jobs.train_until_an_evaluation_fails, 2, tmp_path / "runs", rank, *words)
    assert said[rank].startswith("a worker is gone")
    run = next((tmp_path / "runs").iterdir())
    assert saved_steps(run)[-1] == 12
    jobs.run_job(jobs.resume_small, 2, run)
    assert all_files(run) == all_files(expected)
    assert metrics(run, "eval") == metrics(expected, "eval")


@pytest.mark.slow
def test_a_rank_that_stops_is_named_and_the_job_ends_saved(tmp_path, monkeypatch):
    monkeypatch.setitem(ENV, "EXCITE_PATIENCE", "15")
    monkeypatch.setitem(ENV, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")
    run, said = killed(tmp_path, signal.SIGSTOP)
    (step,) = saved_steps(run)
    assert f"step {step} is saved; go on with: excite train --resume runs/{run.name}" in said
    told = r"error: rank 0: the processes .* waited too long for each other: rank 1 \(.*\) has not answered for "
    assert re.match(told, said)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 15000ms for recv operation to complete", True),
        ("Application timeout caused pair closure", True),  # both met with one stopped process
        ("Connection closed by peer [127.0.0.1]:3", True),
        ("shape '[2]' is invalid for input of size 3", False),
    ],
)
def test_what_gloo_says_of_a_lost_process_is_recognised(text, lost):
    assert launch.is_lost_peer(RuntimeError(text)) is lost


class Board:
    """The notes of a job, in memory."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def put(self, name: str, text: str) -> None:
        self.notes[name] = text

    def read(self, name: str) -> str | None:
        return self.notes.get(name)

    def write_first(self, name: str, text: str) -> bool:
        return self.notes.setdefault(name, text) is text and not self.notes.__setitem__(name, "taken")


def test_a_process_that_is_silent_or_waits_for_images_is_named_once():
    now, said, board = [0.0], [], Board()
    steps = [7, 7, 7]
    ranks = [
        Ranks(board, rank, 3, lambda rank=rank: steps[rank], clock=lambda: now[0], say=said.append) for rank in range(3)
    ]
    for now[0] in range(20):  # all answer
        for each in ranks:
            each.tick()
    for now[0] in range(20, 130):  # rank 2 has been stopped
        for each in ranks[:2]:
            each.tick()
    assert len(said) == 2
    assert said[0].startswith("no step for 60 s, after step 7: rank 2 (")
    assert "has not answered for " in said[0]
    assert said[1].startswith("no step for 120 s, after step 7: rank 2 (")
    early = Ranks(Board(), 0, 2, lambda: 3, clock=lambda: now[0], say=said.append)
    for now[0] in range(200, 231):
        early.tick()
    assert re.fullmatch(
        r"rank 1 \(of which nothing is known\) has not answered for 30 s \(stopped, .*", early.suspects()
    )
    now[0] = 130
    steps[0] += 1  # it goes on
    ranks[0].tick()
    assert len(said) == 2
    board.put("at-2", '{"beat": 99, "step": 7, "what": "images: worker 1 reads a.jpg", "waits": true, "who": "here"}')
    for now[0] in range(130, 200):
        ranks[0].tick()
        board.put("at-2", board.notes["at-2"].replace('"beat": 99', f'"beat": {now[0]}'))
    assert said[-1].endswith("rank 2 (here) waits for images: worker 1 reads a.jpg") or "rank 2 (here)" in said[-1]


# --- files that vanish ----------------------------------------------------------------------------------------------


def at_step(monkeypatch, step: int, action) -> None:
    """Do something to the run when it has done ``step`` steps and written their line."""
    real = loop.record_steps

    def record_steps(run, *words, **options):
        real(run, *words, **options)
        if run.step == step:
            action(run.folder)

    monkeypatch.setattr(loop, "record_steps", record_steps)


def test_metrics_that_vanish_end_the_run_saved(tmp_path, monkeypatch):
    """Written anew, they would lack the beginning, and the results would be silently wrong."""
    at_step(monkeypatch, 3, lambda run: (run / "metrics.jsonl").unlink())
    told = r"metrics.jsonl has vanished while it was being written \(.*\); step 4 is saved; go on with: excite train "
    with pytest.raises(ExciteError, match=told):
        train(small("checkpoint.every_steps=null"), out=tmp_path / "runs", quiet=True)
    assert saved_steps(next((tmp_path / "runs").iterdir())) == [4]


def test_a_run_folder_that_vanishes_ends_the_run(tmp_path, monkeypatch):
    at_step(monkeypatch, 3, shutil.rmtree)
    with pytest.raises(
        ExciteError, match=r"the folder .* has vanished \(was it moved or deleted\?\); nothing was saved"
    ):
        train(small("checkpoint.every_steps=null"), out=tmp_path / "runs", quiet=True)
    assert list((tmp_path / "runs").iterdir()) == []


def test_results_without_the_last_evaluation_are_not_made_up(tmp_path, monkeypatch):
    real = loop.finish

    def finish(run, bad):
        path = run.folder / "metrics.jsonl"
        lines = [line for line in path.read_text().splitlines(True) if '"eval"' not in line or '"step": 12,' in line]
        path.write_text("".join(lines))
        return real(run, bad)

    monkeypatch.setattr(loop, "finish", finish)
    with pytest.raises(ExciteError, match=r"no longer has the last evaluation .*: excite validate "):
        train(small(), out=tmp_path / "runs", quiet=True)
    run = next((tmp_path / "runs").iterdir())
    assert (run / "model.safetensors").is_file()
    assert not (run / "results.json").exists()


def test_a_step_that_needs_more_memory_than_there_is(monkeypatch, tmp_path):
    """Nothing is saved in the middle of a step; the sentence says what is, and what needs less."""

    def broken(run, *_, **__):
        if run.step == 7:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2000000000 bytes")
        return real(run, *_, **__)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", broken)
    for more, told in (
        ((), "add train.grad_checkpointing=true"),
        (("train.grad_checkpointing=true",), "begin again with"),
    ):
        with pytest.raises(ExciteError) as failed:
            train(small(*more), out=tmp_path, quiet=True)
        assert "a step needs more memory than there is (2 GB more were asked for); step 6 is saved; go on" in str(
            failed.value
        )
        assert f"To need less, {told}" in str(failed.value)
