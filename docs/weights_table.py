"""Measures how far converted networks are from their sources and writes the table in weights.md.

    python docs/weights_table.py

Needs the reference checkpoints (EXCITE_FIXTURES) and timm with torchvision in .peers; takes some minutes.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from peers import import_timm  # noqa: E402

from excite.data.preprocessing import Preprocessing  # noqa: E402
from excite.models import Classifier, create_model  # noqa: E402
from excite.weights.convert import convert  # noqa: E402
from excite.weights.meta import describe  # noqa: E402
from excite.weights.verify import differences, read_reference, relative_error, trace  # noqa: E402
from excite.weights.write import ARCHITECTURES  # noqa: E402
from tests.weights import caffe_net, genet  # noqa: E402
from tests.weights.nets import images, randomise  # noqa: E402

PAGE = ROOT / "docs" / "weights.md"
FIXTURES = Path(os.environ.get("EXCITE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
BEGIN, END = "<!-- begin of the table of python docs/weights_table.py -->", "<!-- end of the table -->"
HEADER = ("source", "layout", "networks", "compared with", "largest relative difference")
#: Layouts whose source is not here to be asked: their names are stated once more by hand in tests/weights.
UNASKED = {
    "mindcv-senet154": ("MindCV", "senet154"),
    "senet.pytorch": ("moskomule's senet.pytorch, ModelZoo-PyTorch", "seresnet*"),
    "mmpretrain": ("MMPretrain", "seresnet*, seresnext*"),
    "mmpretrain-ungated": ("MMPretrain", "resnet*, resnext*"),
    "transformers": ("Hugging Face transformers", "resnet*"),
}

Row = tuple[str, str, str, str, str]


def rows(folder: Path) -> Iterator[Row]:
    """One row for each source, measured now."""
    yield _row("MindCV", "mindcv", "seresnet18", "MindSpore 2.10's outputs: logits, 3 maps", _mindspore())
    for depth, error in _tensorflow():
        networks, what = f"cifar_seresnet110_tf, depth {depth}", "TensorFlow 2.21's outputs: logits"
        yield _row("ModelZoo-TensorFlow", "tensorflow", networks, what, error)
    what = "an independent float64 evaluation of the prototxt layers: logits"
    for name in ("seresnet50", "seresnext50_32x4d", "senet154"):
        yield _row("the SE authors' Caffe nets", "caffe", name, what, _caffe(folder, name))
    timm = import_timm()
    groups: dict[str, list[str]] = {"torchvision": [], "timm": [], "cadene": [], "cadene-senet154": []}
    for name in ARCHITECTURES["timm"]:
        key = "cadene-senet154" if name == "legacy_senet154" else "cadene" if "legacy" in name else "timm"
        key = "timm-efficientnet" if "efficientnet" in name else key
        groups.setdefault(key, [])
        groups[key if name.startswith(("se", "legacy", "tf_")) else "torchvision"].append(name)
    for key, names in groups.items():
        error = max(_timm(folder, timm.create_model, name) for name in names)
        source = (
            "Cadene, timm's legacy nets" if "cadene" in key else "torchvision, timm" if key == "torchvision" else "timm"
        )
        what = "logits" if "efficientnet" in key else "logits, 5 maps"
        yield _row(source, key, ", ".join(names), f"timm {timm.__version__} itself: {what}", error)
    names = ["seresnet50", "geresnet50_theta", "geresnet50_theta_plus"]
    error = max(_own(folder, name) for name in names)
    yield _row(
        "excite, by torch.save(model.state_dict())", "excite", ", ".join(names), "the saved network: logits", error
    )
    own = "se_efficientnet_lite0"
    yield _row("the same", "excite-efficientnet", own, "the saved network: logits", _own(folder, own))
    for key, (source, networks) in UNASKED.items():
        yield source, key, networks, "not at hand: names and settings only", "-"
    what = "MindSpore 2.10's outputs of a small one (tests/weights/genet): logits"
    error = max(genet.error(name) for name in genet.GATES)
    yield _row("MindSpore GENet_Res50", "genet", "geresnet50_theta_minus, geresnet50_theta_plus", what, error)


def _row(source: str, layout: str, networks: str, what: str, error: float) -> Row:
    return source, layout, networks, what, f"{error:.1e}"


def _largest(model: Classifier, npz: Path) -> float:
    reference = read_reference(npz)
    return max(d.relative for d in differences(trace(model.eval(), reference.images), reference.outputs))


def _mindspore() -> float:
    folder = FIXTURES / "mindspore"
    return _largest(convert(folder / "seresnet18.ckpt")[0], folder / "seresnet18.npz")


def _tensorflow() -> Iterator[tuple[int, float]]:
    for depth, folder in ((20, FIXTURES / "tensorflow" / "small"), (110, FIXTURES / "tensorflow")):
        model, _ = convert(folder / f"seresnet{depth}.ckpt")
        yield depth, _largest(model, folder / f"seresnet{depth}.npz")


def _caffe(folder: Path, name: str) -> float:
    grouped = {"seresnet50": {"width": 64}, "seresnext50_32x4d": {"width": 128, "groups": 32}}
    options = grouped.get(name, {"width": 256, "groups": 64, "senet154": True, "stem": 128})
    counts = (3, 8, 36, 3) if name == "senet154" else (3, 4, 6, 3)
    layers = caffe_net.build(counts, 64, classes=1000, **options)
    path = folder / "net.caffemodel"
    caffe_net.write(path, layers)
    model, loaded = convert(path)
    rng = np.random.default_rng(0)
    rgb = torch.from_numpy(rng.integers(0, 256, (2, 3, 67, 67), dtype=np.uint8))
    preprocessing = Preprocessing.from_dict(describe(model, loaded)["preprocessing"])
    with torch.no_grad():
        mine = model.eval()(preprocessing.normalize(rgb))
    return relative_error(mine, caffe_net.evaluate(layers, rgb)["classifier"])


def _timm(folder: Path, create_model: Callable[..., torch.nn.Module], name: str) -> float:
    torch.manual_seed(0)
    theirs = randomise(create_model(name, num_classes=10))
    torch.save(theirs.state_dict(), folder / "net.pth")
    model, _ = convert(folder / "net.pth")
    x = images(64, count=1)
    with torch.no_grad():
        if "efficientnet" in name:  # whose maps timm does not all give
            return relative_error(model.eval()(x), theirs(x))
        expected = [*theirs.forward_intermediates(x, intermediates_only=True), theirs(x)]  # type: ignore[operator]
        mine = [*model.eval().forward_intermediates(x), model(x)]
    return max(relative_error(a, b) for a, b in zip(mine, expected, strict=True))


def _own(folder: Path, name: str) -> float:
    torch.manual_seed(0)
    saved = randomise(create_model(name, num_classes=10, image_size=64))
    torch.save(saved.state_dict(), folder / "net.pth")
    model, _ = convert(folder / "net.pth")
    x = images(64, count=1)
    with torch.no_grad():
        return relative_error(model.eval()(x), saved(x))


def table(measured: list[Row]) -> str:
    """The rows as Markdown, with the day and the versions."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(row) + " |" for row in measured]
    lines += ["", f"Measured on {date.today()} with torch {torch.__version__} on a CPU, float32, random weights."]
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured = list(rows(Path(folder)))
    text = PAGE.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{table(measured)}\n{END}"
    new, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{PAGE} has no place for the table: {BEGIN}")
    PAGE.write_text(new, encoding="utf-8")
    print(table(measured))


if __name__ == "__main__":
    main()
