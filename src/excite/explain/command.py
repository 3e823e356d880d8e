"""The body of ``excite explain``: where things go, and the tables on the terminal; nothing else imports this."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from excite.console import Display, make_table
from excite.errors import ExciteError
from excite.explain.images import ExplainedImage
from excite.explain.run import Explanation, explain
from excite.inference import find_images
from excite.progress import Progress
from excite.recipe import is_override

Columns = list[tuple[str, str, str]]
_COLUMNS: Columns = [
    ("gate", "gate", ""),
    ("channels", "channels", "d"),
    ("mean", "mean scale", ".3f"),
    ("sd_images", "sd, images", ".3f"),
    ("saturated", "saturated %", ""),
    ("constant", "constant", "d"),
    ("class_percent", "by class %", ".0f"),
]


def run(
    source: str,
    words: Sequence[str],
    data: str | None,
    out: Path | None,
    *,
    progress: Progress | None,
    **options: Any,
) -> tuple[Explanation, Path]:
    """Explain, write everything into a folder, and give both.

    Args:
        source: run folder or checkpoint.
        words: images, folders, patterns; and ``data.key=value``.
        data: stands for ``data.root=``.
        out: the new folder; None takes ``explain-NAME`` here, with a number where that is taken.
        progress: see ``explain``.
        options: see ``explain``.

    Raises:
        ExciteError: see ``explain``; the folder is there already, an image is not.
    """
    if out is not None and out.exists():
        raise ExciteError(f"{out} exists already; name a new folder")
    overrides = [word for word in words if is_override(word)]
    overrides += [f"data.root={data}"] if data is not None else []
    images = find_images([word for word in words if not is_override(word)])
    result = explain(source, images, overrides, progress=progress, **options)
    folder = out if out is not None else _free_name(source)
    return result, result.write(folder)


def _free_name(source: str) -> Path:
    path = Path(source)
    name = f"explain-{path.stem if path.suffix == '.safetensors' else path.name or 'network'}"
    number = 1
    while (found := Path(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return found


def show(result: Explanation, folder: Path, display: Display) -> None:
    """Print tables and sentences."""
    if result.rows:
        display.table(make_table([_shown_row(row) for row in result.rows], _columns(result.rows, result.timed)))
        for line in _sentences(result):
            display.message(line)
    for image in result.explained:
        _show_image(image, display)
    for note in result.notes:
        display.message(note)
    display.message(f"{folder}/: {_files(result)}")


def _columns(rows: Sequence[Mapping[str, Any]], timed: str) -> Columns:
    columns = list(_COLUMNS)
    if rows[0]["estimated"]:
        columns.append(("loss_added", "loss added if fixed (estimate)", "+.4f"))
    elif rows[0]["top1_lost"] is not None:
        columns += [("price", "top-1 points lost if fixed (95 %)", ""), ("loss_added", "loss added", "+.4f")]
    if rows[0]["saved_ms"] is not None:
        columns.append(("saving", f"ms saved, {rows[0]['batch']} images, {timed} (quartiles)", ""))
    if rows[0]["could_go"] is not None:
        columns.append(("goes", "could go", ""))
    return columns


def _shown_row(row: Mapping[str, Any]) -> dict[str, Any]:
    price = saving = None
    if row["top1_lost"] is not None:
        price = f"{row['top1_lost']:+.2f} ({row['top1_lost_low']:+.2f} to {row['top1_lost_high']:+.2f})"
    if row["saved_ms"] is not None:
        saving = f"{row['saved_ms']:.2f} ({row['saved_ms_low']:.2f} to {row['saved_ms_high']:.2f})"
    return {
        **row,
        "saturated": f"{100 * row['saturated_low']:.1f} + {100 * row['saturated_high']:.1f}",
        "constant": len(row["constant"]),
        "class_percent": None if row["class_share"] is None else 100 * row["class_share"],
        "price": price,
        "saving": saving,
        "goes": "yes" if row["could_go"] else "",
    }


def _sentences(result: Explanation) -> list[str]:
    lines = [f"{result.images:,} images" + ("" if result.top1 is None else f", top-1 {result.top1:.2f} %")]
    chance = result.rows[0]["class_share_by_chance"]
    if chance is not None:
        lines[0] += f"; by chance alone {100 * chance:.1f} % of a scale's variance would be between classes"
    together = result.together
    if together is None and result.top1 is not None:
        lines.append(f"no gate can be fixed at its mean for {result.max_drop:g} points of top-1 or less")
    if together is not None:
        saved = ""
        if result.timing:
            last, whole = result.timing[-1], result.timing[0]["ms"]
            noise = (
                " (noise: its quartiles lie on both sides of 0)" if last["saved_low"] < 0 < last["saved_high"] else ""
            )
            saved = f" and saves {last['saved_ms']:.2f} of {whole:.2f} ms ({result.timed}){noise}"
        lines.append(
            f"fixing {len(together.gates)} of {len(result.rows)} gates together ({', '.join(together.gates)}) costs "
            f"{together.top1_lost:+.2f} points (95 %: {together.low:+.2f} to {together.high:+.2f}){saved}; "
            "`excite prune` takes gates out"
        )
    return lines


def _show_image(image: ExplainedImage, display: Display) -> None:
    display.message(f"{image.path}: " + "  ".join(f"{name} {100 * value:.1f} %" for name, value in image.top))
    rows = []
    for name, answer in image.gates.items():
        raised, lowered = answer.extremes(3)
        rows.append({"gate": name, "raised": _list(raised), "lowered": _list(lowered)})
    compared = all(answer.difference is not None for answer in image.gates.values())
    names = ("raised most", "lowered most") if compared else ("largest scales", "smallest scales")
    display.table(make_table(rows, [("gate", "gate", ""), ("raised", names[0], ""), ("lowered", names[1], "")]))


def _list(channels: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for each in channels:
        change = "" if each["difference"] is None else f" ({each['difference']:+.2f})"
        parts.append(f"{each['channel']}: {each['scale']:.2f}{change}")
    return "  ".join(parts)


def _files(result: Explanation) -> str:
    names = ["explain.json"]
    if result.statistics:
        names += ["gates.csv", "excitations.png", "spread.png", "health.png (and .svg)"]
    return ", ".join([*names, *(["images/"] if result.explained else [])])
