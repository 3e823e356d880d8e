"""The report of an experiment: one row per gate, as a table on the terminal, Markdown, CSV and JSON."""

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from excite.console import Display, make_table
from excite.errors import ExciteError
from excite.files import read_json, write_json, write_text
from excite.measures import MEASURES, MeasureName, named, superlative
from excite.pages.tables import markdown_table, to_csv
from excite.runtime.environment import versions
from excite.text import counted, printable
from excite.training.results import Results, read_results
from excite.training.run_folder import read_metrics
from excite.twins import beside
from excite.twins.beside import Beside, compared, figures
from excite.twins.differences import Difference, difference, plus_minus, signed
from excite.twins.plan import Labels, Plan, run_name
from excite.twins.statistics import Verdict, mean_sd, seeds_needed, verdict
from excite.twins.worker import Latency


class Failure(Labels):
    """A run that failed, and why."""

    reason: str


class TwinRun(Results):
    """``results.json`` of a run, with the peak memory over all its processes, and without ``report``."""

    gate: str
    seed: int
    fold: NotRequired[int]
    ece: NotRequired[float]
    scaled_nll: NotRequired[float]
    robust_top1: NotRequired[float]


class Trained(TypedDict):
    """Summary of the runs of a gate.

    Attributes:
        finished, planned: numbers of runs.
        top1_mean, top1_sd: accuracy after the LAST epoch in percent: mean and sample standard deviation. With several
            labels an image, the measure that chose the best epoch, and named after it in files.
        best_top1_mean, best_top1_sd: the same for the best epoch, which was chosen using the same images.
        balanced_mean, balanced_sd: balanced accuracy after the last epoch; None in runs of older versions.
        images_per_second: median training speed over runs; ``_low`` and ``_high`` are the extremes.
        memory_gb: the largest peak of a training process.
        train_seconds: mean training time.
    """

    model: str | None
    finished: int
    planned: int
    top1_mean: float | None
    top1_sd: float | None
    best_top1_mean: float | None
    best_top1_sd: float | None
    balanced_mean: float | None
    balanced_sd: float | None
    params_m: float | None
    gmacs: float | None
    images_per_second: float | None
    images_per_second_low: float | None
    images_per_second_high: float | None
    memory_gb: float | None
    train_seconds: float | None


class GateLatency(TypedDict):
    """Median and quartiles of the latency of one image, in milliseconds."""

    latency_ms: float | None
    latency_low: float | None
    latency_high: float | None


class TwinRow(Trained, Difference, GateLatency):
    """One row of the table; values not known (yet) are None. ``verdict``: of an experiment with a margin; ``beside``:
    measures beside accuracy (:data:`excite.twins.beside.BESIDE`), if the runs have them."""

    gate: str
    beside: NotRequired[dict[str, Beside]]
    verdict: NotRequired[Verdict | None]


class Report(TypedDict):
    """``results.json`` of an experiment; ``missing`` are the folders of unfinished runs."""

    folder: str
    recipe: str
    gates: list[str]
    seeds: list[int]
    folds: NotRequired[int]
    margin: NotRequired[float]
    baseline: str
    confidence: float
    rows: list[TwinRow]
    runs: list[TwinRun]
    failures: list[Failure]
    missing: list[str]
    devices: list[str]
    versions: dict[str, str]
    latency: Latency | None


def read_latency(path: Path) -> Latency | None:
    """The stored latencies; None if they cannot be read, so that they are measured again."""
    try:
        found = read_json(path)
    except ExciteError:
        return None
    ms = found.get("ms")
    numbers = isinstance(ms, dict) and all(
        isinstance(row, list) and len(row) == 3 and all(type(v) in (int, float) for v in row) for row in ms.values()
    )
    return cast(Latency, found) if numbers else None


def of_labels(results: Results) -> bool:
    """Whether images may have several labels each."""
    return "threshold" in results


def measure_in(results: Results) -> MeasureName:
    """The measure that runs are compared by: top-1; with several labels an image, the one that chose the best epoch."""
    return results.get("metric", "map") if of_labels(results) else "top1"


def last_of(results: Results) -> float | None:
    """The measure after the last epoch."""
    return results["last_metric"] if of_labels(results) else results["last_top1"]


