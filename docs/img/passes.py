"""Draw free-excitation.md's two pictures: the passes over the maps, and the training speeds last measured.

    python docs/img/passes.py

writes `free-passes` and `free-measured` (.png and .svg) beside this file, the second from the last run in
benchmarks/results/train_speed.csv.
"""

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from excite.pages.figures import COLORS, save, style

HERE = Path(__file__).parent
READ, WRITE = COLORS[6], COLORS[2]
#: Each form's passes over maps of the block's size, as in the page's tables: what is done, its reads and writes.
PASSES = {
    "forward, textbook": [
        ("BN: statistics", "R"),
        ("BN: normalise", "RW"),
        ("squeeze", "R"),
        ("scale, add", "RRW"),
        ("ReLU", "RW"),
    ],
    "forward, two passes": [("statistics and squeeze", "R"), ("normalise, scale, add, ReLU", "RRW")],
    "backward, textbook": [
        ("ReLU", "RRW"),
        ("scale", "RWRRWR"),
        ("squeeze", "RW"),
        ("BN: sums", "RR"),
        ("BN: gradient", "RRW"),
    ],
    "backward, two passes": [("ReLU and all sums", "RRRW"), ("gradient", "RRW")],
}


def draw_passes() -> Figure:
    """One row for each form; one square for each map read or written, one frame for each pass."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots()
    for row, (form, passes) in enumerate(PASSES.items()):
        x, y = 0.0, -row - (row // 2) * 0.35
        for what, accesses in passes:
            for place, access in enumerate(accesses):
                color = READ if access == "R" else WRITE
                axes.add_patch(_square(x + place, y, 0.9, 0.46, facecolor=color, edgecolor="white"))
                axes.text(x + place + 0.45, y + 0.23, access, ha="center", va="center", fontsize=10)
            axes.text(x, y - 0.07, _wrapped(what, len(accesses)), va="top", fontsize=8.5, linespacing=1.1)
            x += len(accesses) + 0.55
        count = sum(len(accesses) for _, accesses in passes)
        axes.text(-0.3, y + 0.23, form, ha="right", va="center", fontsize=10.5)
        axes.text(x - 0.3, y + 0.23, f"= {count}", va="center", fontsize=12, fontweight="bold")
    axes.set(xlim=(-4.6, 21.5), ylim=(-3.85, 0.75))
    axes.set_axis_off()
    axes.set_title("The end of a gated block: maps read (R) and written (W)", fontsize=12, loc="left")
    return figure


def _square(x: float, y: float, width: float, height: float, **options: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, **options)


def _wrapped(words: str, squares: int) -> str:
    """In lines that fit under so many squares, eight letters to each."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > 8 * squares:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def last_run() -> list[dict[str, str]]:
    """The rows of train_speed.csv that the last call wrote."""
    with open(HERE.parents[1] / "benchmarks" / "results" / "train_speed.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]
    return [row for row in rows if (row["date"], row["excite"]) == (last["date"], last["excite"])]


def draw_measured(rows: list[dict[str, str]]) -> Figure:
    """Training speeds, medians with quartiles."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        median, low, high = (float(row[k]) for k in ("images_per_second", "lower_quartile", "upper_quartile"))
        color = COLORS[3] if row["contender"].startswith("excite") else COLORS[1]
        axes.barh(place, median, height=0.62, color=color)
        axes.plot([low, high], [place, place], color="black", lw=1.6, marker="|", ms=7)
        axes.text(high + 0.12, place, f"{median:.2f}", va="center")
    axes.set_yticks(range(len(rows)), [row["contender"] for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    axes.set_xlabel(
        f"training img/s, batch {first['batch']}, {first['image_size']} px, {first['device']}; median and quartiles of "
        f"{first['steps']} steps, {first['date']}"
    )
    return figure


def main() -> None:
    with style():
        for figure, name in ((draw_passes(), "free-passes"), (draw_measured(last_run()), "free-measured")):
            for path in save(figure, HERE / name):
                print(path)


if __name__ == "__main__":
    main()
