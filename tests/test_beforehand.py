"""What commands say and check before PyTorch is loaded: the real commands, in processes that are without it."""

import json
import subprocess
import sys

import pytest
import typer

from excite.cli import app
from excite.command_help import leaves

COMMANDS = set(leaves(typer.main.get_command(app)))
#: Those that are over in less time than PyTorch takes to load.
INSTANT = {"models", "gates", "recipes", "sync"}


def command_of(line):
    """The command of a line, of one word or two."""
    words = line.split()
    return next(name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS)


#: Runs commands one after the other: prints of each its status, what it told, and whether PyTorch was asked for.
RUNNER = """
import contextlib, io, json, sys

class Asked(SystemExit):
    pass

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        # The last two are those that start other processes for what takes PyTorch.
        if name in ("torch", "excite.bench.runner", "excite.training.launch"):
            raise Asked(99)

sys.meta_path.insert(0, NoTorch())
from excite.cli import main
for words in json.load(sys.stdin):
    sys.argv, told, status = ["excite", *words], io.StringIO(), 0
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, told.getvalue()]))
"""


def run_without_torch(lines, folder):
    """(status, what was told) of each command; 99 where PyTorch was asked for."""
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input=json.dumps(lines), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """A folder with two runs, a picture, a file that is in the way."""
    place = tmp_path_factory.mktemp("beforehand")
    (place / "run").symlink_to(tiny.gated)
    (place / "bare").symlink_to(tiny.bare)
    (place / "photo.png").write_bytes(b"never opened")
    (place / "there.safetensors").write_text("")
    (place / "empty").mkdir()
    for name in ("cat", "dog"):
        (place / "photos" / name).mkdir(parents=True)
        (place / "photos" / name / "1.jpg").write_bytes(b"never opened")
    (place / "astray").symlink_to("nowhere")
    return place


MISTAKES = [
    ("train digits-seresnet20 data.fit=letterbox crop=random_resized", "give augment.crop=pad or augment.crop=none"),
    ("train digits-seresnet20 device=gpu", "choose one of auto, cpu"),
    ("train digits-seresnet20 init_from=nowhere", "no run folder or checkpoint 'nowhere'"),
    ("train digits-seresnet20 --out photo.png", "photo.png is not a folder"),
    ("train digits-seresnet20 --run-dir photo.png/x", "photo.png is not a folder"),
    ("train digits-seresnet20 epochz=3", "did you mean 'epochs'"),
    ("train digits-seresnet20 data.root=empty", "is not used by data.source=digits"),
    ("train cifar10-seresnet20 data.root=/no/where", "data.root=/no/where does not exist"),
    ("train folder-seresnet50 data.root=empty", "empty has no class folders"),
    ("train photos epochz=3", "did you mean 'epochs'"),
    ("train photos device=gpu", "choose one of auto, cpu"),
    ("train photos init_from=nowhere", "no run folder or checkpoint 'nowhere'"),
    ("train data=photos lr=fast", "optimizer.lr"),
    ("train photoz/", "has no 'photoz'; did you mean 'photos'?"),
    ("train photoz/birds/", "has no 'photoz'; did you mean 'photos'?"),
    ("train photoz", "did you mean 'photos'? Otherwise `excite recipes` lists the recipes"),
    ("train data=photoz", "has no 'photoz'; did you mean 'photos'?"),
    ("validate ruun", "has no 'ruun'; did you mean 'run'?"),
    ("predict run photos/caat/1.jpg", "photos has no 'caat'; did you mean 'cat'?"),
    ("train data=photo.png", "photo.png is a file"),
    ("train --resume photo.png", "photo.png is a file"),
    ("train astray/", "astray is a link that leads nowhere"),
    ("validate astray", "astray is a link that leads nowhere"),
    ("train --resume ruun", "has no 'ruun'; did you mean 'run'?"),
    ("sync ruun", "has no 'ruun'; did you mean 'run'?"),
    ("verify ruun", "has no 'ruun'; did you mean 'run'?"),
    ("verify empty", "empty is not a run folder: it has no recipe.yaml"),
    ("verify run --sign", "--sign needs a key: excite verify run --sign --key PRIVATE.pem"),
    ("convert ther.safetensors x.safetensors", "did you mean 'there.safetensors'?"),
    ("twins digits-seresnet20 --gates none,sen", "--gates: unknown gate 'sen'; did you mean 'se'?"),
    ("twins digits-seresnet20 --out photo.png", "photo.png is not a folder"),
    ("twins cifar10-seresnet20", "data.root is not set"),
    ("twins", "give a recipe"),
    ("twins digits-seresnet20 --out s3://bucket/twins", "the folder of an experiment must be on this machine"),
    ("validate nowhere", "no run folder or checkpoint 'nowhere'"),
    ("validate empty", "empty has no model.safetensors"),
    ("validate run data.root=/no/where", "data.root=/no/where does not exist"),
    ("validate run data.rot=x", "did you mean 'data.root'?"),
    ("validate run --device gpu", "choose one of auto, cpu"),
    ("validate run --precision fp8", "choose auto, fp32, bf16 or fp16"),
    ("predict nowhere photo.png", "no run folder or checkpoint 'nowhere'"),
    ("predict run nothing.png", "'nothing.png' is neither a file"),
    ("predict run photo.png --grid photo.png/grid.png", "photo.png is not a folder"),
    ("predict run photo.png --precision half", "choose auto, fp32, bf16 or fp16"),
    ("bench seresnet51", "did you mean 'seresnet50'?"),
    ("bench seresnet50 --csv empty", "empty is a folder"),
    ("bench --data cifar10-seresnet20", "data.root is not set"),
    ("scale nothing", "no recipe, file or run folder 'nothing'"),
    ("convert nowhere x.safetensors", "no weights at 'nowhere'"),
    ("convert run there.safetensors", "there.safetensors already exists; use --force"),
    ("convert run x.txt", "must end in .safetensors"),
    ("convert run x.pth --to tim", "did you mean 'timm'?"),
    ("convert run x.safetensors --verify nothing.npz", "'nothing.npz' is neither a file"),
    ("graft nowhere", "no run folder or checkpoint 'nowhere'"),
    ("graft run --gate sen", "unknown gate 'sen'; did you mean 'se'?"),
    ("graft run --init identiy", "did you mean 'identity'?"),
    ("graft run --out there.safetensors", "there.safetensors already exists; use --force"),
    ("export nowhere -f onnx", "no run folder or checkpoint 'nowhere'"),
    ("export run -f onx", "did you mean 'onnx'?"),
    ("export run -f onnx --input int8", "allowed: uint8, float"),
    ("export run -f onnx --out there.safetensors", "there.safetensors already exists; use --force"),
    ("export run -f onnx --verify nowhere", "'nowhere' is neither a file"),
    ("prune nowhere", "no run folder or checkpoint 'nowhere'"),
    ("prune run --out empty", "empty already exists; name a new folder"),
    ("prune run data.root=/no/where", "data.root=/no/where does not exist"),
    ("explain nowhere", "no run folder or checkpoint 'nowhere'"),
    ("explain run nothing.png", "'nothing.png' is neither a file"),
    ("explain run --ablation fulll", "did you mean 'full'?"),
    ("explain run --out empty", "empty already exists; name a new folder"),
    ("compare run", "only 'run' was given"),
    ("compare run nowhere", "no run folder or checkpoint 'nowhere'"),
    ("compare run bare --out x.txt", "must end in .html"),
    ("compare run bare --baseline x", "is not one of the runs"),
    ("compare run bare --confidence 2", "give a share between 0 and 1"),
    ("report nowhere", "no run folder or checkpoint 'nowhere'"),
    ("report run --out empty", "empty is a folder"),
    ("report run --figures empty", "empty already exists; name a new folder"),
    ("report run data.root=/no/where", "data.root=/no/where does not exist"),
    ("data check", "give a data set or a run, as in: excite data check photos"),
    ("data check photos run", "give one data set or run, not 2: photos and run"),
    ("data check photoz", "has no 'photoz'; did you mean 'photos'?"),
    ("data check photos data.rot=x", "did you mean 'data.root'?"),
    ("data check run data.root=/no/where", "data.root=/no/where does not exist"),
    ("data check photos --weights nowhere", "no run folder or checkpoint 'nowhere'"),
    ("data check photos --out empty", "empty is a folder"),
    ("data check photos --device gpu", "choose one of auto, cpu"),
    ("data pack photoz shards", "has no 'photoz'; did you mean 'photos'?"),
    ("sync nowhere", "nowhere is not a run folder"),
    ("gates cban", "did you mean 'cbam'?"),
    ("recipes nothing", "no recipe, file or run folder 'nothing'"),
    ("models *resnet999*", "no model matches"),
]


