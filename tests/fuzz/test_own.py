"""Our own weights files, and grafted networks of others, damaged: a working network or one sentence."""

import json
import random
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from excite import load
from excite.errors import ExciteError
from excite.grafting import graft
from excite.recipe import Recipe
from excite.weights.grafted import load_grafted, save_grafted
from excite.weights.locate import GRAFTED, locate
from excite.weights.own import build_network, load_into, read_own

from .harness import Case, Surface
from .mutations import changed, mutated


def header_of(path: Path, key: str) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[key])


def rewritten(rng: random.Random, content: bytes, tensors: dict, header: dict, key: str) -> bytes:
    """The file with its bytes changed, or its header, or its tensors; the header is JSON, or nearly."""
    kind = rng.randrange(10)
    if kind < 3:
        size = 8 + int.from_bytes(content[:8], "little")
        return mutated(rng, content[:size]) + content[size:] if kind else mutated(rng, content)
    tensors = dict(tensors)
    if kind == 3:
        name = rng.choice(list(tensors))
        tensor = tensors.pop(name)
        if rng.random() < 0.7:
            other = rng.choice(
                (tensor.double(), tensor.new_zeros(0), tensor[None], tensor.to(torch.uint8), tensor.reshape(-1))
            )
            tensors[rng.choice((name, name + "x", "\x1b[31m", ""))] = other.contiguous()
        return save(tensors, {"format": "pt", key: json.dumps(header)})
    text = json.dumps(changed(rng, header))
    if kind == 4:
        text = mutated(rng, text.encode()).decode("utf-8", "replace")
    return save(tensors, {"format": "pt", key: text.encode("utf-8", "replace").decode()})


def use_own(path: Path, thoroughly: bool) -> None:
    """Whatever reads a weights file: which one it is, its network, its images, its recipe."""
    assert locate(path).kind in ("own", "foreign", "grafted")
    if thoroughly:  # it builds the network, too, which takes most of the time
        predictor = load(path)
        size = min(predictor.preprocessing.image_size, 32)
        logits = predictor.logits(torch.zeros(1, predictor.preprocessing.in_chans, size, size, dtype=torch.uint8))
        assert logits.shape == (1, len(predictor.classes))
    checkpoint = read_own(path)
    if not thoroughly:
        load_into(build_network(path, checkpoint.meta["model"], checkpoint.tensors), checkpoint)
    with suppress(ExciteError):  # another version may have written it
        Recipe.from_dict(checkpoint.meta["recipe"])


def test_own_checkpoints(tiny):
    path = tiny.gated / "model.safetensors"
    content, tensors, header = path.read_bytes(), load_file(path), header_of(path, "excite")

    def one(case: Case) -> None:
        spoilt = case.file("model.safetensors", rewritten(case.rng, content, tensors, header, "excite"))
        use_own(spoilt, case.expensive)

    surface = Surface("own checkpoints", seconds=20, megabytes=512)
    surface.run(one, test="test_own.py::test_own_checkpoints")
    assert surface.refused > surface.cases // 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_grafted_checkpoints(tmp_path):
    model = graft(network(), "se", at=["1"], example=torch.zeros(1, 3, 8, 8))
    save_grafted(model, tmp_path / "grafted.safetensors")
    path = tmp_path / "grafted.safetensors"
    content, tensors, header = path.read_bytes(), load_file(path), header_of(path, GRAFTED)

    def one(case: Case) -> None:
        spoilt = case.file("grafted.safetensors", rewritten(case.rng, content, tensors, header, GRAFTED))
        read = load_grafted(spoilt, network())
        stored = load_file(spoilt)
        for name, tensor in read.state_dict().items():
            torch.testing.assert_close(stored[name].to(tensor.dtype), tensor, rtol=0, atol=0, equal_nan=True)

    surface = Surface("grafted checkpoints", seconds=20, megabytes=512)
    surface.run(one, test="test_own.py::test_grafted_checkpoints")
    assert surface.refused > surface.cases // 4
