"""The real command, end to end."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from excite.cli import _out_of_memory
from excite.errors import ExciteError
from excite.recipe import load_recipe
from tests.command import run_command
from tests.training.small import metrics, small


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small run made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(small("mixup=0.0").to_yaml())
    done = run_command(["train", "small.yaml", "train.epochs=4"], folder)
    assert done.returncode == 0, done.stderr
    (folder / "train.out").write_text(done.stdout)
    return next((folder / "runs").iterdir())


@pytest.fixture(scope="module")
def images(tmp_path_factory, run) -> Path:
    """Twelve digits as PNG files, and one file that is no image."""
    from PIL import Image

    from excite.data import open_data

    folder = tmp_path_factory.mktemp("images")
    data = open_data(load_recipe(str(run)).data)
    for i in range(12):
        Image.fromarray(data.val.images[i, 0].numpy()).save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_text("not an image")
    return folder


def test_training_prints_its_progress_and_leaves_everything(run):
    printed = (run.parent.parent / "train.out").read_text()
    for words in (
        "run folder",
        "0.27 M parameters",
        "200 training and 100 validation images of 10 classes",
        "epoch 4/4",
    ):
        assert words in printed
    for words in ("params(M)", "batch size", "ms/step", "img/s", "acc@top1", "acc@top5", "compile s", "resolution"):
        assert words in printed
    results = json.loads((run / "results.json").read_text())
    assert results["params_m"] == pytest.approx(0.271886, abs=0.01)
    assert results["top1"] == max(r["top1"] for r in metrics(run, "eval"))
    assert results["last_top1"] == metrics(run, "eval")[-1]["top1"]
    assert results["images"] == 100
    assert results["images_per_second"] == pytest.approx(32_000 / results["ms_per_step"])
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    environment = json.loads((run / "environment.json").read_text())
    assert {"versions", "device", "git", "command", "precision"} <= environment.keys()
    assert load_recipe(str(run)) == small("mixup=0.0", "train.epochs=4")  # and can be trained again from there
    record = metrics(run)[0]
    assert {"loss", "accuracy", "lr", "images_per_second", "ms_per_step", "data_wait", "memory_gb"} <= record.keys()


def test_every_file_of_a_run_folder_is_listed_and_documented(excite):
    """After a run with all that it may write: bad images, TensorBoard, a report, and a resume with another recipe."""
    from PIL import Image

    for part, count in (("train", 12), ("val", 4)):
        for name in ("a", "b"):
            folder = excite.cwd / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (12, 12), 20 * i).save(folder / f"{i}.png")
    (excite.cwd / "images/train/a/broken.png").write_text("not an image")
    words = ["data.source=folder", "data.root=images", "log.tensorboard=true", "limit_train=null", "limit_val=null"]
    words += ["batch_size=8", "report.write=true", "report.robustness_images=4", "report.gate_images=4", "epochs=1"]
    (excite.cwd / "small.yaml").write_text(small(*words, "checkpoint.every_steps=null", "mixup=0.0").to_yaml())
    excite("train", "small.yaml")
    run = next((excite.cwd / "runs").iterdir())
    done = excite("train", "--resume", f"runs/{run.name}", "epochs=2")
    printed = done.stdout[done.stdout.index(f"runs/{run.name}/\n") :].splitlines()[1:]
    listed = {line.split()[0] for line in printed if line.startswith("  ") and not line.startswith("   ")}
    there = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert listed == there
    page = (Path(__file__).parents[1] / "docs/reference/files.md").read_text()
    named = {re.sub(r"(at-|step-)\d+", r"\1N", path.name) for path in run.iterdir()}
    assert named >= {"run.json", "bad_images.txt", "tensorboard", "recipe-until-step-N.yaml", "predictions.npz"}
    assert [name for name in sorted(named) if f"`{name}`" not in page and f"`{name}/" not in page] == []


def test_validate_finds_what_the_training_found(run, excite):
    results = json.loads((run / "results.json").read_text())
    for extra in ([], ["--batch-size", "7"]):
        found = json.loads(excite("validate", run, "--json", *extra).stdout)
        assert found["images"] == 100
        assert (found["top1"], found["top5"]) == (results["top1"], results["top5"])
        assert found["loss"] == pytest.approx(results["loss"], rel=1e-5)
    table = excite("validate", run / "model.safetensors", "--per-class").stdout
    assert "top-1 (recall)" in table
    rows = json.loads(excite("validate", run, "--per-class", "--json").stdout)["per_class"]
    assert sum(r["images"] for r in rows) == 100


def test_predict_names_classes_and_the_broken_image(run, images, excite, tmp_path):
    done = excite("predict", run, images, "--json", "--grid", tmp_path / "grid.png", check=False)
    assert done.returncode == 1  # because of the broken one
    assert "error: cannot read image" in done.stderr
    assert "broken.png" in done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 12
    assert all(len(f["top"]) == 3 and f["top"][0]["class"] in "0123456789" for f in found)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    one = json.loads(excite("predict", run, f"{images}/0[0-3].png", "-k", "1", "--json").stdout)
    for alone, together in zip(one, found[:4], strict=True):
        assert alone["top"][0]["class"] == together["top"][0]["class"]
        assert alone["top"][0]["probability"] == pytest.approx(together["top"][0]["probability"], rel=1e-4)


def test_models_and_recipes_list_and_print(excite):
    rows = json.loads(excite("models", "seresnet50", "--json").stdout)
    assert rows[0]["params"] == 28_088_024
    assert rows[0]["gmacs"] == pytest.approx(4.09, abs=0.01)
    assert any(p["top1"] == 78.32 and "MindCV" in p["source"] for p in rows[0]["published"])
    assert "28.09" in excite("models", "seresnet5*").stdout
    [row] = json.loads(excite("models", "efficientnet*", "--pretrained", "--json").stdout)
    assert (row["model"], row["init_from"]) == ("efficientnet_lite0", "timm:tf_efficientnet_lite0.in1k")
    assert "timm:seresnet50.ra2_in1k" in excite("models", "--pretrained").stdout
    assert "digits-seresnet20" in excite("recipes").stdout
    assert excite("recipes", "digits-seresnet20").stdout.startswith("# digits-seresnet20:")
    assert json.loads(excite("recipes", "--schema").stdout)["additionalProperties"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "give what to train on"),
        (["train", "digits-seresnet02"], "did you mean 'digits-seresnet20'"),
        (["train", "train.epochs=3"], "the first word must be a recipe"),
        (["train", "digits-seresnet20", "epochz=3"], "did you mean 'epochs'"),
        (["train", "digits-seresnet20", "model.name=seresnet51"], "did you mean 'seresnet50'"),
        (["train", "digits-seresnet20", "model.options={reductoin: 8}"], "did you mean 'reduction'"),
        (["train", "digits-seresnet20", "model.options={in_chans: 1}"], "give data.in_chans"),
        (["train", "digits-seresnet20", "optimizer.name=sgdd"], "did you mean 'sgd'"),
        (["train", "digits-seresnet20", "device=cuda"], "this machine offers 'cpu'"),
        (["train", "digits-seresnet20", "train.freeze=[lyer1]"], "did you mean 'layer1'"),
        (["train", "digits-seresnet20", "init_from=nowhere"], "no run folder or checkpoint 'nowhere'"),
        (["train", "cifar10-seresnet20"], "data.root is not set"),
        (["train", "cifar10-seresnet20", "data.root=/no/where"], "data.root=/no/where does not exist"),
        (["train", "folder-seresnet50", "data.root=."], "has no class folders"),
        (["train", "--resume", "nowhere"], "this is not a run folder"),
        (["validate", "nowhere"], "no run folder or checkpoint 'nowhere'"),
        (["predict", "nowhere", "*.jpg"], "no run folder or checkpoint 'nowhere'"),
        (["models", "*resnet999*"], "no model matches"),
        (["recipes", "nothing"], "no recipe, file or run folder 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(excite, words, message):
    done = excite(*words, check=False)
    assert done.returncode == 1
    *before, told = done.stderr.splitlines()
    assert told.startswith("error: ")
    assert all(line.endswith(" ...") for line in before), done.stderr  # what was being done when it was found
    assert message in told


def test_a_mistake_leaves_no_empty_run_folder_behind(excite):
    excite("train", "cifar10-seresnet20", "data.root=/no/where", check=False)
    assert not list(excite.cwd.iterdir())


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], ["torch", "numpy", "PIL", "accelerate", "pydantic"]),
        (["models", "*50*"], ["torch", "numpy", "PIL", "accelerate"]),
        (["gates"], ["torch", "numpy", "PIL", "accelerate"]),
        (["recipes"], ["torch", "numpy", "PIL", "accelerate", "asyncio"]),
    ],
    ids=["--help", "models", "gates", "recipes"],
)
def test_help_and_lists_are_instant_because_nothing_heavy_is_imported(words, heavy):
    code = (
        f"import sys; sys.argv = ['excite', *{words}]\n"
        "from excite.cli import main\n"
        "try: main()\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    assert {"--help": "train", "gates": "cbam"}.get(words[0], "seresnet50") in done.stdout


def test_predicting_imports_neither_the_compiler_nor_metrics():
    """3 s of every command, on a machine where the rest of ``excite predict`` takes 4."""
    code = (
        "import sys, torch, excite.trained.files\n"
        "from excite.models import create_model\n"
        "create_model('cifar_seresnet20')(torch.randn(2, 3, 32, 32))\n"
        "print([m for m in ('torch._dynamo', 'torchmetrics', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_training_imports_no_more_than_it_uses():
    code = (
        "import sys, excite.training.loop\n"
        "print([m for m in ('torch._dynamo', 'torch.distributed.tensor', 'torch.utils.flop_counter', 'kornia',"
        " 'pytorch_optimizer', 'captum', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_completion_knows_recipes_models_and_keys(excite):
    from excite.commands.common import complete_model, complete_override
    from excite.commands.recipes import _complete_recipe

    assert _complete_recipe("digits") == ["digits-seresnet20"]
    assert "train.epochs=" in complete_override("train.ep")
    assert "senet154" in complete_model("senet")


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "{}"],
        ["train", "{}/"],
        ["train", "data={}"],
        ["train", "folder-small", "data.root={}"],
        ["train", "digits-seresnet20", "--run-dir", "{}/run"],
        ["recipes", "{}"],
        ["predict", "{}", "x.jpg"],
        ["convert", "{}", "x.safetensors"],
        ["sync", "{}"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long_is_one_sentence(words, tmp_path):
    done = run_command([word.format("a" * 300) for word in words], tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "file name too long" in done.stderr


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (
            "validate runs/a --json",
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes"
            ),
            "there is not enough memory (8.59 GB more were asked for); give a smaller --batch-size, or use a machine",
        ),
        (
            "report runs/a",
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"),
            "there is not enough memory (2.15 GB more were asked for); give a smaller --images, or use a machine with",
        ),
        ("graft a", MemoryError(), "there is not enough memory; end other programs that need it, or use a machine"),
    ],
)
def test_memory_that_does_not_suffice_is_one_sentence(monkeypatch, words, error, told):
    monkeypatch.setattr(sys, "argv", ["excite", *words.split()])
    assert str(_out_of_memory(error)).startswith(told)
    for other in (RuntimeError("shapes differ"), ExciteError("out of memory"), ValueError("x")):
        assert _out_of_memory(other) is other


def test_what_the_file_system_refuses_names_the_file():
    from excite.cli import _refused

    error = PermissionError(errno.EACCES, "Permission denied", "photos/\x1b[31mcat")
    assert str(_refused(error)) == "'photos/\\x1b[31mcat': permission denied"
    nameless, internal = PermissionError(errno.EACCES, "Permission denied"), FileExistsError(errno.EEXIST, "there", "x")
    for other in (nameless, internal, KeyError("x")):
        assert _refused(other) is other
    full = OSError(errno.ENOSPC, "No space left on device")  # standard output
    assert str(_refused(full)) == "the output could not be written: no space left on device"
