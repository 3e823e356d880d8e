"""``excite explain``"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from excite.choices import ABLATIONS
from excite.commands.beforehand import begin, check_images_and_changes, check_new_folder, check_precision, choice
from excite.commands.common import Device, Json, Trained, complete_data_key, one_of
from excite.errors import ExciteError
from excite.text import print_json

if TYPE_CHECKING:
    from excite.console import Display
    from excite.explain.images import ChannelAnswer, ExplainedImage
    from excite.explain.rows import GateRow
    from excite.explain.run import Explanation

Columns = list[tuple[str, str, str]]
_COLUMNS: Columns = [
    ("gate", "gate", ""),
    ("channels", "channels", "d"),
    ("mean", "mean scale", ".3f"),
    ("sd_images", "sd over images", ".3f"),
    ("saturated", "scales at bottom + top of their range / all scales, %", ""),
    ("constant", "constant channels", "d"),
    ("class_percent", "variance between classes / total variance, %", ".0f"),
]


class _ShownGate(TypedDict):
    """A row of the terminal table; columns that combine two or three numbers hold text."""

    gate: str
    channels: int
    mean: float
    sd_images: float
    saturated: str
    constant: int
    class_percent: float | None
    loss_added: float | None
    price: str | None
    saving: str | None
    goes: str


def explain(
    source: Trained,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE|FOLDER|GLOB|KEY=VALUE]...",
            help="Images to explain individually; other data, such as data.root=PATH.",
            show_default=False,
            callback=check_images_and_changes,
            autocompletion=complete_data_key,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Use other data; short for data.root=PATH.")] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Validation images to use (class-balanced); 0: only the images named.")
    ] = 2000,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A new folder (default: explain-NAME here).", callback=check_new_folder),
    ] = None,
    classes: Annotated[list[str] | None, typer.Option("--class", help="Draw this class; may be repeated.")] = None,
    gates: Annotated[list[str] | None, typer.Option("--gate", help="Draw this gate; may be repeated.")] = None,
    ablation: Annotated[
        str,
        typer.Option(
            help="full: evaluate with each gate fixed at its mean; estimate: one pass; off.",
            callback=choice("--ablation", ABLATIONS),
            autocompletion=one_of(*ABLATIONS),
        ),
    ] = "full",
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Time the network without each gate.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Batch size for timing.")] = 16,
    max_drop: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="Top-1 that the gates marked 'could go' may cost together.")
    ] = 0.1,
    target: Annotated[str | None, typer.Option(help="Grad-CAM for this class (default: the most likely).")] = None,
    layer: Annotated[str | None, typer.Option(help="Grad-CAM on this module (default: the last map).")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for an image.")] = 5,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (as in training), fp32, bf16 or fp16.", callback=check_precision)
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Show what the gates do: scales by class and depth, which gates matter, and what each did to an image.

    Examples:

      excite explain runs/my-run

      excite explain runs/my-run photo.jpg --images 500 --out explained

      excite explain model.safetensors data.root=/other/images --class cat --class dog --ablation estimate --json
    """
    begin(f"explaining {source}")
    from excite.console import Display, ProgressBar
    from excite.explain.written import explain_and_write

    with ProgressBar() as progress:
        result = explain_and_write(
            source,
            *(words or []),
            data=data,
            images=images,
            out=out,
            classes=classes or [],
            gates=gates or [],
            ablation=ablation,
            timing=timing,
            batch=batch,
            max_drop=max_drop,
            target=target,
            layer=layer,
            top_k=top_k,
            device=device,
            precision=precision,
            progress=progress,
        )
    if as_json:
        print_json({**result.to_dict(), "folder": str(result.folder)})
    else:
        show_explanation(result, Display())
    if result.images and result.not_finite == result.images:
        raise ExciteError(f"none of the {result.images:,} images has finite logits, so there is nothing to explain")
    if result.bad:
        raise ExciteError("; ".join(f"{path}: {reason}" for path, reason in result.bad))


