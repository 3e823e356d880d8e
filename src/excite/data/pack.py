"""Packs the images of any source into WebDataset shards, which disks and networks read faster than many small files.

    train-00000.tar     cat/001.jpg  cat/001.cls ...
    index.json          class names; for each shard its part, images, bytes and SHA-256
    index.partial.json  the same while it is not done; a second call goes on from there

The bytes of an image are copied as they are, unless they are to be made smaller. The same source and settings give the
same shards, byte for byte. Images are mixed, so that other readers of shards, which read them one after the other, see
all classes.
"""

import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from excite.data.bands import COLOURS
from excite.data.checks import check_files
from excite.data.config import DataConfig
from excite.data.contents import Contents, Part
from excite.data.decode import FILTERS, load_image, opened, reading
from excite.data.folder import title
from excite.data.images import ArrayImages
from excite.data.labels import text as label_text
from excite.data.packed import Member, open_bytes
from excite.data.sources import refuse_broken, source_contents
from excite.data.split import group_keys
from excite.data.webdataset import INDEX
from excite.errors import ExciteError
from excite.files import read_json, sha256_of, to_json, write_json, written_aside
from excite.owners import names_in
from excite.progress import Progress
from excite.runtime.job import cores
from excite.threads import Threads

PARTIAL = "index.partial.json"
MADE_BY = "excite data pack"
#: Megabytes of a shard.
SHARD_MB = 256
#: Quality of JPEGs that are made smaller: above it, files grow faster than pictures get better.
QUALITY = 92
#: Images between two reports of progress.
_EVERY = 100
#: Images that are made smaller to tell how long the others will be.
_TRIED = 32


@dataclass(frozen=True)
class Smaller:
    """Images whose shorter side is longer than ``side`` pixels are resized to it and encoded again."""

    side: int
    quality: int = QUALITY


