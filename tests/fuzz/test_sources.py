"""Tables, archives and shards that somebody sent."""

import csv
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from excite.data import open_data
from excite.data.catalog import SOURCES
from excite.data.config import DataConfig
from excite.data.images import FileImages
from excite.data.sources import DataSets

from .harness import Case, Surface
from .mutations import mutated

ODD = (
    "",
    " ",
    "\0",
    "../../etc/passwd",
    "/dev/zero",
    "/etc/passwd",
    "a" * 5000,
    "\\x",
    "é\u202e",
    "nan",
    "-1",
    "1e308",
    "|",
    ";",
    '"',
    "\n",
)


def _png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), level).save(out, "PNG")
    return out.getvalue()


def check(data: DataSets) -> None:
    """Every label is a class, no image is in two parts."""
    parts = [data.train, data.val, *([] if data.test is None else [data.test])]
    several = np.ndim(data.train.labels) == 2
    for part in parts:
        labels = np.asarray(part.labels)
        if several:
            assert labels.shape == (len(part), len(data.classes))
            assert set(np.unique(labels)) <= {0, 1}
        else:
            assert not len(labels) or 0 <= labels.min() <= labels.max() < len(data.classes)
    if isinstance(data.train, FileImages):
        paths = [path for part in parts if isinstance(part, FileImages) for path in part.paths]
        assert len(paths) == len(set(paths)), "an image counts twice"
    assert len(set(data.classes)) == len(data.classes)
    assert data.describe()


def _open(case: Case, source: str, root: Path, **options) -> None:
    rng = case.rng
    config = DataConfig(
        source=source,
        root=str(root),
        image_size=8,
        in_chans=rng.choice((1, 3)),
        mode=rng.choice(("memory", "stream")),
        val_fraction=0.5,
        on_bad_val=rng.choice(("skip", "stop")),
        workers=0,
        task=rng.choice(("classes", "classes", "multilabel" if SOURCES[source].several else "classes")),
        **options,
    )
    check(open_data(config, check=rng.random() < 0.5))


def _rows(rng: random.Random) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for i in range(8):
        row: dict[str, object] = {"path": f"{i}.png", "label": rng.choice(("a", "b", "a|b", 1, 2.0))}
        if rng.random() < 0.9:
            row["label"] = "ab"[i % 2]
        row["part"] = ("train", "val")[i % 4 == 3]
        row["patient"] = i // 2
        rows.append(row)
    for _ in range(rng.choice((0, 0, 1, 3))):
        row = rng.choice(rows)
        row[rng.choice(list(row))] = rng.choice((*ODD, None, [], ["a", "b"], {}, True, float("nan")))
    for _ in range(rng.choice((0, 0, 0, 1))):
        rows.append(dict(rng.choice(rows)))
    drop = rng.choice((None, None, None, "part", "patient", "label", "path"))
    return [{key: value for key, value in row.items() if key != drop} for row in rows]


