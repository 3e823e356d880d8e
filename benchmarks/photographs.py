"""Real photographs as class folders, for the tables of the README: python benchmarks/photographs.py SET FOLDER

Sets, made of the pictures that EXCITE_TEST_DATA names (nothing of them is part of this project):

- kinds: the 200 ImageNet photographs as animals, vehicles, food and other things (super-classes of ImageNet's own);
- cifar: CIFAR-10 (a JPEG copy), 2,000 training and 1,000 validation images of 32 x 32 pixels.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

#: Ranks of the WordNet ids among ImageNet's 1,000 in ascending order; animals are the first 398.
VEHICLES = (
    403, 404, 405, 407, 408, 436, 444, 466, 468, 472, 484, 510, 511, 547, 554, 555, 561, 565, 569, 573, 575, 576,
    586, 595, 603, 609, 612, 625, 627, 628, 654, 656, 660, 661, 665, 670, 671, 675, 690, 705, 717, 724, 734, 751,
    757, 779, 780, 802, 803, 814, 817, 820, 829, 833, 847, 864, 866, 867, 870, 871, 874, 880, 895, 914,
)  # fmt: skip
FOOD = range(924, 970)


def kind(rank: int) -> str:
    """The super-class of a class of ImageNet's."""
    if rank < 398:
        return "animal"
    if rank in FOOD:
        return "food"
    return "vehicle" if rank in VEHICLES else "thing"


def make(name: str, folder: Path) -> None:
    """Lay a set out as class folders."""
    data = Path(os.environ["EXCITE_TEST_DATA"])
    unpack = [sys.executable, str(data / "unpack.py")]
    if name == "cifar":
        subprocess.run([*unpack, "cifar-folder", str(folder), "--train", "2000", "--test", "1000"], check=True)
        return
    ranks = {wnid: rank for rank, wnid in enumerate(sorted(_synsets()))}
    with tempfile.TemporaryDirectory() as there:
        subprocess.run([*unpack, "imagenet", there], check=True, stdout=subprocess.DEVNULL)
        for path in sorted(Path(there).rglob("*.JPEG")):
            to = folder / kind(ranks[path.parent.name]) / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())


def _synsets() -> list[str]:
    """ImageNet's 1,000 WordNet ids, as timm lists them (in .peers, see `make bench-cpu`)."""
    listed = Path(__file__).resolve().parents[1] / ".peers" / "timm" / "data" / "_info" / "imagenet_synsets.txt"
    return listed.read_text(encoding="utf-8").split()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("kinds", "cifar"):
        sys.exit(__doc__)
    make(sys.argv[1], Path(sys.argv[2]))
