"""Pixels that the memory has no room for are kept in a mapped file, and nothing else changes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from excite.data import room
from excite.data.images import ArrayImages, channel_statistics, fitted, luma
from excite.errors import ExciteError


@pytest.fixture
def little_memory(monkeypatch, tmp_path):
    """Hardly any memory is left, and the cache folder is an empty one."""
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(room, "memory_left", lambda: 10)
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_there_is_memory_for_few_pixels(monkeypatch):
    assert not room.on_disk(room.room_for((2, 3)))
    monkeypatch.setattr(room, "memory_left", lambda: 0)
    assert not room.on_disk(room.room_for((2, 3)))  # less than the network needs anyway


def test_half_of_the_memory_left_may_be_used(monkeypatch, little_memory):
    monkeypatch.setattr(room, "memory_left", lambda: 200)
    assert not room.on_disk(room.room_for((100,)))
    assert room.on_disk(room.room_for((101,)))


def test_the_file_has_no_name_and_holds_what_is_written(little_memory):
    made = room.room_for((5, 3, 4, 4))
    assert made.shape == (5, 3, 4, 4)
    assert made.dtype == torch.uint8
    assert room.on_disk(made)
    assert room.on_disk(made[:2])  # a view of it
    made[:] = torch.arange(240, dtype=torch.uint8).view(made.shape)
    assert made.sum() == sum(range(240))
    assert list(little_memory.iterdir()) == []


def test_functions_of_whole_sets_give_the_same_on_disk(monkeypatch, tmp_path):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (7, 3, 6, 6), dtype=torch.uint8, generator=draw)
    images = ArrayImages(pixels, torch.arange(7))

    def results() -> list[torch.Tensor]:
        taken, ordered = images.take(np.array([3, 1, 1])), images.canonical()
        return [taken.images, ordered.images, ordered.labels, luma(pixels), fitted(pixels, 4, 0.875, "bicubic")]

    before = results()
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(room, "memory_left", lambda: 10)
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))
    after = results()
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    assert [room.on_disk(each) for each in after] == [True, True, False, True, True]  # labels are small


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_broken_images_leave_no_gap(place, tmp_path, request):
    from PIL import Image

    from excite.data.folder import decode_all
    from excite.data.images import FileImages
    from excite.data.preprocessing import Preprocessing

    if place == "disk":
        request.getfixturevalue("little_memory")
    paths = [tmp_path / f"{number:02}.png" for number in range(70)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (number,) * 3).save(path)
    broken = [0, 5, 6, 31, 32, 69]
    for number in broken:
        paths[number].write_bytes(b"no image")
    files = FileImages([*map(str, paths)], list(range(70)))
    images, bad = decode_all(files, Preprocessing(4, 1.0, "bicubic", (0.0,), (1.0,), 3), 10**6)
    good = [number for number in range(70) if number not in broken]
    assert images.images[:, 0, 0, 0].tolist() == good
    assert images.labels.tolist() == good
    assert images.names == [paths[number].name for number in good]
    assert [path for path, _ in bad] == [str(paths[number]) for number in broken]
    assert room.on_disk(images.images) == (place == "disk")


def test_a_training_on_disk_is_the_same_bit_for_bit(tmp_path, monkeypatch, request):
    import excite
    from excite.training import train
    from tests.faults.kinds import make_images
    from tests.training.small import same, small, tensors

    images = make_images(tmp_path / "images")
    words = ("data.source=folder", f"data.root={images}", "in_chans=3", "data.mode=auto", "epochs=1", "limit_val=null")
    recipe = small(*words, "limit_train=null", "train.batch_size=32")
    before = train(recipe, run_dir=tmp_path / "memory", quiet=True)
    one = excite.validate(tmp_path / "memory").evaluation
    request.getfixturevalue("little_memory")
    after = train(recipe, run_dir=tmp_path / "disk", quiet=True)
    other = excite.validate(tmp_path / "disk").evaluation
    assert same(tensors(tmp_path / "memory"), tensors(tmp_path / "disk"))
    assert before["data_fingerprint"] == after["data_fingerprint"]
    assert one.summary() == other.summary()
    said = "kept in a file in the cache folder"
    assert said in (tmp_path / "disk" / "log.txt").read_text()
    assert said not in (tmp_path / "memory" / "log.txt").read_text()


def test_a_full_disk_is_one_sentence(monkeypatch, little_memory):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ExciteError, match=r"has no room for them .No space left on device.; use data.mode=stream"):
        room.room_for((10**9, 3))
    assert list(little_memory.iterdir()) == []


def test_statistics_do_not_depend_on_the_size_of_their_parts(monkeypatch):
    images = torch.randint(0, 256, (9, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = channel_statistics(images)
    monkeypatch.setattr("excite.data.images.CHUNK", 100)
    assert channel_statistics(images) == whole
    monkeypatch.setattr("excite.data.images.CHUNK", 1)  # at least one image at a time
    assert channel_statistics(images) == whole


# --- the memory that is left ------------------------------------------------------------------------------------------


def test_what_is_left_is_not_more_than_the_machine_has():
    import psutil

    from excite.runtime.memory import memory_left

    assert 0 < memory_left() <= psutil.virtual_memory().total


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -d counts so on Linux")
def test_a_limit_of_the_process_counts():
    code = (
        "import resource, numpy\n"
        "from excite.runtime.memory import memory_left\n"
        "before = memory_left()\n"
        "import psutil\n"
        "now = psutil.Process().memory_info().data\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (now + (64 << 20), now + (64 << 20)))\n"
        "left = memory_left()\n"
        "kept = numpy.ones(16 << 20, numpy.uint8)\n"
        "print(before, left, left - memory_left())\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, left, taken = map(int, out.split())
    assert before > left
    assert 48 << 20 < left <= 64 << 20
    assert 12 << 20 < taken < 32 << 20


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_a_cgroup_counts(version, monkeypatch, tmp_path):
    from excite.runtime import memory

    line, folder = ("4:cpu,memory:/job/step", "memory") if version == 1 else ("0::/job/step", "")
    place, above = tmp_path / folder / "job" / "step", tmp_path / folder / "job"
    place.mkdir(parents=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    kind = "total_" if version == 1 else ""

    def write(where: Path, limit: object, used: int, files: int) -> None:
        (where / names[0]).write_text(f"{limit}\n")
        (where / names[1]).write_text(f"{used}\n")
        (where / "memory.stat").write_text(f"{kind}active_file {files}\n{kind}inactive_file 0\nother 5\n")

    genuine = Path.read_text
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", lambda path: line if str(path) == "/proc/self/cgroup" else genuine(path))
    write(above, 5000, 3000, 0)
    write(place, 9223372036854771712 if version == 1 else "max", 100, 0)
    assert memory.memory_left() == 2000  # of the one above
    write(place, 4000, 3000, 500)
    assert memory.memory_left() == 1500  # pages of files can be dropped
    write(place, 1000, 3000, 0)
    assert memory.memory_left() == 0
    (place / "memory.stat").write_text("damaged")
    assert memory.memory_left() == 2000
