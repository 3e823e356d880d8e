import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import AugmentConfig, BadImageError, DataConfig, DataSets, TrainLoader, idx, open_data
from excite.data.images import ArrayImages, FileImages, balanced_order, channel_statistics, luma, stratified_split
from excite.errors import ExciteError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def opened(
    source: str, root: Path | None, augment: AugmentConfig | None = None, check: bool = False, **options
) -> DataSets:
    options = {"image_size": 32, **options}
    config = DataConfig(source=source, root=None if root is None else str(root), **options)
    return open_data(config, augment, check=check)


# --- helpers that every source uses ----------------------------------------------------------------------------------


def test_stratified_split_keeps_proportions_and_is_a_partition():
    labels = np.repeat([0, 1, 2], [100, 50, 11])
    train, val = stratified_split(labels, 0.2, seed=0)
    assert sorted([*train, *val]) == list(range(161))
    assert np.bincount(labels[val]).tolist() == [20, 10, 2]
    again, other = stratified_split(labels, 0.2, seed=0), stratified_split(labels, 0.2, seed=1)
    assert (again[1] == val).all()
    assert (other[1] != val).any()


def test_stratified_split_leaves_every_class_a_training_image_while_it_can():
    labels = [0, 1, 1, 2, 2, 2]
    for seed in range(20):
        train, val = stratified_split(labels, 0.5, seed)
        assert {labels[i] for i in train} == {0, 1, 2}
        assert len(val) == 3
    train, val = stratified_split(list(range(10)), 0.2, 0)  # nothing to choose from: one image a class
    assert (len(train), len(val)) == (8, 2)


def test_balanced_order_is_balanced_at_every_length():
    labels = np.repeat([0, 1, 2], [50, 50, 4])
    order = balanced_order(labels, 0)
    assert sorted(order) == list(range(104))
    assert np.bincount(labels[order[:12]]).tolist() == [4, 4, 4]
    assert np.bincount(labels[order[:30]], minlength=3).tolist() == [13, 13, 4]
    assert (balanced_order(labels, 1) != order).any()


def test_channel_statistics_and_luma():
    images = torch.randint(0, 256, (50, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images)
    values = images.double().transpose(0, 1).flatten(1) / 255
    assert np.allclose(mean, values.mean(1))
    assert np.allclose(std, values.std(1, correction=0))
    assert channel_statistics(torch.full((2, 1, 2, 2), 7, dtype=torch.uint8)) == ([7 / 255], [1 / 255])
    expected = [np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).convert("L")) for i in images]
    assert (luma(images)[:, 0].numpy() == np.stack(expected)).all()


