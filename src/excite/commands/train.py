"""``excite train``"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excite.choices import parse_duration
from excite.commands.beforehand import begin, check_parent, check_recipe, is_begun
from excite.commands.common import Json, RecipeWords, complete_run, metric_column
from excite.errors import ExciteError, absence, expanded
from excite.runtime.job import rank
from excite.text import print_json, tell

if TYPE_CHECKING:
    from excite.recipe import Recipe
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
    ("balanced", "balanced", ".2f"),
    ("top5", "acc@top5", ".2f"),
    ("last_top1", "last top1", ".2f"),
    ("test_top1", "test top1", ".2f"),
    ("recipe", "recipe", ""),
]

#: Instead of accuracies, with several labels an image.
LABEL_COLUMNS = [
    ("map", "mAP", ".2f"),
    ("macro_f1", "macro F1", ".2f"),
    ("micro_f1", "micro F1", ".2f"),
    ("threshold", "threshold", ".3f"),
]

#: What a run folder holds -> what it is for; docs/reference/files.md has their formats.
RUN_FILES = [
    ("model.safetensors", "best weights, self-contained: excite validate, excite predict"),
    ("results.json", "the table above and more"),
    ("report.html", "the full report on one page, to open in a browser"),
    ("curves.png", "loss, accuracy and learning rate"),
    ("metrics.jsonl", "the same data as numbers"),
    ("tensorboard", "the same data for TensorBoard"),
    ("predictions.npz", "logits of the measured images, for reports and comparisons"),
    ("recipe.yaml", "every setting of this run; to repeat it: excite train"),
    ("recipe-until-step-*.yaml", "the settings before it was resumed with other ones"),
    ("validation_files.txt", "images used for validation"),
    ("trained_files.bin", "digests of the training images, to recognise them"),
    ("bad_images.txt", "images that could not be read, and why"),
    ("environment*.json", "versions, device, git state"),
    ("log.txt", "the printed output"),
    ("checkpoints", "to resume the run: excite train --resume"),
    ("run.json", "the identity of the run, which its copies share"),
    ("remote.json", "the address that it is uploaded to"),
    ("model.sig", "its signature: excite verify"),
]


#: The error of a bare `excite train`.
_WHAT_TO_TYPE = (
    "give what to train on: `excite train photos/` (a folder with one subfolder per class) chooses the rest; "
    "`excite train RECIPE` trains with a recipe (`excite recipes` lists them); `excite train --resume RUN` resumes one"
)


def train(
    args: RecipeWords = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=complete_run,
            help="Resume an interrupted run, exactly as if it had not been interrupted. RUN@STEP: from an earlier "
            "checkpoint.",
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            help="Where to create the run folder: a folder, or an address such as s3://bucket/runs.",
            callback=check_parent,
        ),
    ] = "runs",
    run_dir: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=complete_run,
            help="The run folder itself: created, or resumed if the job is restarted.",
            callback=check_parent,
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="20m", help="Train for as many epochs as fit into this time: 90s, 20m, 1h30m.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a network and write a run folder: weights, metrics, curves, results.

    Examples:

      excite train photos/

      excite train photos/ --time 20m

      excite train digits-seresnet20

      excite train cifar10-seresnet20 data.root=cifar-10-python.tar.gz

      excite train folder-seresnet50 data.root=my-images train.init_from=runs/other

      excite train --resume runs/cifar10-seresnet20-20260101-120000

      excite train folder-seresnet50 data.root=my-images devices=8

    On several machines: torchrun --nnodes 2 --nproc-per-node 8 ... -m excite train RECIPE (docs/scaling.md).
    """
    words = list(args or [])
    if time is not None:
        parse_duration(time, "--time")
    if resume is not None and time is not None:
        raise ExciteError(
            "--time sets the number of epochs of a new run; a resumed run already has one: leave --time out"
        )
    if resume is None:
        recipe = _what_to_train(words)
    else:
        from excite.storage import local_run
        from excite.weights.locate import join_step, split_step

        where, step = split_step(resume)
        recipe = str(local_run(where))
        resume = join_step(recipe, step)
        if not (Path(recipe) / "recipe.yaml").is_file():
            what = "it has no recipe.yaml" if Path(recipe).is_dir() else absence(recipe)
            raise ExciteError(f"--resume {resume}: this is not a run folder ({what})")
    gone_on = resume is not None
    checked = _recipe(recipe, words, resume=gone_on, run_dir=run_dir)
    from excite.report.after_training import train as run_training

    if rank() == 0:
        tell("setting up the data and the network ...")
    results = run_training(checked, resume=resume, out=out, run_dir=run_dir, time=time, quiet=as_json)
    if not results:  # not the first process
        return
    if as_json:
        print_json(results)
    else:
        _show_results(results)
    from excite.storage import left_behind

    if missing := left_behind(Path(results["run"])):
        raise ExciteError(missing)


def _what_to_train(words: list[str]) -> str:
    """Remove the first word and return it: a recipe, a run or a folder of images.

    Raises:
        ExciteError: there is no word, or it is another override, or its folder does not exist.
    """
    if not words:
        raise ExciteError(_WHAT_TO_TYPE)
    first = words.pop(0)
    key, _, value = first.partition("=")
    if "=" not in first or Path(first).exists():
        return first
    if key not in ("data", "data.root", "root"):
        raise ExciteError(f"the first word must be a recipe, not {first!r}; `excite recipes` lists them")
    if not os.path.isdir(expanded(value)):
        raise ExciteError(f"{first}: there is no folder {value!r}: {absence(value)}")
    return value


def _recipe(name: str, words: list[str], *, resume: bool, run_dir: str | None) -> "Recipe":
    """The recipe, or the one chosen for a folder of images, checked as far as possible without PyTorch.

    Prints the command's first line.
    """
    from excite.data.root import source_of
    from excite.recipe import load_recipe

    kind = None if resume else source_of(name)
    if kind is not None:
        # Mistakes in the words are the same whatever recipe is chosen.
        checked = load_recipe("folder-finetune-small", [f"data.source={kind}", f"data.root={name}", *words])
        check_recipe(checked, begun=not checked.is_own("train.init_from"))
        begin(f"looking at the images in {name}")
        from excite.training.choose import recipe_for

        return recipe_for(name, words, run_dir=run_dir)
    checked = load_recipe(name, words)
    check_recipe(checked, begun=resume or is_begun(run_dir))
    begin(f"resuming {name}" if resume else f"training {name}")
    return checked


def _show_results(results: "Results") -> None:
    from excite.console import Display, make_table

    display = Display()
    dropped = {"test_top1"} if results.get("test_top1") is None else set()
    dropped |= set() if results.get("uneven") else {"balanced"}
    several = "threshold" in results
    dropped |= {"top1", "balanced", "top5", "last_top1", "test_top1"} if several else set()
    columns = [c for c in RESULT_COLUMNS if c[0] not in dropped]
    if several:
        columns[-1:-1] = LABEL_COLUMNS
    columns[-1:-1] = metric_column(results.get("metric", "top1"), columns)
    display.table(make_table([results], columns))
    run = Path(results["run"])
    display.message(f"{run}/")
    for pattern, what in RUN_FILES:
        for path in sorted(run.glob(pattern)):
            display.message(f"  {path.name:<20} {what}")