@dataclass(frozen=True)
class Packing:
    """What was packed.

    Attributes:
        shards: how many there are; ``made``: how many of them were written now.
        images: how many there are; ``smaller``: how many were resized in the shards written now.
        bytes: of all shards.
        bad: (path, reason) of broken images that are left out.
        notes: sentences for the user about the source.
    """

    shards: int
    made: int
    images: int
    smaller: int
    bytes: int
    bad: list[tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class _Shard:
    """A planned shard: its name, its part, and the positions of its images there."""

    name: str
    part: str
    positions: np.ndarray


def pack(
    data: DataConfig,
    destination: Path,
    *,
    smaller: Smaller | None = None,
    shard_mb: int = SHARD_MB,
    progress: Progress | None = None,
) -> Packing:
    """Write the images of a source as shards into ``destination``, or go on where an earlier call was stopped.

    Args:
        data: the source; of it, ``on_bad_train`` and ``on_bad_val`` say what becomes of broken images.
        destination: a folder that is new, empty or half packed.
        smaller: make larger images smaller.
        shard_mb: megabytes of a shard, about.
        progress: called during the work.

    Raises:
        ExciteError: the source cannot be opened; the folder holds something else, or shards of another source or with
            other settings; an image is broken and the rule is to stop; or the disk is full.
    """
    for key in ("limit_train", "limit_val"):
        if getattr(data, key) is not None:
            raise ExciteError(f"data.{key} has no effect here: all images are packed; leave it out")
    if smaller is not None and data.in_chans not in COLOURS:
        raise ExciteError(f"images of data.in_chans={data.in_chans} bands can only be packed as they are, not smaller")
    weighted = data.source in ("table", "webdataset") and data.sampler is None
    source = source_contents(data.model_copy(update={"sampler": "weights"}) if weighted else data)  # if it has any
    if data.root is not None and Path(os.path.abspath(data.root)) in destination.absolute().parents:
        raise ExciteError(f"{destination} is inside the data that are packed: name a folder beside {data.root}")
    parts = {name: _grouped(part, data.group_by) for name, part in source.parts.items() if len(part)}
    settings = _settings(source, parts, smaller, shard_mb)
    done = _begun(destination, settings)  # before minutes of checking
    bad = _check(data, parts, progress)
    plan = list(_plan(parts, {name: {path for path, _ in found} for name, found in bad.items()}, smaller, shard_mb))
    # A shard is made again if it has other images now, or one that was changed in place and is as long as it was.
    inside = {shard.name: _digest(parts[shard.part], shard.positions) for shard in plan}
    known, done = done, {name: each for name, each in done.items() if each.get("inside") == inside.get(name)}
    for name in known.keys() - inside.keys():
        (destination / name).unlink(missing_ok=True)
    written = Counter[str]()
    images = sum(len(shard.positions) for shard in plan)
    seen = 0
    for shard in plan:
        if shard.name not in done:
            record, resized = _write(
                destination / shard.name, shard, parts[shard.part], smaller, progress, seen, images
            )
            done[shard.name] = record | {"inside": inside[shard.name]}
            written.update(made=1, smaller=resized)
            write_json(destination / PARTIAL, _index(source, settings, plan, done))
        seen += len(shard.positions)
    write_json(destination / INDEX, _index(source, settings, plan, done))
    (destination / PARTIAL).unlink(missing_ok=True)
    size = sum(each["bytes"] for each in done.values())
    left = [each for found in bad.values() for each in found]
    return Packing(len(plan), written["made"], images, written["smaller"], size, left, source.notes)


def _check(
    data: DataConfig, parts: Mapping[str, ArrayImages | Part], progress: Progress | None
) -> dict[str, list[tuple[str, str]]]:
    """(path, reason) of the broken images of each part; an error where the recipe says to stop."""
    found = {
        name: check_files(part, data.max_pixels, title(name), progress, data.in_chans).bad
        for name, part in parts.items()
        if isinstance(part, Part)
    }
    refuse_broken(data, {name: (bad, len(parts[name])) for name, bad in found.items()})
    return found


def _grouped(part: ArrayImages | Part, group_by: int | str | None) -> ArrayImages | Part:
    """The images with the groups that ``data.group_by`` finds, which shards keep as those of a table."""
    if group_by is None or not isinstance(part, Part):
        return part
    keys, _ = group_keys(part.within(), group_by, named_by_class=part.names is None)
    return replace(part, groups=[key.decode("utf-8", "surrogateescape") for key in keys])


def _plan(
    parts: Mapping[str, ArrayImages | Part], bad: Mapping[str, set[str]], smaller: Smaller | None, shard_mb: int
) -> Iterator[_Shard]:
    """The shards: the images of each part in a mixed order that depends on nothing but their number."""
    for name, part in parts.items():
        order = np.random.default_rng(0).permutation(len(part))
        if isinstance(part, Part) and bad.get(name):
            order = np.array([i for i in order if part.images.paths[i] not in bad[name]], dtype=np.int64)
        # A tar file takes 512 bytes for a header and fills up to 512 bytes, for the image and its label.
        told = isinstance(part, Part) and (part.groups is not None or part.images.weights is not None)
        ends = np.cumsum(_sizes(part, order, smaller) + (3072 if told else 2048))
        number = (ends - 1) // (shard_mb << 20)
        for index, shard in enumerate(np.unique(number)):
            yield _Shard(f"{name}-{index:05}.tar", name, order[number == shard])


def _sizes(part: ArrayImages | Part, order: np.ndarray, smaller: Smaller | None) -> np.ndarray:
    """Bytes of the images in this order, about: how long images are that are made smaller, the first of them tell."""
    if isinstance(part, ArrayImages):
        return np.full(len(order), int(part.images[:1].numel()))
    if smaller is None or not len(order):
        return part.sizes[order]
    with Threads(cores()) as pool:
        lengths = list(pool.map(lambda i: len(_content(part, int(i), smaller)[0]), order[:_TRIED]))
    return np.full(len(order), int(np.mean(lengths)))


def _settings(
    source: Contents, parts: Mapping[str, ArrayImages | Part], smaller: Smaller | None, shard_mb: int
) -> dict[str, Any]:
    """What decides the bytes of all shards."""
    whole = hashlib.sha256()
    for name, part in parts.items():
        if isinstance(part, ArrayImages):
            rows = [digest.hex() for digest in part.digests()]
        else:
            labels, sizes = part.images.labels, part.sizes.tolist()
            groups = part.groups or [""] * len(part)
            each = zip(part.within(), sizes, labels, groups, strict=True)
            rows = [f"{n}\0{s}\0{label_text(k)}\0{g}" for n, s, k, g in each]
            if part.images.weights is not None:
                rows = [f"{row}\0{weight!r}" for row, weight in zip(rows, part.images.weights.tolist(), strict=True)]
        whole.update("\n".join([name, *rows, ""]).encode("utf-8", "surrogateescape"))
    size = None if smaller is None else {"side": smaller.side, "quality": smaller.quality}
    return {"source": whole.hexdigest(), "classes": source.classes, "smaller": size, "shard_mb": shard_mb}


def _begun(destination: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The shards that are done already. Raises ExciteError if the folder holds anything else."""
    for name in (PARTIAL, INDEX):
        if not (destination / name).is_file():
            continue
        known = read_json(destination / name)
        if known.get("settings") != dict(settings):
            raise ExciteError(
                f"{destination} holds shards of another source or with other settings: name a new folder, or remove it"
            )
        shards = {str(each["name"]): each for each in known["shards"]}
        return {name: each for name, each in shards.items() if _is_whole(destination / name, each)}
    if there := names_in(destination):
        raise ExciteError(f"{destination} is not empty ({there[0]}): name a new folder")
    return {}


def _is_whole(path: Path, record: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == record["bytes"] and sha256_of(path) == record["sha256"]


def _digest(part: ArrayImages | Part, positions: np.ndarray) -> str:
    """A digest of which images a shard has and when they were last changed; the rest is in the settings."""
    dates = positions[:0] if isinstance(part, ArrayImages) else part.modified[positions]
    return hashlib.sha256(positions.tobytes() + dates.tobytes()).hexdigest()[:16]


def _index(
    source: Contents, settings: Mapping[str, Any], plan: Sequence[_Shard], done: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    shards = [done[shard.name] for shard in plan if shard.name in done]
    return {"made_by": MADE_BY, "classes": source.classes, "settings": dict(settings), "shards": shards}


def _write(
    path: Path,
    shard: _Shard,
    part: ArrayImages | Part,
    smaller: Smaller | None,
    progress: Progress | None,
    seen: int,
    images: int,
) -> tuple[dict[str, Any], int]:
    """Write one shard; its record for the index, and how many images were made smaller."""
    names = _keys(part, shard.positions)
    labels = part.labels.tolist() if isinstance(part, ArrayImages) else part.images.labels
    groups = part.groups if isinstance(part, Part) else None
    weights = part.images.weights if isinstance(part, Part) else None
    resized = 0
    with (
        written_aside(path) as aside,
        tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as tar,
        Threads(cores()) as pool,
    ):
        todo = [(int(i), name) for i, name in zip(shard.positions, names, strict=True)]
        for at in range(0, len(todo), _EVERY):
            some = todo[at : at + _EVERY]
            for (i, name), (content, end, smaller_now) in zip(
                some, pool.map(lambda each: _content(part, each[0], smaller), some), strict=True
            ):
                _add(tar, f"{name}{end}", content)
                label = _label(labels[i])
                if not isinstance(label, list):
                    _add(tar, f"{name}.cls", str(label).encode())
                if groups is not None or weights is not None or isinstance(label, list):
                    values: dict[str, Any] = {"label": label} | ({} if groups is None else {"group": groups[i]})
                    values |= {} if weights is None else {"weight": float(weights[i])}
                    _add(tar, f"{name}.json", to_json(values).encode())
                resized += smaller_now
            if progress is not None:
                progress("packing images", seen + min(at + _EVERY, len(todo)), images)
    size = path.stat().st_size
    record = {"name": shard.name, "part": shard.part, "images": len(todo), "bytes": size, "sha256": sha256_of(path)}
    return record, resized


def _label(label: Any) -> int | list[int]:
    """The number of an image's class, or those of several."""
    return int(label) if np.ndim(label) == 0 else np.flatnonzero(label).tolist()


def _keys(part: ArrayImages | Part, positions: np.ndarray) -> list[str]:
    """The name of each image in the shards, without its ending: dots in it would end it, and are written as %2E."""
    if isinstance(part, ArrayImages):
        return [f"{int(i):08}" for i in positions]
    names = part.within()
    stems = Counter(os.path.splitext(name)[0] for name in names)  # 1.jpg and 1.png would be one image of two files
    keys = []
    for i in positions:
        stem = os.path.splitext(names[i])[0]
        folder, file = os.path.split(stem if stems[stem] == 1 else names[i])
        keys.append(f"{folder}/{_quoted(file)}".lstrip("/"))
    return keys


def _quoted(file: str) -> str:
    return file.replace("%", "%25").replace(".", "%2E")


def _content(part: ArrayImages | Part, i: int, smaller: Smaller | None) -> tuple[bytes, str, bool]:
    """The bytes of an image, the ending for its name, and whether it was made smaller."""
    if isinstance(part, ArrayImages):
        pixels = part.images[i]
        picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
        return _encoded(picture, "PNG", QUALITY), ".png", False
    source = part.images.source(i)
    end = os.path.splitext(part.images.paths[i])[1].lower()
    with reading(source):
        if smaller is not None and (made := _smaller(source, smaller)) is not None:
            return *made, True
        with open_bytes(source) as file:
            return file.read(), end, False


def _smaller(source: Any, to: Smaller) -> tuple[bytes, str] | None:
    """A smaller JPEG, or PNG of an image without loss; None if it is small enough, or has more than 8 bits."""
    name = source.name if isinstance(source, Member) else str(source)
    with opened(source, name, 1 << 40) as image:
        if min(image.size) <= to.side or image.mode not in ("RGB", "L", "CMYK", "YCbCr"):
            return None
        lossless = image.format in ("PNG", "BMP", "PPM", "TIFF", "GIF", "QOI", "TGA")
        mode: Literal["L", "RGB"] = "L" if image.mode == "L" else "RGB"
    picture = load_image(source, mode, enough=to.side)
    short = min(picture.size)
    size = tuple(max(1, round(each * to.side / short)) for each in picture.size)
    picture = picture.resize(size, FILTERS["bicubic"])  # type: ignore[arg-type]
    return (_encoded(picture, "PNG", 0), ".png") if lossless else (_encoded(picture, "JPEG", to.quality), ".jpg")


def _encoded(picture: Image.Image, kind: str, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **({"quality": quality, "subsampling": 0} if kind == "JPEG" else {}))
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
