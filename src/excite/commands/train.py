"""``excite train``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excite.commands.common import Json, RecipeWords, complete_run
from excite.errors import ExciteError
from excite.text import print_json

if TYPE_CHECKING:
    from excite.training.results import Results

RESULT_COLUMNS = [
    ("model", "model", ""),
    ("params_m", "params(M)", ".2f"),
    ("devices", "devices", "d"),
    ("batch_size", "batch size", "d"),
    ("resolution", "resolution", ""),
    ("compile_seconds", "compile s", ".1f"),
    ("ms_per_step", "ms/step", ".2f"),
    ("images_per_second", "img/s", ",.1f"),
    ("top1", "acc@top1", ".2f"),
    ("top5", "acc@top5", ".2f"),
    ("last_top1", "last top1", ".2f"),
    ("test_top1", "test top1", ".2f"),
    ("recipe", "recipe", ""),
]


def train(
    args: RecipeWords = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=complete_run,
            help="Go on with an interrupted run, exactly as if it had not been.",
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Where the new run folder is made: a folder, or an address such as s3://bucket/runs.")
    ] = "runs",
    run_dir: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=complete_run,
            help="The run folder itself: begun, or gone on with if the job is started again.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network and leave a run folder: weights, metrics, curves, results.

    Examples:

      excite train digits-seresnet20

      excite train cifar10-seresnet20 data.root=cifar-10-python.tar.gz

      excite train folder-seresnet50 data.root=my-images train.init_from=runs/other

      excite train --resume runs/cifar10-seresnet20-20260101-120000

      excite train folder-seresnet50 data.root=my-images devices=8

    On several machines: torchrun --nnodes 2 --nproc-per-node 8 ... -m excite train RECIPE (docs/scaling.md).
    """
    words = list(args or [])
    if resume is None:
        if not words:
            raise ExciteError("give a recipe (`excite recipes` lists them) or --resume RUN")
        if "=" in words[0] and not Path(words[0]).exists():
            raise ExciteError(f"the first word must be a recipe, not {words[0]!r}; `excite recipes` lists them")
        recipe = words.pop(0)
    else:
        from excite.storage import local_run

        resume = recipe = str(local_run(resume))
        if not (Path(resume) / "recipe.yaml").is_file():
            raise ExciteError(f"--resume {resume}: this is no run folder (it has no recipe.yaml)")
    from excite.recipe import load_recipe

    checked = load_recipe(recipe, words)  # before anything heavy is loaded
    from excite.training import train as run_training

    results = run_training(checked, resume=resume, out=out, run_dir=run_dir, quiet=as_json)
    if not results:  # not the first process
        return
    if checked.report.write:
        from excite.report.after_training import report_on_run

        report_on_run(Path(results["run"]), checked.train.device, quiet=as_json)
    if as_json:
        print_json(results)
    else:
        _show_results(results)
    from excite.storage import left_behind

    if missing := left_behind(Path(results["run"])):
        raise ExciteError(missing)


def _show_results(results: "Results") -> None:
    from excite.console import Display, make_table

    display = Display()
    columns = [c for c in RESULT_COLUMNS if c[0] != "test_top1" or results.get("test_top1") is not None]
    display.table(make_table([results], columns))
    run = Path(results["run"])
    display.message(f"{run}/")
    kinds = [
        ("model.safetensors", "best weights, self-contained: excite validate, excite predict"),
        ("results.json", "the table above and more"),
        ("report.html", "everything about it on one page, to open in a browser"),
        ("curves.png", "loss, accuracy and learning rate"),
        ("metrics.jsonl", "the same as numbers"),
        ("recipe.yaml", "everything that decided this run: excite train repeats it"),
        ("validation_files.txt", "which images validated"),
        ("bad_images.txt", "what could not be read, and why"),
        ("environment.json", "versions, device, git state"),
        ("log.txt", "what was printed"),
        ("checkpoints", "to go on with: excite train --resume"),
    ]
    for name, what in kinds:
        if (run / name).exists():
            display.message(f"  {name:<21}{what}")
