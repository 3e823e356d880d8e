"""Data sets: class folders as they are found on disks, CIFAR's pickles and archives, IDX files."""

import gzip
import io
import os
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from excite.data import open_data
from excite.data.cifar import read_cifar
from excite.data.config import DataConfig
from excite.data.idx import read_idx, read_idx_folder
from excite.data.images import ArrayImages, FileImages
from excite.data.sources import DataSets
from tests.bounded import bounded

from .harness import Case, Surface
from .mutations import changed, mutated

# --- CIFAR ------------------------------------------------------------------------------------------------------------


def _numbers(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3072), np.uint8)


def cifar_files() -> dict[str, dict]:
    """What the files of CIFAR-10 hold, with three images each."""
    files: dict[str, dict] = {}
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        files[name] = {b"data": _numbers(3), b"labels": [0, 9, 4], b"filenames": [b"a.png"] * 3, b"batch_label": b"x"}
    files["batches.meta"] = {b"label_names": [f"class {n}".encode() for n in range(10)], b"num_cases_per_batch": 3}
    return files


def _plain(value: object) -> object:
    """Arrays and keys as values that can be changed like JSON."""
    return {key.decode(): each for key, each in value.items()} if isinstance(value, dict) else value


class Harm:
    """What a pickle names to run something."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/excite-fuzz-was-here",)


def _archived(files: dict[str, bytes], rng: random.Random) -> bytes:
    """The archive of the files, plain or packed; with a link, a path upwards or an endless member at times."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=rng.choice(("w", "w:gz", "w:bz2", "w:xz"))) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(rng.choice(("cifar-10-batches-py/", "", "../../", "/")) + name)
            entry.size = len(content)
            if rng.random() < 0.02:
                entry.type, entry.linkname = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "/etc/passwd"
                entry.size = 0
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_cifar():
    files = cifar_files()
    whole = {name: pickle.dumps(value, protocol=2) for name, value in files.items()}

    def spoilt(rng: random.Random, name: str) -> bytes:
        kind = rng.randrange(5)
        if kind < 3:
            return mutated(rng, pickle.dumps(files[name], protocol=rng.randrange(6)))
        value = changed(rng, _plain({key: each for key, each in files[name].items() if key != b"data"}))
        if isinstance(value, dict) and kind == 3:
            value["data"] = rng.choice((_numbers(3), _numbers(2).astype(float), _numbers(3)[:, :5], None, Harm()))
        return pickle.dumps(value, protocol=rng.randrange(2, 6))

    def one(case: Case) -> None:
        name = case.rng.choice(list(files))
        content = {**whole, name: spoilt(case.rng, name)}
        if case.rng.random() < 0.2:
            packed = _archived(content, case.rng)
            root = case.file("cifar-10-python.tar.gz", mutated(case.rng, packed) if case.rng.random() < 0.5 else packed)
        else:
            for each, data in content.items():
                case.file(each, data)
            root = case.folder
        classes, train, test = read_cifar("cifar10", root)
        assert len(classes) == 10
        for part in (train, test):
            assert part.images.shape == (len(part.labels), 3, 32, 32)
            assert part.images.dtype is torch.uint8
            assert not len(part.labels) or 0 <= int(part.labels.min()) <= int(part.labels.max()) < 10

    surface = Surface("cifar", seconds=20, megabytes=256)
    surface.run(one, test="test_data.py::test_cifar")
    assert surface.refused > surface.cases // 4
    assert not Path("/tmp/excite-fuzz-was-here").exists()


# --- IDX --------------------------------------------------------------------------------------------------------------


def _idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def test_idx():
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    labels = np.array([0, 1, 9, 3, 4, 5], np.uint8)
    whole = {
        "train-images-idx3-ubyte": _idx(images), "train-labels-idx1-ubyte": _idx(labels),
        "t10k-images-idx3-ubyte": _idx(images), "t10k-labels-idx1-ubyte": _idx(labels),
        "classes.txt": "\n".join("0123456789").encode(),
    }  # fmt: skip

    def one(case: Case) -> None:
        spoilt = case.rng.choice(list(whole))
        for name, content in whole.items():
            if name == "classes.txt" and name != spoilt and case.rng.random() < 0.5:
                continue
            content = mutated(case.rng, content) if name == spoilt else content
            if name != "classes.txt" and case.rng.random() < 0.3:
                name, content = f"{name}.gz", gzip.compress(content)
                content = mutated(case.rng, content) if case.rng.random() < 0.2 else content
            case.file(name, content)
        classes, train, test = read_idx_folder(case.folder, None)
        for part in (train, *([] if test is None else [test])):
            assert part.images.ndim == 4
            assert len(part.images) == len(part.labels)
            assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < len(classes)

    surface = Surface("idx", seconds=20)
    surface.run(one, test="test_data.py::test_idx")
    assert surface.refused > surface.cases // 4


