"""What the tests of data checks share: folders of made-up pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Colour noise of all scales: like a photograph, no two are similar."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0], 3), np.float32)
    for cells in (3, 6, 12, 24):
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        scaled = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        pixels += np.asarray(scaled, np.float32) * (0.5 if cells == 3 else 0.25 if cells == 6 else 0.125)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The bytes of a JPEG file."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def write(path: Path, data: bytes) -> Path:
    """A file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def clean(root: Path, train: int = 30, val: int = 10) -> Path:
    """Class folders without any fault: three classes, of which nothing tells anything."""
    seed = 0
    for part, count in (("train", train), ("val", val)):
        for name in ("cat", "dog", "elk"):
            for number in range(count):
                write(root / part / name / f"{number:03d}.jpg", jpeg(picture(seed)))
                seed += 1
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of each test's own."""
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checked(tmp_path):
    """A function: check data; kind -> finding, and all numbers under "numbers"."""
    from excite import check_data

    def run(source, *words, **options):
        numbers, path = check_data(source, words, **{"out": tmp_path / "check.html", **options})
        return {each["kind"]: each for each in numbers["findings"]} | {"numbers": numbers, "path": path}

    return run
