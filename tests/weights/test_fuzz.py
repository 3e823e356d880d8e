"""Damaged files: each is read or refused in one sentence, in bounded memory; a check sum lets nothing through.

A mutation that a format cannot notice, such as a flipped bit of a weight where there is no check sum, is read. What
must hold for every file that is read: its tensors take no more bytes than it has.
"""

import argparse
import ctypes
import gc
import json
import mmap
import os
import random
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from excite.errors import ExciteError
from excite.weights.read import read_weights
from excite.weights.stored import Stored

from . import writers
from .test_readers import ROOT, TENSORS, VARIANTS, caffe_layers, with_fixtures

#: Mutations of each small file in the default run; those marked slow try a thousand times as many files' worth.
FEW, MANY = 60, 4000
#: Memory that a read may take beyond what the process has when it begins: the files here have less than a megabyte.
HEADROOM = 256 << 20
#: Nothing here takes a second; a read that hangs ends the test instead of the day.
GIVE_UP = 60


# --- mutations ------------------------------------------------------------------------------------------------------


def _range(rng, data):
    at = rng.randrange(len(data))
    return at, min(len(data), at + rng.choice((1, 2, 4, 8, 30, 200)))


def truncate(rng, data):
    return data[: rng.randrange(len(data))]


def flip_bit(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def set_byte(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))]) + data[at + 1 :]


def huge_number(rng, data):
    """A varint, or a size of 8 bytes, that says more than there is memory."""
    at = rng.randrange(len(data))
    number = rng.choice((writers.varint(1 << rng.randrange(30, 64)), b"\xff" * 8, b"\xff" * 4))
    return data[:at] + number + data[at + rng.choice((0, 1, len(number))) :]


def repeat(rng, data):
    start, end = _range(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 3)) + data[end:]


def remove(rng, data):
    start, end = _range(rng, data)
    return data[:start] + data[end:]


def insert(rng, data):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 3, 16))) + data[at:]


