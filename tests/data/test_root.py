"""What the first word of ``excite train`` is, and data elsewhere for a trained network."""

import io
import tarfile
from pathlib import Path

import pytest

from excite.commands.beforehand import check_changes
from excite.data import DataConfig
from excite.data.root import source_of
from excite.errors import ExciteError
from excite.recipe import elsewhere


def tar(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "photos.tar", *(f"{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(9)))
    tar(tmp_path / "shard.tar", "1.jpg", "1.cls", "2.jpg", "2.cls")
    tar(tmp_path / "shards" / "0.tar", "1.jpg", "1.json")
    tar(tmp_path / "parts" / "train" / "0.tar", "1.jpg", "1.cls")
    tar(tmp_path / "folders" / "all.tar", "cat/1.jpg")
    (tmp_path / "folders" / "cat").mkdir()
    for name in (
        "hub/data/train-0.parquet",
        "lists/train.txt",
        "lists/val.txt",
        "cats/cat/1.jpg",
        "cats/dog/read.txt",
        "yolo/images/1.jpg",
        "yolo/labels/1.txt",
        "yolo/labels/2.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("photos.tar", "folder"),
        ("shard.tar", "webdataset"),
        ("shards", "webdataset"),
        ("parts", "webdataset"),
        ("shards/{0..3}.tar", "webdataset"),
        ("https://host/shards/train-{000..146}.tar", "webdataset"),
        ("s3://bucket/a.tar", "webdataset"),
        ("s3://bucket/labels.csv", "table"),
        ("https://host/photos.zip", "folder"),
        ("s3://bucket/run", None),
        ("folders", "folder"),
        ("hub", "table"),
        ("lists", "table"),
        ("cats", "folder"),
        ("yolo", "folder"),
        ("digits-seresnet20", None),
    ],
)
def test_what_a_word_is(place, word, source):
    assert source_of(word) == source


def test_what_is_no_path_is_not_looked_for(place):
    for root in ("hf:owner/name", "shards/{0..3}.tar", "shards/0.tar::shards/1.tar", "s3://bucket/shards"):
        check_changes([f"data.root={root}"])
    with pytest.raises(ExciteError, match=r"data\.root=nope does not exist"):
        check_changes(["data.root=nope"])


def test_a_network_is_measured_on_whatever_its_new_root_is(place):
    table = DataConfig(source="table", root="a.csv", image_size=8, sampler="weights", images="photos")
    null = ["data.sampler=null", "data.images=null", "data.columns=null"]
    assert elsewhere(table, ["root=shards"]) == ["data.source=webdataset", *null, "root=shards"]
    assert elsewhere(table, ["data.root=cats", "data.source=folder"]) == [*null, "data.root=cats", "data.source=folder"]
    assert elsewhere(table, ["data.part=test"]) == ["data.part=test"]
    assert elsewhere(DataConfig(source="cifar10", image_size=32), ["data.root=cats"]) == ["data.root=cats"]