def measure_label(report: Report) -> str:
    """Its name for people: "top-1", "mAP"."""
    return MEASURES[measure_in(report["runs"][0]) if report["runs"] else "top1"].label


def collect(plan: Plan, folder: Path, failures: Sequence[Failure], confidence: float) -> Report:
    """Everything about an experiment, from the ``results.json`` of its runs."""
    runs: list[TwinRun] = []
    for gate, number in plan.runs():
        run = folder / plan.run_name(gate, number)
        if (run / "results.json").is_file():
            results = read_results(run / "results.json")
            other = figures(cast(Mapping[str, Any] | None, results.pop("report", None)))
            # For a resumed run, results.json has the peak of the last process only, metrics.jsonl that of each.
            peaks = [r.get("memory_gb") for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
            peak = max(known([results["memory_gb"], *peaks]), default=None)
            runs.append(cast(TwinRun, {**plan.labels(gate, number), **results, "memory_gb": peak, **other}))
    latency = read_latency(folder / "latency.json")
    top1 = _top1(plan, runs)
    rows: list[TwinRow] = []
    for gate in plan.gates:
        own = [r for r in runs if r["gate"] == gate]
        based = gate == plan.baseline
        ms = None if latency is None else latency["ms"].get(gate)
        found = difference({} if based else top1[gate], top1[plan.baseline], plan, confidence)
        row: TwinRow = {"gate": gate, **_row(own, plan.numbers), **found, **_latency(ms)}
        if more := compared(runs, gate, plan, confidence):
            row["beside"] = more
        if plan.margin is not None:
            ends = found["difference_low"], found["difference_high"]
            row["verdict"] = None if based else verdict(*ends, plan.margin)
        rows.append(row)
    trained = {(r["gate"], r[plan.unit]) for r in runs}
    open_gates = {row["gate"] for row in rows if row.get("verdict", "undecided") == "undecided"}
    open_gates |= {plan.baseline} if open_gates else set()
    report: Report = {
        "folder": str(folder),
        "recipe": plan.recipe.name,
        "gates": list(plan.gates),
        "seeds": list(plan.seeds),
        "baseline": plan.baseline,
        "confidence": confidence,
        "rows": rows,
        "runs": runs,
        "failures": [failure.copy() for failure in failures],
        "missing": [plan.run_name(*each) for each in plan.runs() if each not in trained and each[0] in open_gates],
        "devices": sorted({f"{r['devices']} x {r['device']}, {r['precision']}" for r in runs}),
        "versions": versions(),
        "latency": latency,
    }
    if plan.folds:
        report["folds"] = plan.folds
    if plan.margin is not None:
        report["margin"] = plan.margin
    return report


def _top1(plan: Plan, runs: Iterable[TwinRun]) -> dict[str, dict[int, float]]:
    """Gate -> seed or fold -> the measure after the last epoch."""
    top1: dict[str, dict[int, float]] = {gate: {} for gate in plan.gates}
    for r in runs:
        if (last := last_of(r)) is not None:
            top1[r["gate"]][r[plan.unit]] = last
    return top1


def verdicts(plan: Plan, folder: Path, confidence: float) -> dict[str, bool]:
    """Gate, but the baseline -> whether there is a verdict on it (`Plan.margin`)."""
    assert plan.margin is not None
    rows = collect(plan, folder, [], confidence)["rows"]
    return {row["gate"]: row.get("verdict") != "undecided" for row in rows if row["gate"] != plan.baseline}


def known(values: Iterable[float | None]) -> list[float]:
    """The values that are not None."""
    return [value for value in values if value is not None]


def _row(runs: Sequence[TwinRun], numbers: Sequence[int]) -> Trained:
    top1, sd = mean_sd(known(last_of(r) for r in runs))
    best, best_sd = mean_sd(known(cast(Mapping[str, Any], r)[measure_in(r)] for r in runs))
    balanced, balanced_sd = mean_sd(known(r.get("last_balanced") for r in runs))
    speeds = known(r["images_per_second"] for r in runs)
    some: Results = runs[0] if runs else {}
    return {
        "model": some.get("model"),
        "finished": len(runs),
        "planned": len(numbers),
        "top1_mean": top1,
        "top1_sd": sd,
        "best_top1_mean": best,
        "best_top1_sd": best_sd,
        "balanced_mean": balanced,
        "balanced_sd": balanced_sd,
        "params_m": some.get("params_m"),
        "gmacs": some.get("gmacs"),
        "images_per_second": statistics.median(speeds) if speeds else None,
        "images_per_second_low": min(speeds, default=None),
        "images_per_second_high": max(speeds, default=None),
        "memory_gb": max(known(r["memory_gb"] for r in runs), default=None),
        "train_seconds": mean_sd(known(r["train_seconds"] for r in runs))[0],
    }


def latency_form(latency: Latency) -> str:
    """The form in which the networks were timed; older files lack it, and were never folded."""
    return str(latency.get("form", f"not folded, {latency['precision']}"))


def _latency(quartiles: Sequence[float] | None) -> GateLatency:
    low, median, high = (None, None, None) if quartiles is None else quartiles
    return {"latency_ms": median, "latency_low": low, "latency_high": high}


# --- text -----------------------------------------------------------------------------------------------------------


def table(report: Report) -> list[dict[str, str]]:
    """The rows as text: heading -> cell."""
    percent = f"{100 * report['confidence']:g} %"
    uneven, sequential = any(r.get("uneven") for r in report["runs"]), "margin" in report

    def balanced(row: TwinRow) -> dict[str, str]:
        return {"balanced %": plus_minus(row["balanced_mean"], row["balanced_sd"])} if uneven else {}

    label = measure_label(report)
    placed = any("@" in gate for gate in report["gates"])
    base = next((row for row in report["rows"] if row["gate"] == report["baseline"]), None)
    return [
        {
            "gate": row["gate"],
            "runs": f"{row['finished']}" if sequential else f"{row['finished']}/{row['planned']}",
            f"{label} %, last epoch": plus_minus(row["top1_mean"], row["top1_sd"]),
            f"difference to {report['baseline']} [{percent} interval]": signed(row),
            **({"verdict": row.get("verdict") or "-"} if sequential else {}),
            **balanced(row),
            "best epoch": plus_minus(row["best_top1_mean"], row["best_top1_sd"]),
            "params (M)": _number(row["params_m"], ".3f"),
            "GMACs": _number(row["gmacs"], ".4f"),
            "training img/s": _spread(
                row["images_per_second"], row["images_per_second_low"], row["images_per_second_high"], ",.0f"
            ),
            "latency ms": _spread(row["latency_ms"], row["latency_low"], row["latency_high"], ".2f"),
            **({"points / ms": _per_ms(row, base)} if placed else {}),
            "peak GB": _number(row["memory_gb"], ".2f"),
        }
        for row in report["rows"]
    ]


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _per_ms(row: TwinRow, base: TwinRow | None) -> str:
    """The difference for each millisecond of latency that the gate adds, with the ends of its interval; "-" where it
    adds less than the baseline's own quartiles are apart."""
    values = (row["difference"], row["difference_low"], row["difference_high"])
    if base is None or base["latency_ms"] is None or row["latency_ms"] is None or values[0] is None:
        return "-"
    added = row["latency_ms"] - base["latency_ms"]
    if added <= (base["latency_high"] or 0) - (base["latency_low"] or 0):
        return "-"
    middle, low, high = (None if value is None else value / added for value in values)
    ends = "[no interval]" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"
    return f"{middle:+.2f} {ends}"


def _spread(value: float | None, low: float | None, high: float | None, spec: str) -> str:
    if value is None or low == high:
        return _number(value, spec)
    return f"{_number(value, spec)} ({_number(low, spec)} to {_number(high, spec)})"


def notes(report: Report) -> list[str]:
    """Notes on how to read the table, one sentence each, as far as they apply."""
    runs, seeds, folds = report["runs"], report["seeds"], report.get("folds", 0)
    label = measure_label(report)
    said = []
    if runs:
        name, what = ("Top-1", "accuracy") if label == "top-1" else (label, label)
        after = counted(runs[0]["epochs"] or 0, "epoch")
        said.append(
            f"{name} of {_images(runs)} validation images after {after}; the best epoch was chosen using "
            f"the same images, so its {what} is slightly optimistic."
        )
        metrics = dict.fromkeys(r.get("metric", "top1") for r in runs)
        if list(metrics) != [measure_in(runs[0])]:
            said.append(f"The best epoch is that of the {' or '.join(map(superlative, metrics))} (eval.metric).")
        early = sum(bool(r.get("stopped_early")) for r in runs)
        if early:
            said.append(
                f"{early} of {len(runs)} runs ended early (train.patience); their last epoch was thus chosen using the "
                "same images, too."
            )
    if folds:
        said.append(
            f"{folds} folds of the training images (data.fold): each image validates once. Mean ± sample standard "
            "deviation over folds. Differences are paired by fold. Their interval is Nadeau and Bengio's corrected "
            f"resampled t: the folds share training images, so the variance of the mean is not 1/{folds} of that of a "
            f"fold, but 1/{folds} + 1/{folds - 1}."
        )
    elif "margin" in report:
        said.append(_sequential_note(report))
    elif len(seeds) > 1:
        said.append(
            f"{len(seeds)} seeds ({', '.join(map(str, seeds))}): mean ± sample standard deviation; differences are "
            f"paired by seed, with Student's t interval of their mean, separately for each gate."
        )
    else:
        said.append("One seed: no spread and no interval, so differences are not conclusive; use --seeds 3 or more.")
    if any("@" in gate for gate in report["gates"]) and report["latency"] is not None:
        said.append(
            "Points / ms: the difference over the latency that the gate adds; no figure where that is less than the "
            "baseline's quartiles are apart."
        )
    said += beside.notes(report["rows"])
    if (needed := planning(report)) is not None:
        said.append(needed)
    if runs:
        speed = "Training speed: each run's own median step"
        said.append(f"{speed}, of which the median over runs (lowest to highest); on {'; '.join(report['devices'])}.")
    if len(report["devices"]) > 1:
        said.append("The runs were made on different devices, so their speeds are not comparable.")
    if report["latency"] is not None:
        latency = report["latency"]
        said.append(
            f"Latency: one prepared image to logits, all gates in turns in one process, {latency['rounds']} rounds of "
            f"{latency['passes']}, median (quartiles); {latency['device']}, batch norms {latency_form(latency)}."
        )
    elif runs:
        resume = f"excite twins --resume {shlex.quote(report['folder'])}"
        said.append(f"Latency: not measured (the experiment is unfinished). To measure it: {resume}")
    without = [f"{_name(r)} ({r['last_not_finite']})" for r in runs if r.get("last_not_finite")]
    if without:
        said.append(
            "Some validation images have no finite logits after the last epoch and count as wrong (number in "
            f"brackets): {', '.join(without)}."
        )
    if runs:
        said.append("Peak memory is that of the training process, or that allocated on the accelerator.")
    return said


def _sequential_note(report: Report) -> str:
    compared = len(report["gates"]) - 1
    alone = "" if compared < 2 else f" (each is that of {100 - 100 * (1 - report['confidence']) / compared:g} %)"
    together = f"for all {compared} gates together{alone}, " if compared > 1 else ""
    return (
        f"Up to {len(report['seeds'])} seeds, until decided: mean ± sample standard deviation; differences are paired "
        f"by seed. Their intervals hold {together}however often one looks and whenever one stops (a confidence "
        "sequence: arXiv 2310.03722), so they are wider than Student's. Better, worse: 0 is outside. Equivalent: all "
        f"of it is within {report.get('margin', 0):g} points of 0. Undecided: neither yet."
    )


def paired(report: Report, gate: str) -> list[float]:
    """The measure of a gate's runs minus that of the baseline with the same seed or fold, in their order."""
    unit = "fold" if report.get("folds") else "seed"
    last = {(r["gate"], r[unit]): last_of(r) for r in report["runs"]}  # type: ignore[literal-required]
    both = [(mine, last.get((report["baseline"], n))) for (name, n), mine in last.items() if name == gate]
    return [mine - other for mine, other in both if mine is not None and other is not None]


def planning(report: Report) -> str | None:
    """How many seeds it takes to see a difference, from the spread of the differences so far; None from fewer than
    three pairs, and for folds."""
    if report.get("folds"):
        return None
    pairs = {gate: paired(report, gate) for gate in report["gates"] if gate != report["baseline"]}
    spreads = {gate: sd for gate, each in pairs.items() if len(each) >= 3 and (sd := mean_sd(each)[1])}
    if not spreads:
        return None
    wanted = report.get("margin", 0.1)
    gate = max(spreads, key=spreads.__getitem__)
    few, many = (f"{seeds_needed(spreads[gate], d, report['confidence']):,}" for d in (3 * wanted, wanted))
    of = f"of {gate} " if len(spreads) > 1 else ""
    return (
        f"Seeds: differences {of}spread by {spreads[gate]:.2f} points (standard deviation). To see a true difference "
        f"with 80 %, a paired t-test takes {many} seeds for {wanted:g} points and {few} for {3 * wanted:g}."
    )


def _images(runs: Sequence[TwinRun]) -> str:
    """The number of validation images, or the smallest and the largest of folds."""
    counts = known(r["images"] for r in runs)
    if not counts:
        return "-"
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _name(run: TwinRun) -> str:
    return run_name(run["gate"], run["fold"], "fold") if "fold" in run else run_name(run["gate"], run["seed"])


def said_as(labels: Labels) -> str:
    """What a run is called in a sentence."""
    return f"{labels['gate']}, " + (f"fold {labels['fold']}" if "fold" in labels else f"seed {labels['seed']}")


def markdown(report: Report) -> str:
    """The table and its notes as Markdown."""
    rows = table(report)
    lines = [*markdown_table(list(rows[0]), [list(row.values()) for row in rows]).split("\n"), ""]
    if more := beside.table(report["rows"], report["baseline"]):
        lines += ["Beside accuracy:", ""]
        lines += [*markdown_table(list(more[0]), [list(row.values()) for row in more]).split("\n"), ""]
    lines += [f"- {note}" for note in notes(report)]
    lines += [f"- FAILED: {said_as(f)}: {f['reason']}" for f in report["failures"]]
    return "\n".join(map(printable, lines)) + "\n"


def outward(report: Report) -> Report:
    """The report as files have it: with several labels an image, ``top1_mean`` and the like have the measure's name."""
    if not any(map(of_labels, report["runs"])):
        return report
    rows = [named(row, True, measure_in(report["runs"][0])) for row in report["rows"]]
    return cast(Report, {**report, "rows": rows})


def write_report(report: Report, folder: Path) -> None:
    """Write ``results.json``, ``twins.csv`` (one row per gate), ``runs.csv`` (one per run) and ``twins.md``."""
    told = outward(report)
    write_json(folder / "results.json", told)
    write_text(folder / "twins.csv", to_csv([_flat(row) for row in told["rows"]]))
    write_text(folder / "twins.md", markdown(report))
    if report["runs"]:
        write_text(folder / "runs.csv", to_csv(report["runs"]))


def _flat(row: TwinRow) -> dict[str, Any]:
    """A row of the CSV file: measures beside accuracy as columns of their own, such as ``ece_mean``."""
    more = {f"{name}_{key}": value for name, found in row.get("beside", {}).items() for key, value in found.items()}
    return {**{key: value for key, value in row.items() if key != "beside"}, **more}


def show_report(report: Report, display: Display) -> None:
    """Print the table, and that of the measures beside accuracy."""
    for rows in (table(report), beside.table(report["rows"], report["baseline"])):
        if rows:
            display.table(make_table(rows, [(heading, heading, "") for heading in rows[0]]))


def show_files(report: Report) -> None:
    """Print the notes on the table and a list of the files."""
    display = Display()
    for note in notes(report):
        display.message(note)
    display.message(f"{report['folder']}/")
    files = [
        ("twins.md", "the table, ready to paste"),
        ("twins.csv, runs.csv", "one row per gate, one row per run"),
        ("twins.png, twins.svg", "the figure"),
        ("results.json", "all results"),
        ("GATE-foldN" if report.get("folds") else "GATE-seedN", "the run folders: excite validate, excite predict"),
    ]
    for name, what in files:
        display.message(f"  {name:<22}{what}")