def test_statistics_and_luma_of_more_images_than_are_looked_at_at_once():
    images = torch.randint(0, 256, (5000, 3, 2, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    values = images.double().transpose(0, 1).flatten(1) / 255
    mean, std = channel_statistics(images)
    assert np.allclose(mean, values.mean(1))
    assert np.allclose(std, values.std(1, correction=0))
    assert torch.equal(luma(images)[4090:], luma(images[4090:]))


def test_images_are_called_and_told_apart_by_what_they_are():
    images = torch.arange(24, dtype=torch.uint8).view(4, 1, 2, 3)[[0, 1, 2, 1]]
    arrays = ArrayImages(images, torch.tensor([5, 6, 7, 8]))
    assert arrays.names == ["#0", "#1", "#2", "#3"]
    some = arrays.take(np.array([3, 0]))
    assert (some.names, some.labels.tolist(), some.images[0].tolist()) == (["#3", "#0"], [8, 5], images[1].tolist())
    # By these, images are split: a run that goes on next year must hold out the same ones.
    plain = [bytes(one.flatten().tolist()) + bytes([label, 0, 0, 0, 0, 0, 0, 0]) for one, label in zip(
        images, (5, 6, 7, 8), strict=True)]  # fmt: skip
    expected = [hashlib.blake2b(one, digest_size=16).digest() for one in plain]
    assert arrays.digests() == expected
    ordered = arrays.canonical()
    assert ordered.digests() == sorted(expected)
    assert ordered.names == [f"#{expected.index(digest)}" for digest in sorted(expected)]
    turned = arrays.take(np.array([3, 2, 1, 0])).canonical()
    assert (turned.names, turned.labels.tolist()) == (ordered.names, ordered.labels.tolist())
    files = FileImages(["/x/a/1.png", "/x/a/b/\udce9.png", "/x/c/3.png"], [0, 1, 2], 4095)
    assert files.names == ["a/1.png", "a/b/\ufffd.png", "c/3.png"]
    assert files.take(np.array([1, 0])) == FileImages([files.paths[1], files.paths[0]], [1, 0], 4095)


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits():
    data = opened("digits", None, image_size=8, in_chans=1)
    assert data.classes == list("0123456789")
    assert data.train.images.shape == (1437, 1, 8, 8)
    assert data.val.images.shape == (360, 1, 8, 8)
    assert set(data.train.images.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert min(np.bincount(data.val.labels)) == 35
    assert max(np.bincount(data.val.labels)) == 37
    assert "1437 training and 360 validation images of 10 classes" in data.describe()
    assert data.fingerprint == opened("digits", None, image_size=8, in_chans=1).fingerprint
    rgb = opened("digits", None, image_size=8)
    assert rgb.mean == data.mean * 3
    assert len(rgb.std) == 3
    assert rgb.train.images.shape[1] == 1


def test_digits_limits_sizes_and_names():
    data = opened("digits", None, limit_train=20, limit_val=10, class_names=[f"n{i}" for i in range(10)])
    assert data.train.images.shape == (20, 1, 32, 32)
    assert np.bincount(data.train.labels).tolist() == [2] * 10
    assert data.classes[3] == "n3"
    with pytest.raises(ExciteError, match="has 2 names"):
        opened("digits", None, class_names=["a", "b"])


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def cifar_record(rows: int, seed: int, classes: int = 10, key: bytes = b"labels") -> dict:
    rng = np.random.default_rng(seed)
    labels = [(seed * rows + i) % classes for i in range(rows)]
    return {b"data": rng.integers(0, 256, (rows, 3072), dtype=np.uint8), key: labels, b"filenames": [b"x.png"] * rows}


def python2_pickle(record: dict) -> bytes:
    """Protocol 2 with NumPy 1's module name, as in the original files."""
    return pickle.dumps(record, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar10(root: Path, dumps=python2_pickle) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(dumps(cifar_record(8, i)))
    (folder / "test_batch").write_bytes(dumps(cifar_record(6, 9)))
    (folder / "batches.meta").write_bytes(dumps({b"label_names": [n.encode() for n in CIFAR10]}))
    return folder


def as_archive(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


def same_data(a: DataSets, b: DataSets) -> bool:
    return (
        a.fingerprint == b.fingerprint
        and a.classes == b.classes
        and torch.equal(a.train.images, b.train.images)
        and torch.equal(a.train.labels, b.train.labels)
        and torch.equal(a.val.images, b.val.images)
        and (a.mean, a.std) == (b.mean, b.std)
    )


def test_cifar10_in_every_place_it_may_lie(tmp_path):
    folder = write_cifar10(tmp_path)
    archive = as_archive(folder, tmp_path / "cifar-10-python.tar.gz")
    data = opened("cifar10", folder)
    assert data.classes == CIFAR10
    assert data.train.images.shape == (40, 3, 32, 32)
    assert len(data.val) == 6
    stored = {tuple(row) for i in range(1, 6) for row in cifar_record(8, i)[b"data"].tolist()}
    assert {tuple(row) for row in data.train.images.flatten(1).tolist()} == stored
    (tmp_path / "only").mkdir()
    archive_alone = tmp_path / "only" / archive.name
    archive_alone.write_bytes(archive.read_bytes())
    python3 = write_cifar10(tmp_path / "three", pickle.dumps)
    for root in (tmp_path, archive, archive_alone.parent, python3):
        assert same_data(opened("cifar10", root), data), root
    gray = opened("cifar10", folder, in_chans=1)
    assert gray.train.images.shape == (40, 1, 32, 32)
    assert len(gray.mean) == 1


def test_cifar100_uses_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    record = {**cifar_record(30, 1, 100, b"fine_labels"), b"coarse_labels": [0] * 30}
    (folder / "train").write_bytes(python2_pickle(record))
    (folder / "test").write_bytes(python2_pickle(cifar_record(5, 2, 100, b"fine_labels")))
    names = [f"fine{i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(python2_pickle({b"fine_label_names": names, b"coarse_label_names": [b"c"] * 20}))
    data = opened("cifar100", tmp_path)
    assert data.classes[42] == "fine42"
    assert sorted(data.train.labels.tolist()) == sorted(record[b"fine_labels"])


class Evil:
    def __reduce__(self):
        return (print, ("gotcha",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil(), 2), "asks for __builtin__.print|asks for builtins.print"),
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (pickle.dumps({"data": np.array([Evil()], dtype=object)}), "asks for builtins.print"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999999L\ntS'b'\ntR.", "damaged"),
        (b"c_codecs\nencode\n(VAAAA\nVzlib\ntR.", "damaged"),
        (pickle.dumps([1, 2]), "holds a list"),
        (b"", "damaged or truncated"),
        (python2_pickle(cifar_record(8, 1))[:5000], "damaged or truncated"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}), "should be uint8 of shape"),
        (pickle.dumps({"data": np.zeros((2, 3000), np.uint8), "labels": [0, 1]}), "should be uint8 of shape"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "2 images need as many labels"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}), "found none"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}), r"label 10 of image 1 .* 0\.\.9"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, "1"]}), "label '1' of image 1"),
    ],
    ids=range(14),
)
def test_cifar_refuses_foreign_and_damaged_pickles(content: bytes, message: str, tmp_path, capsys):
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(ExciteError, match=message) as caught:
        opened("cifar10", tmp_path)
    assert "data_batch_3" in str(caught.value)
    assert "gotcha" not in capsys.readouterr().out


