"""What Python callers may name as a run, a checkpoint, an image or an address: odd texts end in one sentence."""

import random
from collections.abc import Callable

import excite
from excite.compare import compare
from excite.export import export
from excite.report.build import report
from excite.trained.accuracy import validate
from excite.trained.classify import predict
from excite.weights.hub import local_weights
from excite.weights.locate import check_there, find_weights, locate
from excite.weights.read import read_weights

from .harness import Case, Surface
from .mutations import mutated

DOORS: dict[str, Callable[[str], object]] = {
    "load": excite.load,
    "validate": validate,
    "report": report,
    "compare": lambda name: compare([name, name]),
    "predict": lambda name: list(predict(name, [name])),
    "export": lambda name: export(name, "onnx"),
    "resume": lambda name: excite.train(resume=name, quiet=True),
    "train": lambda name: excite.train(name, quiet=True),
    "read_weights": read_weights,
    "local_weights": local_weights,
    "find_weights": find_weights,
    "locate": locate,
    "check_there": check_there,
    "load_recipe": excite.load_recipe,
}
_NAMES = (
    "a" * 300, "y" * 5000, "a\0b", "\ud800", "", " ", "\n", "/dev/zero", "/dev/null", "~nobody/x", ".", "..", "/", "*",
    "[",
    "{}", "hf:", "hf:a", "hf:/", "timm:", "timm:x", "s3://", "https://", "file://", "file:///nowhere", "memory://x",
    "zip://a::b", "#sha256=", "x#sha256=zz", "s3:///x", "://", "x://y", "-", "--", "é", "\x1b[31m", "model.safetensors",
    "x.index", "a/" * 3000, "step-1",
)  # fmt: skip


def name(rng: random.Random) -> str:
    text = rng.choice(_NAMES)
    if rng.random() < 0.5:
        text = rng.choice((text + rng.choice(_NAMES), f"{text}/{rng.choice(_NAMES)}", text * 2))
    if text and rng.random() < 0.3:
        text = mutated(rng, text.encode("utf-8", "surrogatepass")[:300]).decode("utf-8", "surrogateescape")
    return text


def test_names(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for door in DOORS.values():  # what they import, they import now
        try:
            door("nowhere")
        except excite.ExciteError:
            continue

    def one(case: Case) -> None:
        DOORS[case.rng.choice(list(DOORS))](name(case.rng))

    surface = Surface("names", seconds=30, megabytes=512, one_line=False, writable=(tmp_path,))
    surface.run(one, test="test_names.py::test_names")
    assert surface.refused > surface.cases // 2
