"""The rows of a benchmark as a Markdown table and as a CSV file."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, final

from excite.bench.settings import Asked, Setting, SettingValues
from excite.errors import ExciteError
from excite.pages import tables
from excite.size import by_text
from excite.text import counted

if TYPE_CHECKING:
    from excite.bench.floors import FloorRow
    from excite.bench.profile import OperatorRow
    from excite.bench.timing import StepTimes
    from excite.bench.worker import Failure


class Speed(TypedDict):
    """Medians over all timed steps, and the quartiles of img/s."""

    images_per_second: float
    lower_quartile: float
    upper_quartile: float
    ms_per_step: float


@final
class BenchRow(Asked, Speed):
    """A measured setting; ``model`` includes the library's name if that is not excite.

    Attributes:
        batch: images per step and device.
        image_size: pixels per side, or "HxW".
        steps: timed steps of all rounds.
        compile_seconds: compile time of the first round, without a cache.
        memory_gb: the largest peak memory of a process, 1e9 bytes.
        torch, library_version, excite: versions.
        date: ISO 8601.
        ratio: img/s / those of the first row.
    """

    batch: int
    image_size: int | str
    steps: int
    compile_seconds: float | None
    memory_gb: float
    devices: int
    torch: str
    library_version: str
    excite: str
    date: str
    rounds: int
    ratio: float


@final
class FailedRow(SettingValues):
    """A setting that could not be measured, and why."""

    error: str


Row = BenchRow | FailedRow


def _by_text(size: int | str) -> str:
    return size if isinstance(size, str) else by_text(size)


#: The columns of a CSV file, in order.
COLUMNS = [
    *("date", "device", "torch", "library_version", "excite", "model", "mode", "devices", "batch", "image_size"),
    *("precision", "channels_last", "compile", "fused", "fused_sgd", "threads", "rounds", "steps", "images_per_second"),
    *("lower_quartile", "upper_quartile", "ms_per_step", "compile_seconds", "memory_gb", "ratio"),
]
#: Settings that get a column if rows differ in them, and are listed above the table if they do not.
_SETTINGS: dict[str, tuple[str, Callable[[BenchRow], str]]] = {
    "mode": ("mode", lambda row: row["mode"] if row["mode"] == "train" else f"{row['mode']}, not folded"),
    "batch": ("batch", lambda row: f"batch {row['batch']}" + (" per device" if row["devices"] > 1 else "")),
    "image_size": ("image", lambda row: _by_text(row["image_size"])),
    "precision": ("precision", lambda row: row["precision"]),
    "channels_last": ("layout", lambda row: "channels-last" if row["channels_last"] else "contiguous"),
    "fused": ("two passes", lambda row: "-" if ":" in row["model"] else row["fused"]),
    "fused_sgd": ("SGD", lambda row: "fused SGD" if row["fused_sgd"] else "plain SGD"),
    "compile": ("compile", lambda row: f"compile {row['compile']}"),
    "device": ("device", lambda row: row["device"]),
    "torch": ("framework", lambda row: row["torch"] if " " in row["torch"] else f"torch {row['torch']}"),
}


def summarise(seconds: Sequence[float], images: int) -> Speed:
    """Median and quartiles of img/s, and median ms/step, for steps of ``images`` images each."""
    speeds = [images / s for s in seconds]
    low, _, high = statistics.quantiles(speeds, n=4, method="inclusive") if len(speeds) > 1 else speeds * 3
    median = statistics.median(seconds)
    return {
        "images_per_second": images / median,
        "lower_quartile": low,
        "upper_quartile": high,
        "ms_per_step": 1000 * median,
    }


def make_rows(
    settings: Sequence[Setting], answers: "Sequence[Sequence[StepTimes | Failure]]", commit: str
) -> list[Row]:
    """One row per setting: medians and quartiles over all steps of all rounds, and the ratio to the first row.

    A setting that failed has an "error" instead of measurements. ``commit`` is the version of excite.
    """
    rows: list[Row] = []
    first: Speed | None = None
    for setting, given in zip(settings, answers, strict=True):
        last, measured = given[-1], [answer for answer in given if "error" not in answer]
        if "error" in last:
            rows.append({**setting.to_dict(), "model": setting.name, "error": last["error"]})
            continue
        speed = summarise([s for answer in measured for s in answer["seconds"]], last["batch"] * last["devices"])
        first = first or speed
        row: BenchRow = {
            **setting.to_dict(),
            "model": setting.name,
            **last,
            "seconds": setting.seconds,  # of a round, as requested
            "excite": commit,
            "date": date.today().isoformat(),
            "rounds": len(measured),
            "steps": sum(answer["steps"] for answer in measured),
            **speed,
            "compile_seconds": measured[0]["compile_seconds"],
            "memory_gb": max(answer["memory_gb"] for answer in measured),
            "ratio": speed["images_per_second"] / first["images_per_second"],
        }
        rows.append(row)
    return rows


def caption(rows: Iterable[Row]) -> str:
    """The settings that all rows share, on one line."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return ""
    shared = [text(good[0]) for _, text in _shown(good) if len({text(row) for row in good}) == 1]
    devices = good[0]["devices"]
    shared += [f"{devices} devices"] if devices > 1 else []
    return ", ".join([*shared, f"{counted(max(row['rounds'] for row in good), 'round')} in turns"])