def test_cifar_missing_parts(tmp_path):
    folder = write_cifar10(tmp_path)
    archive = as_archive(folder, tmp_path / "a.tar.gz")
    archive.write_bytes(archive.read_bytes()[:20000])
    with pytest.raises(ExciteError, match="not a complete tar archive"):
        opened("cifar10", archive)
    (tmp_path / "b.tar.gz").write_bytes(b"nothing of the kind")
    with pytest.raises(ExciteError, match="not a complete tar archive"):
        opened("cifar10", tmp_path / "b.tar.gz")
    (folder / "data_batch_4").unlink()
    with pytest.raises(ExciteError, match="lacks data_batch_4"):
        opened("cifar10", tmp_path)
    with pytest.raises(ExciteError, match="lacks data_batch_4"):
        opened("cifar10", as_archive(folder, tmp_path / "c.tar.gz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExciteError, match="has no cifar100 data"):
        opened("cifar100", tmp_path / "empty")


# --- class folders ---------------------------------------------------------------------------------------------------


def write_folder(root: Path, count: int = 6, size: int = 32, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
            image.save(root / name / f"{i}.{('png', 'PNG', 'bmp')[i % 3]}")
    return root


def test_folder_with_parts(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "validation", 3, classes=("dog",))
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".git").mkdir()
    (tmp_path / "train" / "dog" / "more").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "train" / "dog" / "more" / "x.JPEG")
    data = opened("folder", tmp_path)
    assert data.classes == ["cat", "dog"]
    assert isinstance(data.train, ArrayImages)
    assert np.bincount(data.train.labels).tolist() == [6, 7]
    assert data.val.labels.tolist() == [1, 1, 1]
    assert data.bad == []


def test_folder_split_and_modes(tmp_path, monkeypatch):
    write_folder(tmp_path, 10)
    data = opened("folder", tmp_path, val_fraction=0.3)
    assert np.bincount(data.train.labels).tolist() == [7, 6]  # what the names draw, the same on every machine
    assert np.bincount(data.val.labels).tolist() == [3, 4]
    crop = AugmentConfig(crop="random_resized")
    streamed = opened("folder", tmp_path, crop, val_fraction=0.3)
    assert isinstance(streamed.train, FileImages)
    assert isinstance(streamed.val, FileImages)
    assert np.bincount(streamed.train.labels).tolist() == [7, 6]
    assert streamed.mean == (0.485, 0.456, 0.406)
    assert streamed.fingerprint == opened("folder", tmp_path, mode="stream", val_fraction=0.3).fingerprint
    assert isinstance(opened("folder", tmp_path, crop, mode="memory").train, ArrayImages)
    pixels = 20 * 3 * 32 * 32
    for limit, kind in ((pixels, ArrayImages), (pixels - 1, FileImages)):
        monkeypatch.setattr("excite.data.sources.MEMORY_LIMIT", limit)
        assert isinstance(opened("folder", tmp_path).train, kind)
    renamed = tmp_path / "cat" / "renamed.png"
    (tmp_path / "cat" / "0.png").rename(renamed)
    assert opened("folder", tmp_path, crop, val_fraction=0.3).fingerprint != streamed.fingerprint


def test_folder_limits_are_balanced(tmp_path):
    write_folder(tmp_path / "train", 9)
    write_folder(tmp_path / "test", 5)
    for mode in ("memory", "stream"):
        data = opened("folder", tmp_path, limit_train=6, limit_val=2, mode=mode)
        assert np.bincount(data.train.labels).tolist() == [3, 3]
        assert np.bincount(data.val.labels).tolist() == [1, 1]


def test_one_image_a_class_still_opens_and_says_so(tmp_path):
    write_folder(tmp_path, 1, classes=tuple(f"c{i}" for i in range(10)))
    data = opened("folder", tmp_path)
    assert (len(data.train), len(data.val)) == (9, 1)
    assert "1 classes have so few images that the split left them none to train on: c" in data.describe()
    assert "9 classes have too few images (or groups) to validate on: c0, c1" in data.describe()


def test_broken_images_in_memory(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val")
    broken = tmp_path / "train" / "cat" / "broken.jpg"
    broken.write_bytes(b"text")
    data = opened("folder", tmp_path)
    assert len(data.train) == 12
    assert [path for path, _ in data.bad] == [str(broken)]
    assert "1 broken images skipped" in data.describe()
    assert [path for path, _ in opened("folder", tmp_path, check=True).bad] == [str(broken)]
    with pytest.raises(BadImageError, match=r"broken\.jpg"):
        opened("folder", tmp_path, on_bad_train="stop")
    (tmp_path / "val" / "cat" / "zero.png").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"zero\.png: the file is empty"):
        opened("folder", tmp_path)
    assert len(opened("folder", tmp_path, on_bad_val="skip").bad) == 2
    for path in (tmp_path / "train").glob("*/*.*"):
        path.write_bytes(b"")
    with pytest.raises(ExciteError, match="none of 13 images can be read"):
        opened("folder", tmp_path)


def test_folder_mistakes_are_one_clear_sentence(tmp_path):
    pets = write_folder(tmp_path / "pets" / "train").parent
    with pytest.raises(ExciteError, match=r"does not exist: .* has no 'pest'; did you mean 'pets'\?"):
        opened("folder", tmp_path / "pest")
    with pytest.raises(ExciteError, match="has no 'pats'; did you mean 'pets'"):
        opened("folder", tmp_path / "pats" / "deep" / "down")
    with pytest.raises(ExciteError, match=r"data\.root is not set"):
        opened("folder", None)
    file = tmp_path / "file.zip"
    file.write_bytes(b"")
    with pytest.raises(ExciteError, match=r"file\.zip is damaged or no archive"):
        opened("folder", file)
    with pytest.raises(ExciteError, match=r"is a file: give the folder with the class folders, or a \.zip or \.tar"):
        opened("folder", Path(__file__))
    with pytest.raises(ExciteError, match="is a file, but"):
        opened("idx", file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExciteError, match="has no class folders"):
        opened("folder", tmp_path / "empty")
    write_folder(tmp_path / "one", classes=("only",))
    with pytest.raises(ExciteError, match="only one class, 'only'"):
        opened("folder", tmp_path / "one")
    write_folder(tmp_path / "noval" / "val")
    with pytest.raises(ExciteError, match="but no train/"):
        opened("folder", tmp_path / "noval")
    (pets / "train" / "fish").mkdir()
    with pytest.raises(ExciteError, match="class folders without images: fish"):
        opened("folder", pets)
    (pets / "train" / "fish").rmdir()
    write_folder(pets / "val", classes=("cat", "fisch"))
    with pytest.raises(ExciteError, match="classes that the training images lack: fisch"):
        opened("folder", pets)
    for name in ("x", "y"):
        (tmp_path / "hollow" / name).mkdir(parents=True)
    with pytest.raises(ExciteError, match="has no images; searched x, y"):
        opened("folder", tmp_path / "hollow")


# --- IDX -------------------------------------------------------------------------------------------------------------


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def write_idx(
    root: Path, separator: str = "-", packed: bool = False, parts: tuple[str, ...] = ("train", "t10k")
) -> Path:
    root.mkdir(exist_ok=True)
    for part in parts:
        rng = np.random.default_rng(len(part))
        images, labels = rng.integers(0, 256, (20, 9, 9), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
        for what, values in (("images", images), ("labels", labels)):
            name = f"{part}-{what}{separator}idx{values.ndim}-ubyte" + (".gz" if packed else "")
            (root / name).write_bytes(gzip.compress(idx_bytes(values)) if packed else idx_bytes(values))
    return root


def test_idx_variants_are_the_same_data(tmp_path):
    plain = opened("idx", write_idx(tmp_path / "a"), image_size=9)
    assert plain.classes == list("0123456789")
    assert plain.train.images.shape == (20, 1, 9, 9)
    packed = opened("idx", write_idx(tmp_path / "b", ".", True), image_size=9)
    assert same_data(plain, packed)
    (tmp_path / "a" / "classes.txt").write_text("\n".join(f"thing {i}" for i in range(10)) + "\n")
    assert opened("idx", tmp_path / "a").classes[9] == "thing 9"
    split = opened("idx", write_idx(tmp_path / "c", parts=("train",)), image_size=9, val_fraction=0.5)
    assert np.bincount(split.val.labels).tolist() == [1] * 10


def test_idx_classes_are_those_that_are_named(tmp_path):
    """Ten digits without a name for them; a label that has no name is refused, the last that has one is not."""
    root = write_idx(tmp_path / "a")

    def refused(message: str, names: list[str] | None = None) -> None:
        with pytest.raises(ExciteError, match=message):
            idx.read_idx_folder(root, names)

    images = root / "train-images-idx3-ubyte"
    assert idx.read_idx_folder(root, None)[0] == [str(digit) for digit in range(10)]
    assert idx.read_idx_folder(root, [*"abcdefghij"])[0] == [*"abcdefghij"]
    with pytest.raises(
        ExciteError, match=r"label 9 of image 9 is outside 0\.\.8; name every class in .*/classes\.txt, one per line"
    ):
        idx.read_idx_folder(root, [*"abcdefghi"])
    (root / "classes.txt").write_bytes("ä\n\n b \n".encode() + b"\n".join(b"%d" % i for i in range(8)))
    assert idx.read_idx_folder(root, None)[0] == ["ä", "b", *"01234567"]
    assert opened("idx", root, image_size=9, class_names=[*"abcdefghij"]).classes == [*"abcdefghij"]
    whole = images.read_bytes()
    (root / "train-labels-idx1-ubyte").write_bytes(whole)  # images in its place
    with pytest.raises(
        ExciteError, match=r"has shape \(20, 9, 9\), .*labels-idx1-ubyte \(20, 9, 9\): expected \(N, H, W\)"
    ):
        idx.read_idx_folder(root, None)
    (root / "train-labels-idx1-ubyte").unlink()
    refused(r"lacks train-labels-idx1-ubyte, which belongs to .*/train-images-idx3-ubyte$")
    images.rename(root / "x")
    (root / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(20, np.uint8)))
    refused(r"lacks train-images-idx3-ubyte, which belongs to .*/train-labels-idx1-ubyte$")


def test_idx_sizes_have_four_bytes_the_first_one_first(tmp_path):
    path = tmp_path / "x-idx3-ubyte"
    values = np.arange(70000, dtype=np.uint64).astype(np.uint8).reshape(1, 70000, 1)
    path.write_bytes(idx_bytes(values))
    assert np.array_equal(idx.read_idx(path), values)
    for byte in range(4, 16):  # every byte of every size counts
        damaged = bytearray(idx_bytes(values))
        damaged[byte] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ExciteError, match="is truncated or damaged"):
            idx.read_idx(path)
    path.write_bytes(idx_bytes(values)[:10])
    with pytest.raises(ExciteError, match="and 0 follow"):
        idx.read_idx(path)
    for beginning in (b"\0\0\x08", b"\0\0\x08\2" + bytes(8), b"\0\0\x09\1" + bytes(4)):
        path.write_bytes(beginning)
        with pytest.raises(ExciteError, match=f"is not an IDX file of bytes: it starts with {beginning[:4].hex(' ')}$"):
            idx.read_idx(path)


