"""What ``excite data check`` finds of planted faults in CIFAR-10, beside cleanlab, imagededup and imagehash.

    python benchmarks/data_check.py --data cifar10_jpeg.npz --out FOLDER [--peers FOLDER] [--run RUN]

Writes 10,000 training and 2,000 validation images as class folders with 2 % wrong labels, 300 near duplicates in the
training part and 100 copies of training images in the validation part (see planted.py), trains cifar10-seresnet20 on
them unless --run names such a run, and checks them. ``--peers``: where ``pip install --target`` has put cleanlab,
imagehash and imagededup (the last without its dependencies: of it only the hashes are used, torchvision is not needed).
Adds rows to benchmarks/results/data_check.csv.
"""

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from types import ModuleType

import numpy as np
from planted import plant, scored
from record import append_rows, commit

import excite
from excite.data import open_data
from excite.datacheck.copies import find_copies
from excite.datacheck.features import fixed_features, network_features
from excite.datacheck.items import Items, all_items
from excite.datacheck.labels import SURE, fit_noise
from excite.datacheck.look import Looks, look_at_all
from excite.datacheck.probe import cross_fitted
from excite.recipe import load_recipe
from excite.trained.opened import open_trained

RESULTS = Path(__file__).parent / "results" / "data_check.csv"
Pair = tuple[str, str]
Rows = list[dict[str, object]]


def address(items: Items, item: int) -> str:
    """Part and name of an image, as planted.json has them."""
    return f"{'train' if items.parts[item] == 0 else 'val'}/{items.names[item]}"


def row(what: str, by: str, found: list, true: list, seconds: float | None = None) -> dict[str, object]:
    """A row of the table."""
    count, precision, recall = scored(found, true)
    rounded = None if precision is None else round(precision, 1)
    return {
        "what": what,
        "by": by,
        "planted": len(set(true)),
        "found": count,
        "precision": rounded,
        "recall": round(recall, 1),
        "seconds": None if seconds is None else round(seconds, 1),
    }


def labels(items: Items, looks: Looks, told: dict, run: Path, peers: bool) -> Rows:
    """Wrong labels: each method on the same probabilities."""
    network = open_trained(run, device="cpu")
    copies = find_copies(looks.rows, looks.good)
    features = network_features(network.predictor, network.weights, items, looks, "the network")
    assert features.logits is not None
    train, every = np.flatnonzero(items.parts == 0), np.arange(len(items))
    val = np.flatnonzero((items.parts == 1) & ~np.isin(copies.group, copies.group[train]))
    fixed = fixed_features(looks).values
    out: Rows = []
    for name, some, values in (
        ("validation, the network's logits", val, None),
        ("training, cross-fitted on the network's features", train, features.values),
        ("all, cross-fitted on fixed features", every, fixed),
    ):
        given = items.labels[some]
        if values is None:
            logits = features.logits[some]
        else:
            chances = cross_fitted(values[some], given, len(items.classes), copies.group[some])
            logits = np.log(np.maximum(chances, 1e-12))
        where = [address(items, int(i)) for i in some]
        true = [each for each in where if each in told["wrong"]]
        began = time.perf_counter()
        noise = fit_noise(logits, given)
        seconds = time.perf_counter() - began
        chosen = noise.order(SURE)
        out.append(row(f"labels: {name}", "excite, wrong with 50 % or more", [where[i] for i in chosen], true, seconds))
        print(f"{name}: noise {100 * noise.rate:.2f} % ({100 * noise.low:.2f} to {100 * noise.high:.2f}), "
              f"planted {100 * len(true) / len(where):.2f} %")  # fmt: skip
        out.append(row(f"labels: {name}", "excite, 20 % or more", [where[i] for i in noise.order(0.2)], true))
        if peers:
            from cleanlab.filter import find_label_issues

            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            began = time.perf_counter()
            issues = find_label_issues(given, p, return_indices_ranked_by="self_confidence")
            seconds = time.perf_counter() - began
            out.append(row(f"labels: {name}", "cleanlab", [where[i] for i in issues], true, seconds))
            first = [where[i] for i in issues[: len(chosen)]]
            out.append(row(f"labels: {name}", f"cleanlab, the first {len(chosen)}", first, true))
    return out


def copies_found(items: Items, looks: Looks) -> tuple[set[Pair], float]:
    """Pairs of copies, by excite."""
    began = time.perf_counter()
    copies = find_copies(looks.rows, looks.good)
    pairs = {tuple(sorted((address(items, a), address(items, b)))) for a, b in copies.pairs.tolist()}
    return pairs, time.perf_counter() - began  # type: ignore[return-value]


