"""What decoding large crops at 1/2, 1/4 or 1/8 size changes: in pixels, and in what a trained network says of them.

    python benchmarks/dct_scale.py FOLDER_OF_PHOTOGRAPHS WEIGHTS.safetensors

The photographs are enlarged three times and saved as phones do (JPEG, 4:2:0, quality 90). Of each, random crops of 224
pixels are made twice: from the whole image, and at the scale that training decodes. The network is
tf_efficientnet_lite0; what it says of the whole photograph, evaluated exactly, counts as right. Rows are appended to
benchmarks/results/dct_scale.csv.
"""

import argparse
import io
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import append_rows, commit

from excite import load
from excite.data.decode import FILTERS, Jpeg, load_image, open_picture
from excite.data.geometry import box_ratio, random_box
from excite.pages.intervals import Pairs, paired_interval

SIZE, SCALE, RATIO, CROPS = 224, (0.08, 1.0), (3 / 4, 4 / 3), 5


def enlarged(path: Path) -> bytes:
    """The photograph as a JPEG of three times its size."""
    image = Image.open(path).convert("RGB")
    out = io.BytesIO()
    image.resize((3 * image.width, 3 * image.height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def both_crops(data: bytes, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """(decoded smaller, cut from the whole image), uint8 (224, 224, 3), of the boxes that are decoded smaller."""
    image, whole = open_picture(data, 3), load_image(data)
    assert isinstance(image, Jpeg)
    made = []
    for _ in range(CROPS):
        left, top, width, height = random_box(rng, image.height, image.width, SCALE, box_ratio(RATIO, SIZE))
        if min(width, height) >= 2 * SIZE:
            box = (left, top, left + width, top + height)
            full = np.asarray(whole.resize((SIZE, SIZE), FILTERS["bicubic"], box=box))
            made.append((image.cropped((left, top, width, height), (SIZE, SIZE), "bicubic"), full))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights")
    args = parser.parse_args()
    predictor = load(args.weights, device="cpu")

    def answers(images: list[np.ndarray]) -> list[int]:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return predictor.model(predictor.preprocessing.normalize(pixels)).argmax(1).tolist()

    photographs = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    rng, right, differences = np.random.default_rng(0), ([], []), []
    for path in photographs:
        data = enlarged(path)
        crops = both_crops(data, rng)
        if not crops:
            continue
        (truth,) = answers([predictor.preprocessing.load(data).permute(1, 2, 0).numpy()])
        for each, pixels in zip(right, zip(*crops, strict=True), strict=True):
            each.extend(answer == truth for answer in answers(list(pixels)))
        differences += [np.abs(small.astype(int) - full).ravel() for small, full in crops]
    pixels = np.concatenate(differences)
    pairs = Pairs.count(*right)
    low, high = paired_interval(pairs)
    row = {
        "date": date.today().isoformat(),
        "excite": commit(),
        "photographs": len(photographs),
        "crops": pairs.images,
        "mean_difference": round(float(pixels.mean()), 2),
        "99_percent_below": int(np.percentile(pixels, 99)),
        "as_the_whole_smaller_percent": round(100 * sum(right[0]) / pairs.images, 2),
        "as_the_whole_full_percent": round(100 * sum(right[1]) / pairs.images, 2),
        "difference_points": round(100 * pairs.difference, 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
    }
    print(row)
    append_rows(Path(__file__).parent / "results" / "dct_scale.csv", [row])


if __name__ == "__main__":
    main()
