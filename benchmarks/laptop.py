"""What the recipes for a laptop make of photographs, in accuracy and time.

    python benchmarks/photographs.py cifar /tmp/cifar && python benchmarks/photographs.py kinds /tmp/kinds
    EXCITE_TEST_DATA=../shared/data python benchmarks/laptop.py /tmp/cifar --size 128 --seeds 0 1 2

Every contender is what a user would type: ``excite train`` in a process of its own, one after the other, seed by seed.
The pretrained weights are timm's ``tf_efficientnet_lite0.in1k``, from the cache or the hub. Each run is a row of
benchmarks/results/laptop.csv: top-1 of the held-out images, for the weights that were kept and for the linear probe,
and the seconds until the probe's result and until the end, including the start of Python.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from record import append_rows, commit

RESULTS = Path(__file__).parent / "results" / "laptop.csv"
WEIGHTS = "timm:tf_efficientnet_lite0.in1k"
GATED = "model.options={gate: {name: se, identity: true}}"
#: Words behind ``excite train``; GRAFTED is what ``excite graft`` makes of WEIGHTS.
CONTENDERS = {
    "from scratch (folder-small)": ["folder-small"],
    "from scratch, SE-ResNet-20 (CIFAR)": ["folder-small", "model.name=cifar_seresnet20"],
    "from scratch, EfficientNet-Lite0": ["folder-small", "model.name=efficientnet_lite0"],
    "from scratch, EfficientNet-Lite0 with SE": ["folder-small", "model.name=se_efficientnet_lite0"],
    "trained weights (folder-finetune-small)": ["folder-finetune-small"],
    "trained weights with SE grafted on": [
        *("folder-finetune-small", GATED, "init_from=GRAFTED", "optimizer.gate_lr_factor=10"),
    ],
    "trained weights with SE grafted on (finetune-graft)": [
        *("finetune-graft", "model.name=efficientnet_lite0", "init_from=GRAFTED"),
    ],
}


def excite(*words: str) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run([sys.executable, "-P", "-m", "excite", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"excite {' '.join(words)}\n{done.stderr}")
    return done.stdout


def measure(words: list[str], folder: Path) -> dict[str, Any]:
    """Train once."""
    command = [sys.executable, "-P", "-u", "-m", "excite", "train", *words, "--run-dir", str(folder)]
    after_probe, started = None, time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if after_probe is None and line.startswith("epoch 0/"):  # the evaluation of what the probe gave
                after_probe = time.time() - started
        if process.wait():
            sys.exit(f"{command} failed")
    seconds = time.time() - started
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    probe = next((line for line in lines if line["kind"] == "eval" and line["step"] == 0), None)
    return {
        "epochs": results["epochs"],
        "images": results["images"],
        "probe_top1": "" if probe is None else round(probe["top1"], 2),
        "top1": round(results["top1"], 2),
        "balanced": "" if results.get("balanced") is None else round(results["balanced"], 2),
        "seconds_to_probe": "" if after_probe is None else round(after_probe, 1),
        "seconds": round(seconds, 1),
        "device": results["device"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--size", type=int, default=128, help="image_size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--splits", action="store_true", help="each seed holds out other images, too")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="contenders whose names contain one of these")
    parser.add_argument("--words", nargs="+", default=[], metavar="KEY=VALUE", help="for all of them")
    asked = parser.parse_args()
    chosen = {k: v for k, v in CONTENDERS.items() if not asked.only or any(text in k for text in asked.only)}
    common = {"date": date.today().isoformat(), "torch": version("torch"), "excite": commit()}
    with tempfile.TemporaryDirectory() as there:
        grafted = f"{there}/grafted.safetensors"
        excite("graft", WEIGHTS, "--gate", "se", "--init", "identity", "--out", grafted)
        for seed in asked.seeds:
            for name, words in chosen.items():
                settings = [
                    f"data.root={asked.photos}",
                    f"image_size={asked.size}",
                    f"seed={seed}",
                    "report.write=false",
                ]
                settings += [f"data.split_seed={seed}"] if asked.splits else []
                given = [word.replace("GRAFTED", grafted) for word in words]
                row = measure([*given, *settings, *asked.words], Path(there) / f"{len(name)}-{seed}-{time.time():.0f}")
                print(f"{name}, seed {seed}: {row}", flush=True)
                written = " ".join([*asked.words, *(["data.split_seed=SEED"] if asked.splits else [])])
                shared = {"photos": asked.photos.name, "size": asked.size, "words": written}
                append_rows(RESULTS, [{**common, **shared, "contender": name, "seed": seed, **row}])


if __name__ == "__main__":
    main()