def test_idx_mistakes(tmp_path, monkeypatch):
    root = write_idx(tmp_path / "a")
    labels, images = root / "train-labels-idx1-ubyte", root / "train-images-idx3-ubyte"
    good = images.read_bytes()

    def fails(message: str) -> None:
        with pytest.raises(ExciteError, match=message):
            opened("idx", root)

    images.write_bytes(good[:-1])
    fails("truncated or damaged: its header says 20 x 9 x 9, which is 1620 bytes, and 1619 follow")
    images.write_bytes(good[:9])
    fails("truncated or damaged")
    images.write_bytes(b"\0\0\x0d\3" + good[4:])
    fails("not an IDX file of bytes: it starts with 00 00 0d 03")
    images.write_bytes(b"")
    fails("starts with nothing")
    images.write_bytes(labels.read_bytes())
    fails(r"expected \(N, H, W\)")
    images.write_bytes(good)
    (root / "t10k-labels-idx1-ubyte").rename(tmp_path / "kept")
    fails("lacks t10k-labels-idx1-ubyte")
    (tmp_path / "kept").rename(root / "t10k-labels-idx1-ubyte")
    (root / "classes.txt").write_text("a\nb\nc\n")
    fails(r"label 3 of image 3 is outside 0\.\.2")
    (root / "classes.txt").unlink()
    labels.write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    fails("20 images, but .* 19 labels")
    labels.unlink()
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(20, np.uint8)))[:-12])
    fails(r"cannot be read \(.*\); download it again")
    monkeypatch.setattr(idx, "MAX_BYTES", 1 << 20)
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(2 << 20, np.uint8))))
    fails("not an IDX file of images or labels: it holds more than 1 MB")
    (root / "classes.txt").write_bytes(b"\xff\xfe")
    fails("classes.txt is not a readable list of class names")
    (tmp_path / "b").mkdir()
    with pytest.raises(ExciteError, match="has no IDX data"):
        opened("idx", tmp_path / "b")