def _shown(good: Sequence[BenchRow]) -> list[tuple[str, Callable[[BenchRow], str]]]:
    """The settings that apply to these rows."""
    hidden = set()
    if not any(row["mode"] == "train" for row in good):
        hidden.add("fused_sgd")
    if len({row["fused"] for row in good if ":" not in row["model"]}) < 2:
        hidden.add("fused")  # a setting of excite models only, shown if they differ in it
    return [value for key, value in _SETTINGS.items() if key not in hidden]


class Sheet(NamedTuple):
    """A table as text.

    Attributes:
        heads: column headings.
        lines: the cells, row by row.
        left: number of text columns on the left; the others are numbers.
    """

    heads: list[str]
    lines: list[list[str]]
    left: int

    def markdown(self) -> str:
        """The table as Markdown."""
        return tables.markdown_table(*self)


def speed_sheet(rows: Sequence[Row]) -> Sheet:
    """The table of all rows; shared settings are in the caption."""
    good = [row for row in rows if "error" not in row]
    varied = [(head, text) for head, text in _shown(good) if len({text(row) for row in good}) > 1] if good else []
    heads = [
        "model",
        *(head for head, _ in varied),
        "img/s",
        "quartiles",
        "ms/step",
        "compile s",
        "memory GB",
        "img/s / first row's",
    ]
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["model"], *["-"] * (len(heads) - 2), "failed"])
            continue
        measured = [
            f"{row['images_per_second']:,.2f}",
            f"{row['lower_quartile']:,.2f} to {row['upper_quartile']:,.2f}",
            f"{row['ms_per_step']:,.2f}",
            "-" if row["compile_seconds"] is None else f"{row['compile_seconds']:.1f}",
            f"{row['memory_gb']:.2f}",
            f"{row['ratio']:.2f}",
        ]
        lines.append([row["model"], *(text(row) for _, text in varied), *measured])
    return Sheet(heads, lines, left=1 + len(varied))


def operator_sheet(operators: "Sequence[OperatorRow]") -> Sheet:
    """The most expensive operators of a profile."""
    heads = ["operator", "ms/step", "ms / ms of all operators", "calls/step"]
    lines = [[o["operator"], f"{o['ms']:.2f}", f"{o['share']:.1f} %", f"{o['calls']:g}"] for o in operators]
    return Sheet(heads, lines, left=1)


def floor_caption(floors: "Sequence[FloorRow]") -> str:
    """The ceilings that the floors were computed from."""
    ceilings = f"{floors[0]['tflops']:.3g} TFLOP/s in a matrix product and {floors[0]['gb_per_s']:.3g} GB/s in a copy"
    return f"Floors: at {ceilings}, measured in the same process."


def floor_sheet(floors: "Sequence[FloorRow]") -> Sheet:
    """The parts of a step, compared with the least time they could take."""

    def cell(value: float | None, spec: str) -> str:
        return "-" if value is None else format(value, spec)

    heads = ["part of the step", "floor ms", "measured ms", "measured / floor"]
    lines = [
        [row["part"], cell(row["floor_ms"], ",.2f"), cell(row["measured_ms"], ",.2f"), cell(row["ratio"], ".2f")]
        for row in floors
    ]
    return Sheet(heads, lines, left=1)


def check_csv(path: Path) -> None:
    """Raise ExciteError if the file has other columns, before anything is measured."""
    with _about_option():
        tables.check_csv(path, COLUMNS)


def append_csv(path: Path, rows: Iterable[Row]) -> None:
    """Append the measured rows to a CSV file, with a heading if it is new. Raises ExciteError."""
    with _about_option():
        tables.append_csv(path, [row for row in rows if "error" not in row], COLUMNS)


@contextmanager
def _about_option() -> Iterator[None]:
    try:
        yield
    except ExciteError as error:
        raise ExciteError(f"--csv {error}") from None
