"""Checkpoints of every format, damaged: read or refused in one sentence; a check sum lets nothing through.

A change that a format cannot notice, such as a flipped bit of a weight where there is no check sum, is read. What must
hold for every file that is read: its tensors take no more bytes than it has, and nothing in it was run.
"""

import argparse
import io
import json
import mmap
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from excite.errors import ExciteError
from excite.weights.read import read_weights
from excite.weights.stored import Stored
from tests.bounded import bounded
from tests.weights import writers
from tests.weights.test_readers import ROOT, TENSORS, VARIANTS, caffe_layers, with_fixtures

from .harness import Case, Surface, found
from .mutations import boundary, changed, mutated

#: Bytes of code: a pickle that writes a file when it is loaded by a careless reader.
_HARM = b"cos\nsystem\n(S'touch /tmp/excite-fuzz-was-here'\ntR."


def check_plausible(stored: Stored, size: int) -> None:
    assert sum(tensor.numel() * tensor.element_size() for tensor in stored.tensors.values()) <= size
    for name, tensor in stored.tensors.items():
        assert isinstance(name, str)
        tensor.clone()  # every element is there
    json.dumps(stored.metadata)


def check_same(stored: Stored, original: Stored) -> None:
    assert stored.tensors.keys() == original.tensors.keys()
    for name, tensor in original.tensors.items():
        assert stored.tensors[name].dtype == tensor.dtype
        assert stored.tensors[name].shape == tensor.shape
        assert writers.raw(stored.tensors[name]) == writers.raw(tensor)


def read(path: Path) -> Stored:
    try:
        return read_weights(path)
    except ExciteError as error:
        if path.name.split(".")[0] not in str(error):
            raise AssertionError(f"it does not name the file: {error}") from error
        raise


def copied(path: Path) -> Stored:
    """What a file holds, apart from the file."""
    stored = read_weights(path)
    return Stored(stored.format, path, {n: t.clone() for n, t in stored.tensors.items()}, stored.metadata)


# --- files ------------------------------------------------------------------------------------------------------------


def small_files(folder: Path) -> dict[str, bool]:
    """Write a small file of each format; whether its content has a check sum."""
    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    (folder / "a.ckpt").write_bytes(writers.mindspore(tensors, pieces=3))
    (folder / "b.ckpt").write_bytes(writers.mindspore(tensors, crc=True))
    save_file(tensors, folder / "c.safetensors")
    for name, options in (("d", {}), ("e", {"v1": True, "four": True}), ("f", {"packed": False})):
        layers = caffe_layers(v1=bool(options.get("v1")))
        (folder / f"{name}.caffemodel").write_bytes(writers.caffe(layers, **options))
    wrapped = {"epoch": 1, "best": np.float32(2), "args": argparse.Namespace(x=1), "state_dict": tensors}
    torch.save(wrapped, folder / "g.pth")
    torch.save(wrapped, folder / "h.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Conv2d(2, 3, 1).state_dict(), folder / "i.bin")
    return {path.name: path.name in ("b.ckpt", "g.pth", "i.bin") for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[bytes, Stored, bool]]:
    """Name -> its bytes, what it holds, whether it has a check sum; also the variants that MindSpore itself wrote."""
    folder = tmp_path_factory.mktemp("files")
    checked = small_files(folder)
    if ROOT.is_dir():
        for source in sorted(VARIANTS.iterdir()):
            if not source.name.startswith("enc_"):
                shutil.copyfile(source, folder / source.name)
                checked[source.name] = "crc" in source.name
    return {name: ((folder / name).read_bytes(), copied(folder / name), check) for name, check in checked.items()}


def check(case: Case, name: str, content: bytes, original: Stored, checked: bool) -> None:
    stored = read(case.file(f"spoilt{Path(name).suffix}", content))
    check_plausible(stored, len(content))
    if checked and stored.metadata.get("crc") is not False:  # a file that lost its check sum is one without
        check_same(stored, original)


def test_checkpoint_bytes(files):
    def one(case: Case) -> None:
        name = case.rng.choice(list(files))
        content, original, checked = files[name]
        check(case, name, mutated(case.rng, content), original, checked)

    surface = Surface("checkpoints", cases=None)
    surface.run(one, test="test_weights.py::test_checkpoint_bytes")
    assert surface.refused > surface.cases // 8, "hardly anything was noticed"


# --- by structure -----------------------------------------------------------------------------------------------------


def _safetensors(rng: random.Random, content: bytes) -> bytes:
    """Another header over the same tensors; its length fits, or not."""
    size = int.from_bytes(content[:8], "little")
    header = changed(rng, json.loads(content[8 : 8 + size]))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = rng.choice((len(text),) * 8 + (0, 1, len(text) - 1, len(text) + 1, 1 << 62))
    return length.to_bytes(8, "little") + text + content[8 + size :]


def _zip(rng: random.Random, content: bytes) -> bytes:
    """Another archive of the same entries: one changed, left out, given twice, renamed, compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at, kind = rng.randrange(len(entries)), rng.randrange(7)
    name, data = entries[at]
    if kind < 3:
        entries[at] = (name, mutated(rng, data) if data else _HARM)
    elif kind == 3:
        del entries[at]
    elif kind == 4:
        entries.append(rng.choice(entries))
    elif kind == 5:
        entries[at] = (
            rng.choice((".", "../x", "/x", "archive/data.pkl", "archive/constants.pkl", name.upper(), "a" * 300)),
            data,
        )
    out, packed = io.BytesIO(), zipfile.ZIP_DEFLATED if kind == 6 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", packed) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def _pickled(rng: random.Random) -> object:
    """What a careless or hostile script saved: tensors, numbers and texts in odd places."""
    tensor = torch.zeros(rng.choice((0, 1, 7)), rng.choice((0, 1, 3)), dtype=rng.choice((torch.float32, torch.int8)))
    whole = {"state_dict": {"w": tensor, "b": tensor[:1]}, "epoch": 3, "arch": "x", "more": [1, {"y": tensor}]}
    value = changed(rng, {"epoch": 3, "arch": "x", "more": [1, {"y": 2}], "x": boundary(rng)})
    return rng.choice((value, {**whole, **value} if isinstance(value, dict) else whole, [value, tensor], {1: tensor}))


def _saved(rng: random.Random, _: bytes) -> bytes:
    file = io.BytesIO()
    torch.save(_pickled(rng), file, _use_new_zipfile_serialization=rng.random() < 0.5)
    content = file.getvalue()
    return mutated(rng, content) if rng.random() < 0.5 else content


def _harmful(rng: random.Random, content: bytes) -> bytes:
    """A pickle that runs something, at the place of a pickle in the stream."""
    at = content.find(pickle.STOP, rng.randrange(len(content)))
    return content[:at] + _HARM + content[at:] if at >= 0 else _HARM


#: The beginning of a file's name -> the ways in which its structure is changed.
STRUCTURES: dict[str, tuple[Callable[[random.Random, bytes], bytes], ...]] = {
    "c.safetensors": (_safetensors,),
    "g.pth": (_zip, _zip, _saved),
    "h.pth": (_harmful, _saved),
    "i.bin": (_zip,),
}


def test_checkpoint_structure(files):
    def one(case: Case) -> None:
        name = case.rng.choice(list(STRUCTURES))
        content = case.rng.choice(STRUCTURES[name])(case.rng, files[name][0])
        path = case.file(f"spoilt{Path(name).suffix}", content)
        check_plausible(read(path), len(content))

    surface = Surface("checkpoint structure")
    surface.run(one, test="test_weights.py::test_checkpoint_structure")
    assert surface.refused > surface.cases // 4
    assert not Path("/tmp/excite-fuzz-was-here").exists()


# --- TensorFlow: several files ----------------------------------------------------------------------------------------


def test_tensorflow_bytes(tmp_path):
    """The index and the data; every byte of both has a check sum, but for the index's padding."""
    writers.tensorflow(tmp_path / "net", TENSORS, shards=2)
    original = copied(tmp_path / "net")
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("net.")}
    assert len(whole) == 3

    def one(case: Case) -> None:
        spoilt = "net.index" if case.rng.random() < 0.6 else case.rng.choice(sorted(whole))
        for name, content in whole.items():
            case.file(name, mutated(case.rng, content) if name == spoilt else content)
        check_same(read(case.folder / "net"), original)

    Surface("tensorflow").run(one, test="test_weights.py::test_tensorflow_bytes")