def move(rng, data):
    start, end = _range(rng, data)
    rest = data[:start] + data[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + data[start:end] + rest[at:]


def blank(rng, data):
    start, end = _range(rng, data)
    return data[:start] + bytes(end - start) + data[end:]


MUTATIONS = (truncate, flip_bit, flip_bit, set_byte, huge_number, repeat, remove, insert, move, blank)


def mutate(rng, data):
    """One or a few mutations, never none."""
    out = data
    while out == data:
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            out = rng.choice(MUTATIONS)(rng, out) if out else out
    return out


@pytest.fixture
def folder(tmp_path):
    """A folder in memory where the system has one: writing the files takes longer than reading them."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


# --- what must hold -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def bounded():
    """No read may ask for much memory, or hang."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    torch.ones(1000).sum()  # what PyTorch sets aside once
    # Memory that earlier tests of this process freed, and that glibc kept, would count as room: hand it back first.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, hard))
    before = signal.signal(signal.SIGALRM, _hangs)
    yield
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _hangs(*_):
    raise TimeoutError(f"a read took more than {GIVE_UP} s")


def read(path: Path) -> Stored | None:
    """What a file holds, or None where it was refused as it should be; anything else raises."""
    signal.alarm(GIVE_UP)
    try:
        stored = read_weights(path)
    except ExciteError as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert path.name.split(".")[0] in sentence
        assert not any(word in sentence for word in ("MemoryError", "allocate memory", "Cannot allocate", "recursion"))
        return None
    finally:
        signal.alarm(0)
    return stored


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


def fuzz(path: Path, times: int, seed: int, checked: bool) -> int:
    """Read so many mutations of a file, which is put back; returns how many were refused."""
    whole, refused = path.read_bytes(), 0
    original = read_weights(path)
    original = Stored(original.format, path, {n: t.clone() for n, t in original.tensors.items()}, original.metadata)
    check_plausible(original, len(whole))
    spoilt = path.with_name(f"spoilt{path.suffix}")
    for index in range(times):
        content = mutate(random.Random(f"{path.name} {seed} {index}"), whole)
        spoilt.write_bytes(content)
        try:
            stored = read(spoilt)
            if stored is not None:
                check_plausible(stored, len(content))
                # A file that lost its check sum is one without.
                if checked and stored.metadata.get("crc") is not False:
                    check_same(stored, original)
        except BaseException as error:
            error.add_note(f"mutation {index} of {path.name}, seed {seed}")
            raise
        refused += stored is None
    spoilt.unlink(missing_ok=True)
    return refused


# --- files ----------------------------------------------------------------------------------------------------------


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
    names = sorted(path.name for path in folder.iterdir())
    return {name: name in ("b.ckpt", "g.pth", "i.bin") for name in names}


def fuzz_small_files(folder: Path, times: int, seed: int) -> None:
    for name, checked in small_files(folder).items():
        refused = fuzz(folder / name, times, seed, checked)
        assert refused > times // 4, f"{name}: hardly anything was noticed"


def fuzz_tensorflow(folder: Path, times: int, seed: int) -> None:
    """The index and the data; every byte of both has a check sum, but for the index's padding."""
    prefix = writers.tensorflow(folder / "net", TENSORS, shards=2)
    original = read_weights(prefix)
    files = [path for path in folder.iterdir() if path.name.startswith("net.")]
    assert len(files) == 3
    for path in files:
        whole = path.read_bytes()
        for index in range(times if path.suffix == ".index" else times // 4):
            content = mutate(random.Random(f"{path.name} {seed} {index}"), whole)
            path.write_bytes(content)
            try:
                stored = read(prefix)
                if stored is not None:
                    check_same(stored, original)
            except BaseException as error:
                error.add_note(f"mutation {index} of {path.name}, seed {seed}")
                raise
        path.write_bytes(whole)


def fuzz_variants(folder: Path, times: int, seed: int) -> None:
    for source in sorted(VARIANTS.iterdir()):
        if source.name.startswith("enc_"):
            continue
        path = folder / source.name
        shutil.copyfile(source, path)
        os.chmod(path, 0o600)
        refused = fuzz(path, times, seed, checked="crc" in source.name)
        assert refused > times // 8, f"{source.name}: hardly anything was noticed"


def test_small_files(folder):
    fuzz_small_files(folder, 3 * FEW, seed=0)


def test_tensorflow(folder):
    fuzz_tensorflow(folder, 3 * FEW, seed=0)


@with_fixtures
def test_mindspore_variants(folder):
    fuzz_variants(folder, FEW, seed=0)


@with_fixtures
def test_tensorflow_network(folder):
    """The reference's own index, with its data where it is."""
    source = ROOT / "tensorflow" / "small"
    whole = (source / "seresnet20.ckpt.index").read_bytes()
    data = "seresnet20.ckpt.data-00000-of-00001"
    (folder / data).symlink_to(source / data)
    for index in range(FEW):
        content = mutate(random.Random(index), whole)
        (folder / "seresnet20.ckpt.index").write_bytes(content)
        stored = read(folder / "seresnet20.ckpt")
        if stored is not None:
            check_plausible(stored, (source / data).stat().st_size)


def test_bounds_hold():
    """The limit under which all this runs is one that a careless reader would meet."""
    with pytest.raises(OSError, match="allocate memory"):
        mmap.mmap(-1, 2 * HEADROOM)  # straight from the system: malloc may still have a hole of a test before this one


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_small_files_at_length(seed, folder):
    fuzz_small_files(folder, MANY, seed)


@pytest.mark.slow
def test_tensorflow_at_length(folder):
    fuzz_tensorflow(folder, MANY, seed=1)


@pytest.mark.slow
@with_fixtures
def test_mindspore_variants_at_length(folder):
    fuzz_variants(folder, MANY, seed=1)


@pytest.mark.slow
@with_fixtures
def test_networks_at_length(folder):
    """The large fixtures: half of each mutation lies in weights, which have no check sum in MindSpore's file."""
    for source in (ROOT / "mindspore" / "seresnet18.ckpt", ROOT / "tensorflow" / "seresnet110.ckpt.index"):
        whole = source.read_bytes()
        head = whole[:20_000]
        (folder / "data").mkdir(exist_ok=True)
        for data in source.parent.glob("seresnet110.ckpt.data*"):
            link = folder / data.name
            if not link.exists():
                link.symlink_to(data)
        for index in range(100):
            path = folder / source.name
            with path.open("wb") as file:
                file.write(mutate(random.Random(index), head))
                file.write(memoryview(whole)[20_000:])
            stored = read(path)
            if stored is not None:
                check_plausible(stored, 64 << 20)
            del stored
