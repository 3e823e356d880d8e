"""Shards, and packing any source into them."""

import http.server
import io
import json
import os
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from every_source import CLASSES, SIDE, SOURCES, items, pixels
from PIL import Image

from excite.data import DataConfig, open_data
from excite.data import pack as packing
from excite.data.pack import Smaller, pack
from excite.data.webdataset import expand_braces
from excite.errors import ExciteError
from excite.files import sha256_of

#: All sources can be packed; those whose parts the others lack are packed in their own tests.
PACKED = ["folder", "zip", "csv", "parquet", "webdataset", "cifar10", "idx"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / ".cache"))


def config(**options) -> DataConfig:
    return DataConfig(**{"image_size": SIDE, "in_chans": 1, "workers": 0, **options})


def shards(place: Path, **options) -> DataConfig:
    return config(source="webdataset", root=str(place), **options)


def png(level: int, side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side), level).save(out, "PNG")
    return out.getvalue()


def write(path: Path, files: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(labels: list[str], start: int = 0) -> dict[str, bytes | str]:
    return {
        name: content
        for i, label in enumerate(labels, start)
        for name, content in ((f"{i:04}.png", png(i)), (f"{i:04}.cls", label))
    }


def test_braces():
    assert expand_braces("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_braces("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    with pytest.raises(ExciteError, match="stands for 1,000,001 shards: give their folder instead"):
        expand_braces("{0..1000000}")


def test_shards_by_folder_by_pattern_and_one_alone(tmp_path):
    for n in range(3):
        write(tmp_path / "s" / f"part-{n}.tar", samples(["2", "10", "2", "10"], 4 * n))
    whole = open_data(shards(tmp_path / "s"))
    assert whole.classes == ["2", "10"]
    assert len(whole.train) + len(whole.val) == 12
    pattern = open_data(shards(tmp_path / "s" / "part-{0..2}.tar"))
    assert pattern.fingerprint == whole.fingerprint
    two = open_data(shards(f"{tmp_path}/s/part-0.tar::{tmp_path}/s/part-2.tar"))
    assert len(two.train) + len(two.val) == 8
    one = open_data(shards(tmp_path / "s" / "part-1.tar"))
    assert len(one.train) + len(one.val) == 4
    with pytest.raises(ExciteError, match=r"1 of 4 shards are not there; .*part-3\.tar is one"):
        open_data(shards(tmp_path / "s" / "part-{0..3}.tar"))
    (tmp_path / "s" / "classes.txt").write_text("".join(f"name {i}\n" for i in range(11)))
    assert open_data(shards(tmp_path / "s")).classes[10] == "name 10"


def test_what_else_shards_hold(tmp_path):
    odd = {
        "a/1.jpg.txt": "a caption",
        "b/2.json": json.dumps({"label": "x"}),
        "b/2.PNG": png(1),
        "b/3.png": png(2),
        "b/4.png": png(3),
        "b/4.json": "{damaged",
        "b/5.json": "{}",
        "b/5.cls": "y",
        "b/5.png": png(4),
        "b/6.png": png(5),
        "b/6.json": '"x"',
    }
    data = open_data(shards(write(tmp_path / "s" / "0.tar", odd), val_fraction=0.5))
    assert len(data.train) + len(data.val) == 3
    said = data.describe()
    assert "2 images without a label are left out; the first is" in said
    assert "1 samples without an image are left out" in said
    with pytest.raises(ExciteError, match=r"1 images in the shards .* have no label; .*ends in \.cls"):
        open_data(shards(write(tmp_path / "t" / "0.tar", {"1.png": png(1)})))
    write(tmp_path / "s" / "train-0.tar", samples(["x", "y"]))
    with pytest.raises(ExciteError, match="is named after no part, but other shards"):
        open_data(shards(tmp_path / "s"))


def test_parts_are_found_inside_the_names_of_shards(tmp_path):
    """As those of ImageNet on the Hub. Mixed, training images would validate."""
    write(tmp_path / "imagenet1k-train-0000.tar", samples(["0", "1"] * 4))
    write(tmp_path / "imagenet1k-validation-00.tar", samples(["0", "1"] * 2, 8))
    data = open_data(shards(tmp_path))
    assert (len(data.train), len(data.val), data.split) == (8, 4, False)


def test_files_of_an_image_need_not_follow_each_other_and_may_have_names(tmp_path):
    apart = sorted(samples(["0", "1"] * 4).items(), key=lambda item: item[0].split(".")[1])
    whole = open_data(shards(write(tmp_path / "a" / "0.tar", samples(["0", "1"] * 4))))
    assert open_data(shards(write(tmp_path / "b" / "0.tar", dict(apart)))).fingerprint == whole.fingerprint
    named = {name.replace(".png", ".input.png").replace(".cls", ".output.cls"): c for name, c in apart}
    data = open_data(shards(write(tmp_path / "c" / "0.tar", named)))
    assert len(data.train) + len(data.val) == 8
    several = {name.replace(".png", f".{end}.png"): c for name, c in apart for end in ("before", "after")}
    with pytest.raises(ExciteError, match="have no images: each of 8 samples has several"):
        open_data(shards(write(tmp_path / "d" / "0.tar", several)))


def test_a_key_of_the_json_files_can_be_named_and_is_asked_for(tmp_path):
    """As img2dataset writes columns of a table."""
    told = {f"{i}.json": json.dumps({"caption": "x", "breed": "ab"[i % 2]}) for i in range(8)}
    place = write(tmp_path / "0.tar", {f"{i}.png": png(i) for i in range(8)} | told)
    with pytest.raises(ExciteError, match=r"end in \.json, \.png\).* have breed, caption: .*data\.columns\.label="):
        open_data(shards(place))
    assert open_data(shards(place, columns={"label": "breed"})).classes == ["a", "b"]
    with pytest.raises(ValueError, match=r"columns\.part is only for source=table"):
        shards(place, columns={"part": "breed"})
    lists = {f"{i}.json": json.dumps({"label": ["a", "b"][: 1 + i % 2]}) for i in range(8)}
    write(place, {f"{i}.png": png(i) for i in range(8)} | dict.fromkeys(told, lists["1.json"]))
    with pytest.raises(ExciteError, match=r"8 images in the shards .* have lists of labels; .*: say task=multilabel"):
        open_data(shards(place))


def test_weights_are_packed(tmp_path):
    rows = "".join(f"{i}.png,{'ab'[i % 2]},{1 + i % 3}\n" for i in range(12))
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "a.csv").write_text("path,label,weight\n" + rows)
    source = config(source="table", root=str(tmp_path / "a.csv"))
    assert not any("no effect" in note for note in pack(source, tmp_path / "s").notes)
    train = open_data(shards(tmp_path / "s", sampler="weights", mode="stream")).train
    assert {
        os.path.basename(name): weight for name, weight in zip(train.names, train.weights, strict=True)
    }.items() <= {f"{i}.png": 1 + i % 3 for i in range(12)}.items()
    assert "the weights of 12 images have no effect" in open_data(shards(tmp_path / "s")).describe()


def test_groups_found_by_path_are_packed(tmp_path):
    for i in range(24):
        path = tmp_path / "data" / "xy"[i % 2] / f"p{i // 4}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    source = config(source="folder", root=str(tmp_path / "data"), group_by=r"p\d+")
    with pytest.raises(ExciteError, match="is inside the data that are packed: name a folder beside"):
        pack(source, tmp_path / "data" / "s")
    pack(source, tmp_path / "s")
    folder, packed = open_data(source), open_data(shards(tmp_path / "s"))
    assert sorted(folder.val.names) == sorted(packed.val.names)
    assert "6 groups are kept together, as the source gives them" in packed.describe()


def test_shards_have_about_the_size_that_was_asked_for_when_images_are_made_smaller(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "data" / "xy"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (400, 400), dtype=np.uint8)).save(path)  # 160 kB; 41 kB at 200 pixels
    source = config(source="folder", root=str(tmp_path / "data"))
    assert pack(source, tmp_path / "s", shard_mb=1, smaller=Smaller(200)).shards == 2
    assert (tmp_path / "s" / "all-00000.tar").stat().st_size > 0.9 * (1 << 20)