def test_a_small_idx_file_takes_little_memory(tmp_path):
    """It once took a gigabyte, which is the most that such a file may hold."""
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(np.arange(9, dtype=np.uint8))))
    with bounded(128, 60):
        assert read_idx(path).tolist() == list(range(9))


# --- class folders ----------------------------------------------------------------------------------------------------

_FOLDERS = (
    "cat", "dog", "Cat", "CAT", "train", "Train", "val", "test", "training_set", "test_set", "1", "10", "2", ".hidden",
    "__MACOSX", "a" * 200, "\x1b[31mred", "new\nline", "é", "e\u0301", "数据", " spaced ", "-x", "a=b", "%s", 
    "\u202eodd", "null",
)  # fmt: skip
_FILES = (
    "0.png",
    "1.PNG",
    "2.jpg",
    ".x.png",
    "3.txt",
    "4",
    "5.png.bak",
    "Thumbs.db",
    "-6.png",
    "\n7.png",
    "8.tif",
    "9.heic",
    "é.png",
)


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 10, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def _name(rng: random.Random, names: tuple[str, ...]) -> bytes:
    name = os.fsencode(rng.choice(names))
    return name if rng.random() < 0.9 else name[:3] + bytes([rng.randrange(128, 256)])  # no UTF-8


def _tree(rng: random.Random, top: Path, image: bytes) -> None:
    """Class folders, parts, or neither, with what people and systems leave behind."""
    folders = [os.fsencode(top)]
    if rng.random() < 0.6:  # something that is likely to be accepted
        parts = rng.choice(((b"",), (b"train", b"val"), (b"train", b"test"), (b"set/train", b"set/val", b"set/test")))
        for part in parts:
            for name in (b"cat", b"dog", b"10"):
                place = os.path.join(folders[0], part, name)
                os.makedirs(place, exist_ok=True)
                folders.append(place)
                for index in range(rng.choice((1, 2, 3))):
                    _write(os.path.join(place, b"%d.png" % index), image)
    for _ in range(rng.choice((0, 1, 3, 8, 20))):
        _add(rng, folders, image)


def _write(path: bytes, content: bytes) -> None:
    with open(path, "xb") as file:  # to open what may be a pipe could wait for ever
        file.write(content)


def _add(rng: random.Random, folders: list[bytes], image: bytes) -> None:
    place, kind = rng.choice(folders), rng.randrange(9)
    try:
        if kind < 3:
            path = os.path.join(place, _name(rng, _FOLDERS))
            os.mkdir(path)
            folders.append(path)
        elif kind < 6:
            content = rng.choice((image, image, image, b"", image[:40], b"\0" * 100, mutated(rng, image)))
            _write(os.path.join(place, _name(rng, _FILES)), content)
        elif kind == 6:
            target = rng.choice((rng.choice(folders), b"..", b".", b"loop", b"/nowhere", folders[0]))
            os.symlink(target, os.path.join(place, rng.choice((b"loop", _name(rng, _FOLDERS), _name(rng, _FILES)))))
        elif kind == 7:
            path = os.path.join(place, _name(rng, _FILES))
            os.mkfifo(path)
        else:
            os.chmod(place, rng.choice((0o000, 0o400, 0o100, 0o755)))
    except OSError:
        pass


def _files_of(images: ArrayImages | FileImages) -> list[str]:
    return [os.path.realpath(path) for path in images.paths] if isinstance(images, FileImages) else []


def check_folder(data: DataSets) -> None:
    """No image counts twice, none is in two parts, and every label is a class."""
    parts = [data.train, data.val, *([] if data.test is None else [data.test])]
    files = [path for part in parts for path in _files_of(part)]
    assert len(files) == len(set(files)), "an image counts twice"
    for part in parts:
        labels = np.asarray(part.labels)
        assert not len(labels) or 0 <= labels.min() <= labels.max() < len(data.classes)
    assert len(set(data.classes)) == len(data.classes)
    assert data.describe()


def test_class_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))
    image = _png()

    def one(case: Case) -> None:
        top = case.folder / "images"
        top.mkdir()
        _tree(case.rng, top, image)
        config = _config(case.rng, top)
        check_folder(open_data(config, check=case.rng.random() < 0.5))

    surface = Surface("class folders", seconds=30, one_line=False, writable=(tmp_path,))
    surface.run(one, test="test_data.py::test_class_folders")
    assert surface.cases // 10 < surface.refused < surface.cases


def _config(rng: random.Random, root: Path) -> DataConfig:
    mode = rng.choice(("memory", "stream"))
    bad = rng.choice(("skip", "stop"))
    return DataConfig(
        source="folder", root=str(root), image_size=8, mode=mode, val_fraction=0.5, on_bad_val=bad, workers=0
    )
