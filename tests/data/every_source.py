"""The same labelled images, written in the form of every data source.

To add a source: a function that writes it, with :func:`source` above it.
"""

import csv
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from excite.data import DataConfig, EvalLoader

CLASSES = [f"kind {k}" for k in range(10)]
SIDE = 32
#: Parts of sources that have benchmarks' names for them.
BENCHMARK = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Item:
    """One image: grey pixels uint8 (32, 32); ``broken``: its file is cut off."""

    name: str
    label: int
    part: str | None
    pixels: np.ndarray
    group: str | None = None
    broken: bool = False

    @property
    def png(self) -> bytes:
        out = io.BytesIO()
        Image.fromarray(self.pixels).save(out, "PNG")
        return out.getvalue()[:300] if self.broken else out.getvalue()

    @property
    def path(self) -> str:
        """The path in class folders."""
        pieces = [self.part, CLASSES[self.label], self.group, f"{self.name}.png"]
        return "/".join(piece for piece in pieces if piece)


def items(count: int, part: str | None, seed: int = 0, classes: int = 10) -> list[Item]:
    """``count`` images of each class."""
    rng = np.random.default_rng([seed, len(part or "")])
    return [
        Item(f"{part or 'x'}-{seed}-{label}-{i}", label, part, rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
        for label in range(classes)
        for i in range(count)
    ]


def pixels(images: Any, data: DataConfig) -> dict[bytes, int]:
    """The pixels of each image -> its class."""
    loader = EvalLoader(images, batch_size=7, device="cpu", data_config=data)
    return {
        p.contiguous().numpy().tobytes(): int(k)
        for batch, labels, _ in loader
        for p, k in zip(batch, labels, strict=True)
    }


@dataclass(frozen=True)
class Source:
    """How a source is written.

    Attributes:
        name: of the form. ``write``: (folder, images) -> the ``data`` section's ``source``, ``root`` and more.
        parts: the parts that it can have.
        files: whether its images are files, which can be broken and have names.
        needs: all parts must be there.
        ordered: whether classes are in the order of its own list, which ``data.class_order`` then cannot change.
    """

    name: str
    write: Callable[[Path, Sequence[Item]], dict[str, Any]]
    parts: tuple[str, ...] = ("train", "val", "test")
    files: bool = True
    groups: bool = True
    splits: bool = True


SOURCES: dict[str, Source] = {}


def source(name: str, **facts: Any) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Register a function that writes a source."""

    def register(write: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        SOURCES[name] = Source(name, write, **facts)
        return write

    return register


@source("folder")
def folder(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    for item in images:
        (place / item.path).parent.mkdir(parents=True, exist_ok=True)
        (place / item.path).write_bytes(item.png)
    return {"source": "folder", "root": str(place)}


@source("zip")
def zipped(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for item in images:
            archive.writestr(item.path, item.png)
    return {"source": "folder", "root": str(place / "a.zip")}


def _tar(path: Path, mode: str, files: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@source("tar")
def tar(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    _tar(place / "a.tar", "w", [(item.path, item.png) for item in images])
    return {"source": "folder", "root": str(place / "a.tar")}


@source("tar.gz")
def tar_gz(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    _tar(place / "a.tar.gz", "w:gz", [(item.path, item.png) for item in images])
    return {"source": "folder", "root": str(place / "a.tar.gz")}


def _rows(images: Sequence[Item]) -> list[dict[str, Any]]:
    rows = []
    for item in images:
        row = {"path": f"pictures/{item.name}.png", "label": CLASSES[item.label]}
        row |= {"part": item.part} if item.part else {}
        row |= {"group": item.group} if item.group else {}
        rows.append(row)
    return rows


def _pictures(place: Path, images: Sequence[Item]) -> None:
    (place / "pictures").mkdir(parents=True, exist_ok=True)
    for item in images:
        (place / "pictures" / f"{item.name}.png").write_bytes(item.png)


@source("csv")
def table_csv(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    _pictures(place, images)
    rows = _rows(images)
    with open(place / "a.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return {"source": "table", "root": str(place / "a.csv")}


@source("jsonl")
def table_jsonl(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    _pictures(place, images)
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(images)), encoding="utf-8")
    return {"source": "table", "root": str(place / "a.jsonl")}


@source("parquet")
def parquet(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    """With the images in it, as Hugging Face's data sets have them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.mkdir(parents=True, exist_ok=True)
    rows = _rows(images)
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "path"}
    columns["image"] = [{"bytes": item.png, "path": f"{item.name}.png"} for item in images]
    pq.write_table(pa.table(columns), place / "a.parquet")
    return {"source": "table", "root": str(place / "a.parquet")}


@source("hub", groups=False)
def hub(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    """What Hugging Face's library loads: a folder of Parquet files, one for each part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (place / "data").mkdir(parents=True, exist_ok=True)
    names = {"train": "train", "val": "validation", "test": "test", None: "train"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CLASSES}}}}
    for part in dict.fromkeys(item.part for item in images):
        own = [item for item in images if item.part == part]
        table = pa.table(
            {"image": [{"bytes": i.png, "path": f"{i.name}.png"} for i in own], "label": [i.label for i in own]}
        ).replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, place / "data" / f"{names[part]}-00000-of-00001.parquet")
    return {"source": "table", "root": f"hf:{place}"}


@source("webdataset")
def webdataset(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    place.mkdir(parents=True, exist_ok=True)
    for part in dict.fromkeys(item.part for item in images):
        own = [item for item in images if item.part == part]
        for number in range(3):
            files = []
            for item in own[number::3]:
                values = {"label": CLASSES[item.label]} | ({"group": item.group} if item.group else {})
                files += [(f"{item.name}.png", item.png), (f"{item.name}.json", json.dumps(values).encode())]
            if files:
                _tar(place / f"{part or 'shard'}-{number:05}.tar", "w", files)
    return {"source": "webdataset", "root": str(place)}


@source("cifar10", parts=("train", "test"), files=False, groups=False)
def cifar10(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    own = {part: [i for i in images if (i.part or "train") == part] for part in ("train", "test")}
    own["test"] = own["test"] or own["train"][:1]
    inside = place / "cifar-10-batches-py"
    inside.mkdir(parents=True, exist_ok=True)
    batches = {f"data_batch_{i + 1}": own["train"][i::5] for i in range(5)} | {"test_batch": own["test"]}
    for name, some in batches.items():
        values = np.stack([np.broadcast_to(item.pixels, (3, SIDE, SIDE)).reshape(-1) for item in some])
        record = {b"data": np.ascontiguousarray(values), b"labels": [item.label for item in some]}
        (inside / name).write_bytes(pickle.dumps(record, protocol=2))
    (inside / "batches.meta").write_bytes(pickle.dumps({b"label_names": [c.encode() for c in CLASSES]}, protocol=2))
    return {"source": "cifar10", "root": str(place)}


@source("idx", parts=("train", "test"), files=False, groups=False)
def idx(place: Path, images: Sequence[Item]) -> dict[str, Any]:
    place.mkdir(parents=True, exist_ok=True)
    for part in dict.fromkeys(item.part or "train" for item in images):
        own = [item for item in images if (item.part or "train") == part]
        labels = np.array([item.label for item in own], np.uint8)
        for what, values in (("images", np.stack([item.pixels for item in own])), ("labels", labels)):
            head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
            name = f"{BENCHMARK[part]}-{what}-idx{values.ndim}-ubyte.gz"
            (place / name).write_bytes(gzip.compress(head + values.tobytes()))
    (place / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return {"source": "idx", "root": str(place)}