def show_explanation(result: "Explanation", display: "Display") -> None:
    """Print the tables of gates and images, and sentences about them."""
    from excite.console import make_table

    if result.rows:
        display.table(
            make_table([_shown_row(row) for row in result.rows], _columns(result.rows, result.timed, result.measure))
        )
        for line in _sentences(result):
            display.message(line)
    for image in result.explained:
        _show_image(image, display)
    for note in result.notes:
        display.message(note)
    display.message(f"{result.folder}/: {_files(result)}")


def _columns(rows: "Sequence[GateRow]", timed: str, measure: str) -> Columns:
    columns = list(_COLUMNS)
    if rows[0]["estimated"]:
        columns.append(("loss_added", "loss added if fixed (estimate)", "+.4f"))
    elif rows[0]["top1_lost"] is not None:
        columns += [("price", f"{measure} points lost if fixed (95 %)", ""), ("loss_added", "loss added", "+.4f")]
    if rows[0]["saved_ms"] is not None:
        columns.append(("saving", f"ms saved, {rows[0]['batch']} images, {timed} (quartiles)", ""))
    if rows[0]["could_go"] is not None:
        columns.append(("goes", "could go", ""))
    return columns


def _shown_row(row: "GateRow") -> _ShownGate:
    price = saving = None
    if row["top1_lost"] is not None:
        price = f"{row['top1_lost']:+.2f} ({row['top1_lost_low']:+.2f} to {row['top1_lost_high']:+.2f})"
    if row["saved_ms"] is not None:
        saving = f"{row['saved_ms']:.2f} ({row['saved_ms_low']:.2f} to {row['saved_ms_high']:.2f})"
    return {
        "gate": row["gate"],
        "channels": row["channels"],
        "mean": row["mean"],
        "sd_images": row["sd_images"],
        "saturated": f"{100 * row['saturated_low']:.1f} + {100 * row['saturated_high']:.1f}",
        "constant": len(row["constant"]),
        "class_percent": None if row["class_share"] is None else 100 * row["class_share"],
        "loss_added": row["loss_added"],
        "price": price,
        "saving": saving,
        "goes": "yes" if row["could_go"] else "",
    }


def _sentences(result: "Explanation") -> list[str]:
    lines = [f"{result.images:,} images{result.accuracy}"]
    chance = result.rows[0]["class_share_by_chance"]
    if chance is not None:
        lines[0] += f"; by chance, {100 * chance:.1f} % of a scale's variance would lie between classes"
    together = result.together
    if together is None and result.top1 is not None:
        lines.append(f"fixing any gate at its mean costs more than {result.max_drop:g} points of {result.measure}")
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


def _show_image(image: "ExplainedImage", display: "Display") -> None:
    from excite.console import make_table
    from excite.trained.predictor import NO_CLASS_OF_SEVERAL

    listed = "  ".join(f"{name} {100 * value:.1f} %" for name, value in image.top)
    display.message(f"{image.path}: {listed or NO_CLASS_OF_SEVERAL}")
    rows = []
    for name, answer in image.gates.items():
        raised, lowered = answer.extremes(3)
        rows.append({"gate": name, "raised": _list(raised), "lowered": _list(lowered)})
    compared = all(answer.difference is not None for answer in image.gates.values())
    names = ("raised most", "lowered most") if compared else ("largest scales", "smallest scales")
    display.table(make_table(rows, [("gate", "gate", ""), ("raised", names[0], ""), ("lowered", names[1], "")]))


def _list(channels: "Sequence[ChannelAnswer]") -> str:
    parts = []
    for each in channels:
        change = "" if each["difference"] is None else f" ({each['difference']:+.2f})"
        parts.append(f"{each['channel']}: {each['scale']:.2f}{change}")
    return "  ".join(parts)


def _files(result: "Explanation") -> str:
    names = ["explain.json"]
    if result.statistics:
        names += ["gates.csv", "excitations.png", "spread.png", "health.png (and .svg)"]
    return ", ".join([*names, *(["images/"] if result.explained else [])])
