"""How well the latency of a placement of gates is predicted from its parts: python benchmarks/placements.py

For each network, the passes that ``excite graft --latency`` measures and 20 random placements are timed in the same
turns, one image in float32. Rows are appended to benchmarks/results/placements.csv: measured median, prediction, error.
The networks that timm has need EXCITE_PEERS (`make bench-cpu`).
"""

import argparse
import random
from datetime import date
from pathlib import Path

import torch
from record import append_rows, commit

from excite import create_model
from excite.errors import ExciteError
from excite.grafting.costs import Switched, solve, weighing_rows
from excite.runtime.device import device_name

RESULTS = Path(__file__).parent / "results" / "placements.csv"
NETWORKS = {
    "cifar_resnet20": ("se", "ge", "cbam"),
    "cifar_fastnet7": ("se",),
    "resnet18": ("se",),
    "resnet50": ("se", "eca"),
    "efficientnet_lite0": ("se",),
    "timm:convnext_atto": ("eca",),
}


def rows_of(name: str, gate: str, count: int, seconds: float) -> list[dict[str, object]]:
    """Time a network: a row for each random placement."""
    device = torch.device("cpu")
    net = create_model(name).eval()
    switched = Switched(net, gate, at="auto", init="identity", example=None, device=device)
    draw = random.Random(0)
    asked = {i: [place for place in switched.places if draw.random() < 0.5] for i in range(count)}
    design = weighing_rows(len(switched.places))
    weighed = {
        f"row {i}": [place for place, on in zip(switched.places, row[1:], strict=True) if on > 0]
        for i, row in enumerate(design)
    }
    timed = switched.time({**weighed, **asked}, seconds=seconds)
    base, gates = solve([timed[key] for key in weighed], design, switched.places)
    rows: list[dict[str, object]] = []
    for i, places in asked.items():
        measured, predicted = timed[i].median_ms, base + sum(gates[place][0] for place in places)
        rows.append(
            {
                "date": date.today(),
                "device": device_name(device),
                "excite": commit(),
                "network": name,
                "gate": gate,
                "form": switched.form,
                "places": len(switched.places),
                "gates": len(places),
                "without_gates_ms": round(base, 4),
                "measured_ms": round(measured, 4),
                "predicted_ms": round(predicted, 4),
                "error_percent": round(100 * (predicted / measured - 1), 2),
                "passes": len(timed[i].ms),
            }
        )
    errors = [abs(float(str(row["error_percent"]))) for row in rows]
    print(f"{name} {gate}: largest error {max(errors):.1f} % of {count} placements, mean {sum(errors) / count:.1f} %")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--placements", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each network and gate")
    args = parser.parse_args()
    for name in args.networks:
        for gate in NETWORKS[name]:
            try:
                append_rows(RESULTS, rows_of(name, gate, args.placements, args.seconds))
            except ExciteError as error:
                print(f"{name} left out: {error}")


if __name__ == "__main__":
    main()