def test_an_image_that_was_changed_in_place_is_packed_again(tmp_path):
    for i in range(8):
        path = tmp_path / "data" / "xy"[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    source = config(source="folder", root=str(tmp_path / "data"))
    assert pack(source, tmp_path / "s").made == 1
    assert pack(source, tmp_path / "s").made == 0
    size = path.stat().st_size
    Image.new("L", (8, 8), 200).save(path)
    os.utime(path, (1, 1))
    assert path.stat().st_size == size
    assert pack(source, tmp_path / "s").made == 1
    with tarfile.open(tmp_path / "s" / "all-00000.tar") as archive:
        assert archive.extractfile("y/7.bmp").read() == path.read_bytes()


def test_equal_names_in_several_shards_are_told_apart(tmp_path):
    for n in range(2):
        write(tmp_path / "s" / f"{n}.tar", samples(["x", "y", "x", "y"]))
    data = open_data(shards(tmp_path / "s", mode="stream", val_fraction=0.4), check=True)
    assert len(data.train) + len(data.val) == 8
    assert all(name.startswith(("0.tar/", "1.tar/")) for name in data.record.validation)


@pytest.mark.parametrize("name", PACKED)
def test_packed_shards_are_the_same_data(name, tmp_path):
    images = [i for part in SOURCES[name].parts for i in items(4 if part == "train" else 2, part, len(part))]
    source = config(**SOURCES[name].write(tmp_path / "data", images))
    done = pack(source, tmp_path / "s", shard_mb=1)
    assert done.images == len(images)
    packed = shards(tmp_path / "s", val_from="auto" if "val" in SOURCES[name].parts else "test")
    one, other = open_data(source), open_data(packed)
    assert other.classes == CLASSES
    assert pixels(one.train, source) == pixels(other.train, packed)
    assert pixels(one.val, source) == pixels(other.val, packed)
    if name in ("folder", "zip"):  # then a run on the one may go on with the other, also when streaming
        one, other = (open_data(each.model_copy(update={"mode": "stream"})) for each in (source, packed))
        assert one.fingerprint == other.fingerprint


def test_the_split_of_shards_is_that_of_the_folder(tmp_path):
    source = config(**SOURCES["folder"].write(tmp_path / "data", items(6, None)), mode="stream")
    pack(source, tmp_path / "s")
    packed = shards(tmp_path / "s", mode="stream")
    assert pixels(open_data(source).val, source) == pixels(open_data(packed).val, packed)


def test_groups_are_packed(tmp_path):
    text = "path,label,patient\n" + "".join(f"{i}.png,{'ab'[i % 2]},p{i // 3}\n" for i in range(12))
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "a.csv").write_text(text)
    table = config(source="table", root=str(tmp_path / "a.csv"), mode="stream")
    pack(table, tmp_path / "s")
    packed = shards(tmp_path / "s", mode="stream")
    assert "4 groups are kept together" in open_data(packed).describe()
    assert pixels(open_data(table).val, table) == pixels(open_data(packed).val, packed)


