"""What people type who come from other systems is answered with the line to type here."""

import re
import shlex
import subprocess
import sys

import pytest
import typer.main

from excite.cli import _shapes, app
from excite.command_help import leaves
from excite.hints import corrected, key_of
from excite.recipe import override_keys
from tests.command import run_command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a run, a picture and a folder of pictures."""
    (tmp_path / "runs" / "one" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "recipe.yaml").write_text("name: one\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        # timm, torchvision
        ("train mine --lr 0.1", "train mine optimizer.lr=0.1"),
        ("train mine -lr 0.1", "train mine optimizer.lr=0.1"),
        ("train mine --batch-size 32 --epochs 3", "train mine train.batch_size=32 train.epochs=3"),
        ("train mine -b 32 -j 4 -a resnet18", "train mine train.batch_size=32 data.workers=4 model.name=resnet18"),
        ("train mine -b32", "train mine train.batch_size=32"),
        ("train mine -e 3", "train mine train.epochs=3"),
        ("train mine --data photos --img-size 160", "train mine data.root=photos data.image_size=160"),
        ("train mine --model resnet18 --device cuda", "train mine model.name=resnet18 train.device=cuda"),
        ("train mine --opt adamw --weight-decay 0.05", "train mine optimizer.name=adamw optimizer.weight_decay=0.05"),
        ("train mine --sched cosine --warmup-epochs 5", "train mine schedule.name=cosine schedule.warmup_epochs=5"),
        (
            "train mine --smoothing 0.1 --reprob 0.25",
            "train mine train.label_smoothing=0.1 augment.random_erasing=0.25",
        ),
        ("train mine --aa rand-m9-mstd0.5", "train mine 'augment.rand_augment={n: 2, m: 9}'"),
        ("train mine --amp --sync-bn", "train mine train.precision=auto train.sync_bn=true"),
        ("train mine --model-ema lr=0.1", "train mine train.ema_decay=0.9998 lr=0.1"),
        ("train mine --pretrained", "train mine train.init_from=CHECKPOINT"),
        ("train mine --pretrained lr=0.1", "train mine train.init_from=CHECKPOINT lr=0.1"),
        ("train mine --initial-checkpoint m.pth", "train mine train.init_from=m.pth"),
        ("train mine --output out --seed 1", "train mine --out out train.seed=1"),
        ("train mine --train.epochs=3", "train mine train.epochs=3"),
        ("train mine --evaluate", "validate RUN"),
        # Ultralytics
        (
            "train mine imgsz=160 batch=16 lr0=0.01",
            "train mine data.image_size=160 train.batch_size=16 optimizer.lr=0.01",
        ),
        ("train mine model=resnet18 workers=4", "train mine model.name=resnet18 workers=4"),
        ("train mine pretrained=True", "train mine train.init_from=CHECKPOINT"),
        ("train mine pretrained=False", "train mine"),
        ("train mine pretrained=m.pt", "train mine train.init_from=m.pt"),
        ("train mine device=0", "train mine train.device=cuda"),
        ("train mine --device 0,1", "train mine train.devices=2"),
        ("train mine project=x", "train mine --out x"),
        ("classify train mine", "train mine"),
        ("predict model=runs/one source=a.jpg", "predict runs/one a.jpg"),
        ("val model=runs/one", "validate runs/one"),
        # fastai
        ("train mine bs=64 valid_pct=0.2", "train mine train.batch_size=64 data.val_fraction=0.2"),
        # the form
        ("train mine epochs 3", "train mine epochs=3"),
        ("train mine lr = 0.1", "train mine lr=0.1"),
        ("train mine lr= 0.1", "train mine lr=0.1"),
        ("train mine lr =0.1", "train mine lr=0.1"),
        ("train mine data.dir=photos", "train mine data.root=photos"),
        ("train mine epochz=3", "train mine epochs=3"),
        # --resume
        ("train --resume", "train --resume runs/one"),
        ("train mine --resume", "train --resume runs/one"),
        ("train mine --resume runs/one", "train --resume runs/one"),
        ("train mine resume=True", "train --resume runs/one"),
        ("train --resume runs/one/checkpoints/step-3/state.pt", "train --resume runs/one"),
        # other commands: options by their names there, keys that they do not take
        ("validate runs/one --data photos", "validate runs/one data.root=photos"),
        ("validate --checkpoint runs/one", "validate runs/one"),
        ("validate runs/one --batch 16 epochs=3", "validate runs/one --batch-size 16"),
        ("predict runs/one a.jpg --topk 5", "predict runs/one a.jpg --top-k 5"),
        ("predict runs/one a.jpg device=cpu", "predict runs/one a.jpg --device cpu"),
        ("predict runs/one a.jpg epochs=3", "predict runs/one a.jpg"),
        ("export runs/one format=onnx half=True", "export runs/one --format onnx"),
        ("bench seresnet50 --batch-size 32 --img-size 160", "bench seresnet50 --batch 32 --image-size 160"),
        ("convert a b --model resnet50 --overwrite", "convert a b --arch resnet50 --force"),
        ("gates se epochs=3", "gates se"),
        ("recipes digits-seresnet20 lr=0.1", "recipes digits-seresnet20"),
        ("report runs/one --fancy 3", "report runs/one"),
        ("eval runs/one", "validate runs/one"),
        ("trian mine", "train mine"),
        # a command of two words
        ("data chek photos", "data check photos"),
        ("data check photos --output x.html epochs=3", "data check photos --out x.html"),
        ("data check runs/one data.rooot=photos", "data check runs/one data.root=photos"),
    ],
)
def test_the_line_to_type(typed, line, folder):
    assert line_for(typed) == f"excite {line}"
    assert line_for(line) is None, "what is said to be right is right"


def line_for(typed):
    words = shlex.split(typed)
    return corrected(words, _shapes(words))


def examples():
    for command in leaves(typer.main.get_command(app)).values():
        yield from re.findall(r"(?m)^ +excite (.*)", command.help)


@pytest.mark.parametrize(
    "line",
    [
        *examples(),
        "train digits-seresnet20 clip_grad_norm= epochs=3",
        "train digits-seresnet20 model.options.reduction=8 name=mine",
        "train digits-seresnet20 data=photos",  # a feature to come, and no mistake
        "predict runs/one -k5 'photos/*.jpg'",
        "bench seresnet50,precision=fp32 resnet50",
        "graft runs/one --gate se --option reduction=8",
        "scale digits-seresnet20 --assume tflops=60",
    ],
)
def test_a_line_without_a_mistake_is_left_alone(line, folder):
    assert line_for(line.split(" > ")[0]) is None


def test_the_words_of_an_error_are_replaced():
    words = ["validate", "runs/one", "data.part=test"]
    assert (
        corrected(words, _shapes(words), {"data.part=test": "data.part=val"})
        == "excite validate runs/one data.part=val"
    )


def test_every_key_that_other_names_stand_for_is_a_key_here():
    from excite import hints

    keys = set(override_keys())
    assert set(hints._KEYS) <= keys
    assert {said.partition("=")[0] for said in hints._SWITCHES.values()} <= keys
    for others in hints._KEYS.values():
        for other in others.split():
            assert key_of(other, sorted(keys)) is not None


@pytest.mark.parametrize(
    ("typed", "status", "end"),
    [
        ("train digits-seresnet20 --lr 0.1", 2, "Type: excite train digits-seresnet20 optimizer.lr=0.1"),
        ("train digits-seresnet20 imgsz=16", 1, "Type: excite train digits-seresnet20 data.image_size=16"),
        ("train digits-seresnet20 epochs 3", 1, "Type: excite train digits-seresnet20 epochs=3"),
        ("predict", 2, "for example: excite predict runs/my-run photo.jpg"),
        ("validate r --nothing-like-it", 2, "Type: excite validate r"),
        ("frobnicate", 2, "`excite --help` shows what there is"),
        ("validate r --batch-size many", 2, "`excite validate --help` shows what there is"),
    ],
)
def test_a_refusal_ends_with_the_line_to_type(typed, status, end, tmp_path):
    done = run_command(typed.split(), tmp_path)
    assert done.returncode == status
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith(end)


def test_a_part_that_is_not_there_is_answered_with_the_line(tiny, tmp_path):
    done = run_command(["validate", tiny.gated, "data.part=test"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"Type: excite validate {tiny.gated} data.part=val")


def test_no_hint_needs_torch():
    code = (
        "import sys; sys.argv = ['excite', 'train', 'digits-seresnet20', 'lr0=0.1']\n"
        "from excite.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert done.stderr.endswith("Type: excite train digits-seresnet20 optimizer.lr=0.1\n")