# --- the same images, stored differently -----------------------------------------------------------------------------


def batches(data: DataSets, config: DataConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = TrainLoader(data.train, batch_size=16, seed=3, device="cpu", augment=AugmentConfig(), data_config=config)
    return list(loader.epoch(0))


def test_pickles_and_folders_give_the_same_batches(tmp_path):
    folder = write_cifar10(tmp_path / "pickles")
    for part, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("val", ["test_batch"])):
        count = 0
        for name in CIFAR10:
            (tmp_path / "tree" / part / name).mkdir(parents=True)
        for name in names:
            record = pickle.loads((folder / name).read_bytes(), encoding="bytes")
            for row, label in zip(record[b"data"], record[b"labels"], strict=True):
                image = Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0))
                image.save(tmp_path / "tree" / part / CIFAR10[label] / f"{count}.png")
                count += 1
    for place in (tmp_path / "tree" / "val").iterdir():  # six test images do not reach every class
        if not any(place.iterdir()):
            place.rmdir()
    pickled, tree = opened("cifar10", folder), opened("folder", tmp_path / "tree")
    assert same_data(pickled, tree)


def test_real_cifar_as_pickles_archive_and_folders(real_data, tmp_path):
    for form in ("cifar-batches", "cifar-folder"):
        command = [
            sys.executable,
            str(real_data / "unpack.py"),
            form,
            str(tmp_path / form),
            "--train",
            "300",
            "--test",
            "100",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    pickled, tree = opened("cifar10", tmp_path / "cifar-batches"), opened("folder", tmp_path / "cifar-folder")
    assert same_data(pickled, tree)
    config = DataConfig(source="folder", image_size=32)
    for (images, labels), (other_images, other_labels) in zip(
        batches(pickled, config), batches(tree, config), strict=True
    ):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(tmp_path / "cifar-batches", "cifar-10-batches-py")
    (tmp_path / "c.tar.gz").write_bytes(packed.getvalue())
    assert same_data(pickled, opened("cifar10", tmp_path / "c.tar.gz"))


def test_groups_in_two_parts_are_said_for_every_source(tmp_path):
    """A split keeps groups together; parts that the user made may not."""
    for i in range(12):
        path = tmp_path / ("train" if i < 8 else "val") / "ab"[i % 2] / f"patient{i // 3}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    options = {"source": "folder", "root": str(tmp_path), "image_size": 8, "group_by": r"patient\d+"}
    said = open_data(DataConfig(**options)).describe()
    assert "1 groups are in more than one part, so results are too optimistic: 'patient2' is" in said
    assert "more than one part" not in open_data(DataConfig(**options | {"group_by": None})).describe()
    (tmp_path / "train" / "a" / "patient2_6.png").unlink()
    (tmp_path / "train" / "b" / "patient2_7.png").unlink()
    assert "no group is in more than one part" in open_data(DataConfig(**options)).describe()
    with pytest.raises(ExciteError, match="none of 10 images has a group"):
        open_data(DataConfig(**options | {"group_by": "subject"}))