def test_names_that_would_be_mixed_up_in_shards(tmp_path):
    for label in ("x", "y"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for n, name in enumerate(("1.png", "1.bmp", "v1.2.png", "100%.png", "%2E.png")):
            Image.new("L", (8, 8), 10 * n + (label == "y")).save(tmp_path / "data" / label / name)
    source = config(source="folder", root=str(tmp_path / "data"), mode="stream", val_fraction=0.4)
    done = pack(source, tmp_path / "s")
    packed = shards(tmp_path / "s", mode="stream")
    opened = open_data(packed, check=True)
    assert done.images == len(opened.train) + len(opened.val) == 10
    names = {os.path.basename(path) for path in (*opened.train.paths, *opened.val.paths)}
    assert {"v1%2E2.png", "100%25.png", "%252E.png"} <= names


def test_packing_goes_on_where_it_was_stopped_and_makes_the_same_bytes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "data" / "xy"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)).save(path)
    source = config(source="folder", root=str(tmp_path / "data"))
    told: list[tuple] = []
    assert pack(source, tmp_path / "whole", shard_mb=1, progress=lambda *what: told.append(what)).shards == 5
    assert told[-1] == ("packing images", 60, 60)
    real, left = packing._write, [2]

    def broken(*words):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*words)

    monkeypatch.setattr(packing, "_write", broken)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "s", shard_mb=1)
    assert (tmp_path / "s" / packing.PARTIAL).is_file()
    with pytest.raises(ExciteError, match=r"lacks|has no"):
        open_data(shards(tmp_path / "none"))
    (tmp_path / "s" / "all-00000.tar").write_bytes(b"damaged")
    monkeypatch.setattr(packing, "_write", real)
    done = pack(source, tmp_path / "s", shard_mb=1)
    assert (done.shards, done.made) == (5, 4)
    assert pack(source, tmp_path / "s", shard_mb=1).made == 0
    digests = [{p.name: sha256_of(p) for p in (tmp_path / n).iterdir()} for n in ("whole", "s")]
    assert digests[0] == digests[1]
    with pytest.raises(ExciteError, match="holds shards of another source or with other settings"):
        pack(source, tmp_path / "s", shard_mb=2)
    with pytest.raises(ExciteError, match=r"is not empty .*: name a new folder"):
        pack(source, tmp_path / "data")