def _parquet_files() -> list[bytes]:
    """Tables with paths and with images, made beforehand: pyarrow's writer ends the process where memory is short."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = []
    for seed in range(20):
        rows = _rows(random.Random(seed))
        columns: dict[str, list[object]] = {
            k: [None if row[k] is None else str(row[k]) for row in rows] for k in rows[0]
        }
        if seed % 2 and "path" in columns:
            del columns["path"]
            columns["image"] = [{"bytes": _png(i), "path": f"{i % 7}.png"} for i in range(len(rows))]
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        made.append(sink.getvalue())
    return made


def test_tables(monkeypatch, tmp_path):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))
    files = _parquet_files()

    def one(case: Case) -> None:
        rng = case.rng
        for i in range(8):
            case.file(f"{i}.png", _png(20 * i))
        rows = _rows(rng)
        kind = rng.choice(("csv", "csv", "jsonl", "parquet"))
        if kind == "csv":
            out = io.StringIO()
            writer = csv.DictWriter(out, list(rows[0]), delimiter=rng.choice(",;\t|"), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
            content = out.getvalue().encode(rng.choice(("utf-8", "utf-8", "utf-16", "latin-1")), "replace")
        elif kind == "jsonl":
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        else:
            content = rng.choice(files)
        root = case.file(f"a.{kind}", mutated(rng, content) if rng.random() < 0.6 else content)
        _open(case, "table", root)

    surface = Surface("tables", seconds=30, megabytes=512, writable=(tmp_path,))
    surface.run(one, test="test_sources.py::test_tables")
    assert surface.cases // 10 < surface.refused < surface.cases


def _names(rng: random.Random) -> list[str]:
    names = [
        f"{part}{label}/{i}.png" for part in rng.choice((("",), ("train/", "val/"))) for label in "ab" for i in range(3)
    ]
    for _ in range(rng.choice((0, 0, 1, 3))):
        names[rng.randrange(len(names))] = rng.choice(
            (*ODD[:-1], "a/../b/1.png", "//", "./a/1.png", "a\\b.png", "a/.x.png")
        )
    return [name or "x" for name in names]


def _zip(rng: random.Random, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    ) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("\0", "0"), content)
    return out.getvalue()


def _tar(rng: random.Random, files: dict[str, bytes], modes: tuple[str, ...]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=rng.choice(modes)) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("\0", "0"))
            entry.size = len(content)
            if rng.random() < 0.03:
                entry.type, entry.linkname = (
                    rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)),
                    "/etc/passwd",
                )
                entry.size = 0
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_archives(monkeypatch, tmp_path):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))

    def one(case: Case) -> None:
        rng = case.rng
        files = {name: _png(10 * i) for i, name in enumerate(_names(rng))}
        end = rng.choice((".zip", ".zip", ".tar", ".tar.gz", ".tar.xz", ".tgz", ".tar.bz2"))
        modes = {".tar": ("w",), ".tar.gz": ("w:gz",), ".tgz": ("w:gz",), ".tar.xz": ("w:xz",), ".tar.bz2": ("w:bz2",)}
        content = _zip(rng, files) if end == ".zip" else _tar(rng, files, modes[end])
        root = case.file(f"a{end}", mutated(rng, content) if rng.random() < 0.6 else content)
        _open(case, "folder", root)

    surface = Surface("archives", seconds=30, megabytes=512, one_line=False, writable=(tmp_path,))
    surface.run(one, test="test_sources.py::test_archives")
    assert surface.cases // 10 < surface.refused < surface.cases


def test_shards(monkeypatch, tmp_path):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))

    def one(case: Case) -> None:
        rng = case.rng
        top = case.folder / "shards"
        top.mkdir()
        for number in range(rng.choice((1, 2, 2))):
            files: dict[str, bytes] = {}
            for i in range(4):
                key = f"{rng.choice(('', 'x/'))}{4 * number + i}"
                files[f"{key}.png"] = _png(10 * i)
                label = rng.choice(("0", "1", "a", "b", *ODD)) if rng.random() < 0.2 else "01"[i % 2]
                if rng.random() < 0.5:
                    files[f"{key}.cls"] = label.encode()
                else:
                    values = rng.choice(
                        ({"label": label}, {"label": [label, "1"]}, {"label": {}}, [label], label, None)
                    )
                    files[f"{key}.json"] = json.dumps(values).encode()
            content = _tar(rng, files, ("w",))
            name = rng.choice((f"{number}.tar", f"train-{number}.tar", f"val-{number}.tar"))
            (top / name).write_bytes(mutated(rng, content) if rng.random() < 0.4 else content)
        if rng.random() < 0.3:
            known = {
                "made_by": "excite data pack",
                "classes": ["a", "b"],
                "shards": [{"name": "0.tar", "bytes": 10240}],
            }
            (top / "index.json").write_bytes(mutated(rng, json.dumps(known).encode()))
        if rng.random() < 0.2:
            (top / "classes.txt").write_bytes(mutated(rng, b"cat\ndog\n"))
        _open(case, "webdataset", top)

    surface = Surface("shards", seconds=30, megabytes=512, one_line=False, writable=(tmp_path,))
    surface.run(one, test="test_sources.py::test_shards")
    assert surface.cases // 10 < surface.refused < surface.cases
