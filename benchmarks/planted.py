"""CIFAR-10 as class folders with planted faults, for data_check.py: wrong labels, near duplicates, leaks."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

WRONG, NEAR, LEAKS = 0.02, 300, 100


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def recompressed(image: Image.Image, rng: np.random.Generator) -> bytes:
    """The same picture as a JPEG of quality 40 to 70."""
    return _jpeg(image, int(rng.integers(40, 70)))


def cropped(image: Image.Image, rng: np.random.Generator) -> bytes:
    """One or two of 32 pixels cut off at each side, enlarged again."""
    left, top, right, bottom = (int(n) for n in rng.integers(1, 3, 4))
    box = (left, top, image.width - right, image.height - bottom)
    return _jpeg(image.resize(image.size, Image.Resampling.BICUBIC, box=box), 90)


def brightened(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Brightness times 0.7 to 1.3."""
    return _jpeg(ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.7, 1.3))), 90)


def mirrored(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Left and right exchanged."""
    return _jpeg(ImageOps.mirror(image), 90)


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "recompressed": recompressed,
    "cropped": cropped,
    "brightness": brightened,
    "mirrored": mirrored,
}


def plant(npz: Path, root: Path, train: int, val: int, seed: int = 0) -> dict:
    """Write ``root/train/CLASS`` and ``root/val/CLASS``; what was planted is returned, and kept in ``planted.json``.

    A copy has the label that its original got. Names tell nothing: they are numbers in a random order.

    Returns:
        "wrong": {name: true class}; "near" and "leaks": [[original, copy, kind]]; names are relative to ``root``.
    """
    rng = np.random.default_rng(seed)
    with np.load(npz) as file:
        names = [str(name) for name in file["classes"]]
        rows: list[tuple[str, bytes, int]] = []
        for part, count, own in (("train", train, "train"), ("val", val, "test")):
            blob, offset, label = file[f"{own}_jpeg"].tobytes(), file[f"{own}_offset"], file[f"{own}_label"]
            rows += [(part, blob[offset[i] : offset[i + 1]], int(label[i])) for i in range(count)]
    given = [label for _, _, label in rows]
    wrong: dict[int, int] = {}
    for start, count in ((0, train), (train, val)):
        for i in rng.choice(count, round(WRONG * count), replace=False) + start:
            given[i] = int((rows[i][2] + rng.integers(1, len(names))) % len(names))
            wrong[int(i)] = rows[i][2]
    originals = rng.choice([i for i in range(train) if i not in wrong], NEAR + LEAKS, replace=False).tolist()
    pairs: dict[str, list[tuple[int, int, str]]] = {"near": [], "leaks": []}
    for number, i in enumerate(originals):
        kind = list(CHANGES)[number % len(CHANGES)]
        part, what = ("train", "near") if number < NEAR else ("val", "leaks")
        changed = CHANGES[kind](Image.open(io.BytesIO(rows[i][1])).convert("RGB"), rng)
        pairs[what].append((i, len(rows), kind))
        rows.append((part, changed, rows[i][2]))
        given.append(given[i])
    numbers = rng.permutation(len(rows))
    where = [f"{p}/{names[g]}/{n:06d}.jpg" for (p, _, _), g, n in zip(rows, given, numbers, strict=True)]
    for name, (_, data, _) in zip(where, rows, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    told = {
        "wrong": {where[i]: names[label] for i, label in wrong.items()},
        **{what: [[where[a], where[b], kind] for a, b, kind in found] for what, found in pairs.items()},
    }
    (root / "planted.json").write_text(json.dumps(told, indent=1))
    return told


def scored(found: Sequence[object], true: Sequence[object]) -> tuple[int, float | None, float]:
    """How many were found, and precision and recall in percent; no precision where nothing was found."""
    hits = len(set(found) & set(true))
    return len(set(found)), 100 * hits / len(set(found)) if found else None, 100 * hits / len(set(true))