def test_a_shard_that_is_missing_or_cut_off_is_said(tmp_path):
    source = config(**SOURCES["folder"].write(tmp_path / "data", items(3, "train") + items(1, "val")))
    pack(source, tmp_path / "s")
    path = tmp_path / "s" / "train-00000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1024])
    with pytest.raises(ExciteError, match=r"has \d.* bytes, but \d.* when it was packed: copy or pack it again"):
        open_data(shards(tmp_path / "s"))
    path.unlink()
    with pytest.raises(ExciteError, match=r"lacks 1 of 2 shards that its index\.json lists; train-00000\.tar is one"):
        open_data(shards(tmp_path / "s"))


def test_larger_images_are_made_smaller(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("x", "y"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for n, (size, end) in enumerate((((100, 60), "jpg"), ((60, 100), "png"), ((20, 30), "jpg"))):
            array = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / "data" / label / f"{n}.{end}")
    done = pack(config(source="folder", root=str(tmp_path / "data")), tmp_path / "s", smaller=Smaller(40))
    assert (done.images, done.smaller) == (6, 4)
    with tarfile.open(tmp_path / "s" / "all-00000.tar") as archive:
        pictures = {m.name: archive.extractfile(m).read() for m in archive if not m.name.endswith(".cls")}
    sizes = {name: Image.open(io.BytesIO(content)).size for name, content in pictures.items()}
    assert sizes["x/0.jpg"] == (67, 40)
    assert sizes["x/1.png"] == (40, 67)
    assert pictures["y/2.jpg"] == (tmp_path / "data" / "y" / "2.jpg").read_bytes()


def test_broken_images_are_left_out_or_stop_packing(tmp_path):
    source = config(**SOURCES["folder"].write(tmp_path / "data", items(3, "train") + items(1, "val")))
    first = next((tmp_path / "data" / "train").rglob("*.png"))
    first.write_bytes(first.read_bytes()[:100])
    done = pack(source, tmp_path / "s")
    assert (done.images, [path for path, _ in done.bad]) == (39, [str(first)])
    with pytest.raises(ExciteError, match=r"repair or remove them, or skip them with data\.on_bad_train=skip"):
        pack(source.model_copy(update={"on_bad_train": "stop"}), tmp_path / "t")


def test_shards_on_the_web_are_fetched_with_their_index(tmp_path):
    source = config(**SOURCES["folder"].write(tmp_path / "data", items(3, "train") + items(1, "val")))
    pack(source, tmp_path / "s")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "s")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/{{train,val}}-00000.tar"
        packed = config(source="webdataset", root=url)
        opened = open_data(packed)
        assert opened.classes == CLASSES
        assert pixels(opened.train, packed) == pixels(open_data(source).train, source)
    finally:
        server.shutdown()
        server.server_close()


def test_several_labels_are_packed_and_read(tmp_path):
    labels = ["a|b", "b", "", "c|a", "a", "c"]
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"{i}.png,{v}\n" for i, v in enumerate(labels)))
    table = config(source="table", root=str(tmp_path / "a.csv"), task="multilabel", val_fraction=0.4)
    pack(table, tmp_path / "s")
    packed = shards(tmp_path / "s", task="multilabel", val_fraction=0.4)
    one, other = open_data(table), open_data(packed)
    assert one.classes == other.classes == ["a", "b", "c"]
    assert one.fingerprint == other.fingerprint
    by_hand = {
        "1.png": png(1),
        "1.cls": "x y",
        "2.png": png(2),
        "2.json": '{"labels": ["y"]}',
        "3.png": png(3),
        "3.cls": "",
    }
    found = open_data(shards(write(tmp_path / "t" / "0.tar", by_hand), task="multilabel", val_fraction=0.4))
    rows = [*found.train.labels.tolist(), *found.val.labels.tolist()]
    assert (found.classes, sorted(rows)) == (["x", "y"], [[0, 0], [0, 1], [1, 1]])


def test_what_has_no_effect_on_packing_is_refused(tmp_path):
    source = config(**SOURCES["folder"].write(tmp_path / "data", items(2, None)), limit_train=3)
    with pytest.raises(ExciteError, match=r"data\.limit_train has no effect here: all images are packed"):
        pack(source, tmp_path / "s")


def test_two_classes_of_one_name_are_refused_whatever_names_them(tmp_path):
    write(tmp_path / "s" / "0.tar", samples(["0", "1", "0", "1"]))
    (tmp_path / "s" / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(ExciteError, match="has two classes 'cat': give each a name of its own"):
        open_data(shards(tmp_path / "s"))
    with pytest.raises(ExciteError, match=r"data\.class_names has two classes 'x'"):
        open_data(config(source="digits", class_names=["x"] * 10))