def by_imagehash(root: Path, names: list[str], most: int) -> tuple[set[Pair], float]:
    """imagehash's phash, all pairs up to a distance."""
    import imagehash
    from PIL import Image

    began = time.perf_counter()
    bits = np.stack([np.packbits(imagehash.phash(Image.open(root / name)).hash.ravel()) for name in names])
    values = bits.view(np.uint64)[:, 0]
    found: set[Pair] = set()
    for i in range(len(values) - 1):
        near = np.flatnonzero(np.bitwise_count(values[i + 1 :] ^ values[i]) <= most)
        found |= {tuple(sorted((names[i], names[i + 1 + j]))) for j in near.tolist()}  # type: ignore[misc]
    return found, time.perf_counter() - began


def by_imagededup(root: Path, names: list[str], most: int) -> tuple[set[Pair], float]:
    """imagededup's PHash, its default distance being 10."""
    # Of its networks nothing is used, and torchvision does not import beside a CPU build of torch.
    for name in ("imagededup.methods.cnn", "imagededup.utils.models"):
        sys.modules.setdefault(name, _Nothing(name))
    from imagededup.methods import PHash

    began = time.perf_counter()
    hasher = PHash(verbose=False)
    encodings = {name: hasher.encode_image(image_file=str(root / name)) for name in names}
    found = hasher.find_duplicates(
        encoding_map=encodings, max_distance_threshold=most, num_dist_workers=0, search_method="brute_force_cython"
    )
    pairs = {tuple(sorted((a, b))) for a, others in found.items() for b in others}
    return pairs, time.perf_counter() - began  # type: ignore[return-value]


class _Nothing(ModuleType):
    """Stands for a module of which nothing is used."""

    CNN = CustomModel = None


def accuracy(items: Items, told: dict, run: Path, root: Path) -> None:
    """The restated accuracy beside the true one: of images that were not planted as leaks, by CIFAR's own labels."""
    numbers = excite.check_data(run, [f"data.root={root}"], out=root.parent / "check.html", pictures=20).numbers
    for each in numbers["restated"][0]["rows"]:
        print(f"{each['what']}: {each['top1']:.2f} % ({each['top1_low']:.2f} to {each['top1_high']:.2f}), "
              f"{each['images']} images")  # fmt: skip
    network = open_trained(run, device="cpu")
    looks = look_at_all(items)
    features = network_features(network.predictor, network.weights, items, looks, "the network")
    assert features.logits is not None
    leaked = {copy for _, copy, _ in told["leaks"]}
    right = [
        told["wrong"].get(name, items.label(i)) == items.classes[int(features.logits[i].argmax())]
        for i in np.flatnonzero(items.parts == 1).tolist()
        if (name := address(items, i)) not in leaked
    ]
    print(f"true accuracy of the {len(right)} images that are not planted copies: {100 * np.mean(right):.2f} %")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="cifar10_jpeg.npz")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the images and the run")
    parser.add_argument("--peers", type=Path, help="where cleanlab, imagehash and imagededup are")
    parser.add_argument("--run", type=Path, help="a run trained on such images, instead of training one")
    given = parser.parse_args()
    if given.peers is not None:
        sys.path.append(str(given.peers))
    root = given.out / "cifar"
    planted = root / "planted.json"
    told = json.loads(planted.read_text()) if planted.is_file() else plant(given.data, root, 10_000, 2_000)
    run = given.run or given.out / "run"
    if not (run / "results.json").is_file():
        changes = ["data.source=folder", f"data.root={root}", "report.write=false"]
        excite.train("cifar10-seresnet20", changes, run_dir=run)
    recipe = load_recipe("folder-small", [f"data.root={root}", "data.mode=stream", "data.image_size=32"])
    items = all_items(open_data(recipe.data, recipe.augment), recipe.data.max_pixels)
    looks = look_at_all(items)
    rows = labels(items, looks, told, run, given.peers is not None)
    near = [tuple(sorted(pair[:2])) for pair in told["near"]]
    leaks = [tuple(sorted(pair[:2])) for pair in told["leaks"]]
    names = sorted(address(items, i) for i in range(len(items)))
    tools = {"excite": copies_found(items, looks)}
    if given.peers is not None:
        tools |= {f"imagehash phash, distance {d}": by_imagehash(root, names, d) for d in (4, 10)}
        tools["imagededup PHash, its default distance 10"] = by_imagededup(root, names, 10)
    for by, (pairs, seconds) in tools.items():
        within = [pair for pair in pairs if pair[0][:3] == pair[1][:3] == "tra"]
        across = [pair for pair in pairs if pair[0][:3] != pair[1][:3]]
        rows += [row("near duplicates", by, within, near, seconds), row("leaks", by, across, leaks)]
    for each in rows:
        print(each)
    more = {"commit": commit(), "date": date.today().isoformat()}
    append_rows(RESULTS, [{**each, **more} for each in rows])
    accuracy(items, told, run, root)


if __name__ == "__main__":
    main()
