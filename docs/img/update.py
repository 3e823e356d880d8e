"""Put an experiment's table and picture into the documentation, and all experiments into README's first table.

    python docs/img/update.py runs/twins-digits-seresnet20 digits
    python docs/img/update.py runs/twins-cifar10-fast fast-quarter evidence.md
    python docs/img/update.py

Between the marks `<!-- NAME -->` and `<!-- /NAME -->` of the page everything is replaced; `twins-NAME.svg`, `.png` and
`.json` (what the table is made from, with a row for every run, see tests/test_twins.py) are copied here. Without
arguments, only README's table and that of `cifar10-fast` in docs/evidence.md are made again, from these files and
benchmarks/results/airbench.csv.
"""

import csv
import json
import shutil
import sys
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from excite.models.sizes import list_sizes
from excite.pages.tables import markdown_table
from excite.twins.report import markdown

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: Training images of CIFAR-10; multiplications and additions of a training step, in those of a forward pass.
IMAGES, PASSES = 50_000, 3
#: Name of the experiment -> what README's table calls its recipe.
IN_README = {
    "fast-quarter": "`cifar10-fast` with a quarter of the channels",
    "cifar10full": "`cifar10-seresnet20` and its twin",
}
HEADINGS = ("recipe", "PFLOP", "minutes (median)", "top-1 % without a gate", "what gates gain, points [95 % interval]")


def section(name: str) -> str:
    """What stands between the marks: the table and the picture of ``twins-NAME.json``."""
    report = json.loads((HERE / f"twins-{name}.json").read_text(encoding="utf-8"))
    picture = f"![accuracy, difference, speed and latency of each gate](img/twins-{name}.svg)"
    return f"<!-- {name} -->\n{markdown(report)}\n{picture}\n<!-- /{name} -->"


def replace(page: Path, name: str, text: str) -> None:
    """Put a section in the place of the one with its marks."""
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- {name} -->")
    page.write_text(before + text + rest.split(f"<!-- /{name} -->")[1], encoding="utf-8")


def readme() -> str:
    """README's first table: recipes on CIFAR-10, and what their gates gain."""
    rows = [whole_recipe()]
    for name, recipe in IN_README.items():
        if not (path := HERE / f"twins-{name}.json").exists():
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        if any(row["difference_low"] is not None for row in report["rows"]):  # else there are too few seeds to say
            rows.append(experiment(report, recipe))
    return f"<!-- results -->\n{markdown_table(HEADINGS, rows)}\n<!-- /results -->"


def whole_recipe() -> list[str]:
    """The recipe `cifar10-fast` as it is, from the rows of benchmarks/airbench.py."""
    ours = seeds_of("cifar10-fast")
    plain, views = ([float(row[key]) for row in ours] for key in ("top1", "top1_tta"))
    return [
        "`cifar10-fast`",
        f"{PROGRAMS['cifar10-fast'][1]:.2f}",
        f"{median(float(row['seconds']) / 60 for row in ours if row['seconds']):.1f} (2 threads)",
        f"{spread(plain)}, with six views {spread(views)} ({len(ours)} seeds)",
        "not yet measured",
    ]


def fast() -> str:
    """The table of `cifar10-fast` and the published programs in docs/evidence.md."""
    heads = ("program", "PFLOP", "seeds", "top-1 %, last epoch", "with six views", "minutes, 2 threads")
    rows = []
    for program, (called, operations) in PROGRAMS.items():
        runs = seeds_of(program)
        plain, views = ([float(row[key]) for row in runs] for key in ("top1", "top1_tta"))
        rows.append([called, f"{operations:.2f}", f"{len(runs)}", spread(plain), spread(views), minutes(runs)])
    return f"<!-- fast -->\n{markdown_table(heads, rows)}\n<!-- /fast -->"


def seeds_of(program: str) -> list[dict[str, str]]:
    """The rows of benchmarks/airbench.py of a program."""
    with (ROOT / "benchmarks" / "results" / "airbench.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["program"] == program]


def minutes(rows: list[dict[str, str]]) -> str:
    """The shortest and the longest run of those that were timed."""
    times = sorted(float(row["seconds"]) / 60 for row in rows if row["seconds"])
    return f"{times[0]:.1f} to {times[-1]:.1f}" if times else "not timed"


def experiment(report: dict[str, Any], recipe: str) -> list[str]:
    """A row for an experiment of `excite twins`."""
    base = next(row for row in report["rows"] if row["gate"] == report["baseline"])
    threads = {run["device"].partition("(")[2].partition(")")[0] for run in report["runs"]}
    gains = [
        f"{row['gate']} {row['difference']:+.2f} [{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
        + (f" {row['verdict']}" if row.get("verdict", "undecided") != "undecided" else "")
        for row in report["rows"]
        if row["difference_low"] is not None
    ]
    # Not the longest: a run that was paused has the pause in it.
    minutes = median(run["train_seconds"] / 60 for run in report["runs"])
    return [
        recipe,
        f"{petaflops(base['gmacs'], report['runs'][0]['epochs']):.2f}",
        f"{minutes:.1f} ({', '.join(sorted(threads)).replace('1 threads', '1 thread')})",
        f"{base['top1_mean']:.2f} ± {base['top1_sd']:.2f} ({base['finished']} seeds)",
        "; ".join(gains),
    ]


def petaflops(gmacs: float, epochs: float) -> float:
    """Of a training, two operations a multiplication and addition."""
    return 2 * gmacs * PASSES * IMAGES * epochs / 1e6


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


#: Program -> what the tables call it, and its PFLOP.
PROGRAMS = {
    "cifar10-fast": ("`cifar10-fast` (8 epochs)", petaflops(list_sizes(["cifar_fastnet7"])[0]["gmacs"], 8)),
    "airbench94_muon.py": ("`airbench94_muon.py` (8 epochs)", petaflops(list_sizes(["cifar_fastnet7"])[0]["gmacs"], 8)),
    "airbench94.py": ("`airbench94.py` (9.9 epochs)", petaflops(list_sizes(["cifar_fastnet7"])[0]["gmacs"], 9.9)),
}


def main() -> None:
    if len(sys.argv) > 1:
        folder, name, page = Path(sys.argv[1]), sys.argv[2], [*sys.argv[3:], "twins.md"][0]
        for source, kind in (("twins.svg", "svg"), ("twins.png", "png"), ("results.json", "json")):
            shutil.copyfile(folder / source, HERE / f"twins-{name}.{kind}")
        replace(HERE.parent / page, name, section(name))
    replace(HERE.parent / "evidence.md", "fast", fast())
    replace(ROOT / "README.md", "results", readme())


if __name__ == "__main__":
    main()