def test_mistakes_that_need_no_pytorch_are_told_before_it_is_loaded(folder):
    assert {command_of(line) for line, _ in MISTAKES} == COMMANDS
    found = run_without_torch([line.split() for line, _ in MISTAKES], folder)
    for (line, message), (status, told) in zip(MISTAKES, found, strict=True):
        assert (status, told.count("\n")) == (1, 1), (line, told)
        assert told.startswith("error: "), line
        assert message in told, line


def test_force_writes_over_what_is_there(folder):
    lines = [
        "convert run there.safetensors --force",
        "graft run --force --out there.safetensors",
        "graft run --out there.safetensors --force",
    ]
    assert [status for status, _ in run_without_torch([line.split() for line in lines], folder)] == [99] * 3


BEGUN = [
    ("train digits-seresnet20", "training digits-seresnet20"),
    ("train photos", "looking at the images in photos"),
    ("train --resume run", "resuming run"),
    ("twins digits-seresnet20", "training twins of digits-seresnet20"),
    ("validate run --json", "evaluating run"),
    ("predict run photo.png", "classifying with run"),
    ("bench seresnet50 resnet50", "measuring seresnet50, resnet50"),
    ("scale digits-seresnet20", "scaling digits-seresnet20"),
    ("convert run x.safetensors", "converting run"),
    ("graft run --gate eca", "grafting eca into run"),
    ("export run -f onnx", "exporting run as onnx"),
    ("prune run", "pruning run"),
    ("explain run photo.png", "explaining run"),
    ("compare run bare --json", "comparing run and bare"),
    ("report run", "reporting on run"),
    ("verify run", "verifying run"),
    ("data check photos", "checking photos"),
    ("data pack photos shards", "packing photos"),
]


def test_the_first_line_says_what_is_done_and_comes_before_pytorch(folder):
    assert {command_of(line) for line, _ in BEGUN} == COMMANDS - INSTANT
    found = run_without_torch([line.split() for line, _ in BEGUN], folder)
    for (line, doing), (status, told) in zip(BEGUN, found, strict=True):
        assert (status, told) == (99, f"{doing}: loading PyTorch ...\n"), line


def test_one_process_of_a_job_speaks_for_all(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_without_torch([["validate", "run"]], folder) == [(99, "")]
