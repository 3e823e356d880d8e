"""``excite validate``"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer

from excite.commands.beforehand import begin, check_data, check_precision
from excite.commands.common import (
    Augmented,
    Device,
    Fold,
    Json,
    OtherImages,
    Trained,
    complete_precision,
    metric_column,
    tell_not_finite,
)
from excite.runtime.job import rank
from excite.text import print_json

if TYPE_CHECKING:
    from excite.data.views import Tta
    from excite.training.evaluation import Evaluation


def validate(
    source: Trained,
    overrides: OtherImages = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also print a row per class.")] = False,
    device: Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16 or fp16.  [default: the precision used in training]",
            callback=check_precision,
            autocompletion=complete_precision,
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch; does not affect the result.")] = None,
    fold: Fold = None,
    tta: Augmented = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained network: loss, top-1 and top-5, counting every image exactly once.

    Examples:

      excite validate runs/cifar10-seresnet20-20260101-120000 --per-class

      excite validate runs/my-run data.part=test

      excite validate model.safetensors data.root=/other/images
    """
    check_data(source, overrides)
    begin(f"evaluating {source}")
    from excite.console import Display, ProgressBar, make_table
    from excite.trained.accuracy import validate as run_validation
    from excite.training.evaluation import LabelEvaluation

    display = Display()
    with ProgressBar("evaluating", lines=rank() == 0) as progress:
        progress("opening the network and its images", 0, 0)
        predictor, result = run_validation(
            source,
            overrides or [],
            device=device,
            precision=precision,
            batch_size=batch_size,
            fold=fold,
            tta=cast("Tta | None", tta),
            progress=partial(progress, "evaluating"),
        )
    if not predictor.accelerator.is_main_process:
        return
    row = {"model": predictor.meta["model"]["name"], **result.summary(), "precision": predictor.precision}
    row |= {"measured": result.measured, "tta": tta, "notes": list(result.notes)}
    rows = result.per_class(predictor.classes)
    if as_json:
        print_json({**row, "source": source, **({"per_class": rows} if per_class else {})})
        tell_not_finite(result.warning, result.usable)
        return
    columns = [("model", "model", ""), ("images", "images", "d"), ("loss", "loss", ".4f")]
    if isinstance(result, LabelEvaluation):
        columns += [("map", "mAP", ".2f"), ("macro_f1", "macro F1", ".2f"), ("micro_f1", "micro F1", ".2f")]
        columns += [("threshold", "threshold", ".3f")]
    else:
        columns += _accuracy_columns(result)
    views = [("tta", "tta", "")] if tta else []
    columns += metric_column(result.metric, columns)
    display.table(make_table([row], [*columns, ("precision", "precision", ""), *views]))
    for note in result.notes:
        display.message(note)
    if per_class:
        table = [("class", "class", ""), ("images", "images", "d"), ("top1", "top-1 (recall)", ".2f")]
        if isinstance(result, LabelEvaluation):
            table[-1] = ("top1", "recall", ".2f")
        table += [("precision", "precision", ".2f")]
        if isinstance(result, LabelEvaluation):
            table += [("f1", "F1", ".2f"), ("ap", "average precision", ".2f")]
        display.table(make_table(rows, table))
    tell_not_finite(result.warning, result.usable)


def _accuracy_columns(result: "Evaluation") -> list[tuple[str, str, str]]:
    columns = [("top1", "acc@top1", ".2f")]
    if result.uneven or format(result.balanced, ".2f") != format(result.top1, ".2f"):
        columns.append(("balanced", "balanced", ".2f"))
    return [*columns, ("top5", "acc@top5", ".2f")]