@with_fixtures
def test_tensorflow_network():
    """The reference's own index, with its data where it is."""
    source = ROOT / "tensorflow" / "small"
    whole = (source / "seresnet20.ckpt.index").read_bytes()
    data = "seresnet20.ckpt.data-00000-of-00001"
    size = (source / data).stat().st_size

    def one(case: Case) -> None:
        os.symlink(source / data, case.folder / data)
        case.file("seresnet20.ckpt.index", mutated(case.rng, whole))
        check_plausible(read(case.folder / "seresnet20.ckpt"), size)

    Surface("tensorflow network").run(one, test="test_weights.py::test_tensorflow_network")


@pytest.mark.slow
@with_fixtures
def test_networks_at_length():
    """The large fixtures: half of each mutation lies in weights, which have no check sum in MindSpore's file."""
    for source in (ROOT / "mindspore" / "seresnet18.ckpt", ROOT / "tensorflow" / "seresnet110.ckpt.index"):
        whole = source.read_bytes()

        def one(case: Case, source: Path = source, whole: bytes = whole) -> None:
            for data in source.parent.glob("seresnet110.ckpt.data*"):
                os.symlink(data, case.folder / data.name)
            case.file(source.name, mutated(case.rng, whole[:20_000]) + whole[20_000:])
            check_plausible(read(case.folder / source.name), 64 << 20)

        Surface(f"network {source.name}", cases=100, seconds=60).run(
            one, test="test_weights.py::test_networks_at_length"
        )


# --- the harness itself, and what was found ---------------------------------------------------------------------------


def test_bounds_hold():
    """The limit under which all this runs is one that a careless reader would meet."""
    with bounded(256, 60), pytest.raises(OSError, match="allocate memory"):
        mmap.mmap(-1, 512 << 20)  # straight from the system: malloc may still have a hole of a test before this one


@pytest.mark.parametrize("path", found("weights"), ids=lambda path: path.name)
def test_corpus(path):
    def one(case: Case) -> None:
        spoilt = case.file(path.name, path.read_bytes())
        check_plausible(read(spoilt), path.stat().st_size)

    surface = Surface("checkpoints", cases=1)
    surface.run(one, test=f"test_weights.py::test_corpus[{path.name}]")
