"""``excite twins``"""

from pathlib import Path
from typing import Annotated

import typer

from excite.commands.beforehand import begin, check_experiment, check_labels, check_recipe
from excite.commands.common import Json, RecipeWords
from excite.errors import ExciteError
from excite.text import counted, print_json


def twins(
    args: RecipeWords = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds, counting up from the recipe's train.seed.  [default: 3]")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Instead of seeds: train each gate once for each of so many folds (data.fold), so that every image "
            "validates once.",
        ),
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option(
            metavar="GATE,...",
            help="none, or any of `excite gates`, optionally with options, such as se:reduction=8, and places, such as "
            "se@layer3, se@last2 or se@auto.  [default: none,se,ge_theta_minus,ge_theta,ge_theta_plus]",
            callback=check_labels,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder for the experiment.  [default: runs/twins-RECIPE]",
            show_default=False,
            callback=check_experiment,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Resume an experiment; so does repeating its command.",
            callback=check_experiment,
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="decided",
            help="Give a gate no more seeds once it is better, worse or equivalent for certain; --seeds is then the "
            "most (default 30). The intervals hold however often one looks.",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="With --until decided: points within which a gate is equivalent.  [default: 0.1]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe with each gate and each seed or fold, and compare what the gates gain and cost.

    Examples:

      excite twins digits-seresnet20

      excite twins cifar10-seresnet20 data.root=cifar-10-python.tar.gz --gates none,se --seeds 5

      excite twins folder-small data.root=my-images --gates none,se --folds 5

      excite twins cifar10-fast data.root=cifar-10-python.tar.gz --gates none,se --until decided --margin 0.15

      excite twins --resume runs/twins-cifar10-seresnet20
    """
    words = list(args or [])
    if words and "=" in words[0] and not Path(words[0]).exists() and resume is None:
        raise ExciteError(f"the first word must be a recipe, not {words[0]!r}; `excite recipes` lists them")
    if resume is None:
        from excite.recipe import load_recipe

        if not words:
            raise ExciteError("give a recipe (`excite recipes` lists them) or --resume DIR")
        check_recipe(load_recipe(words[0], words[1:]))
    begin(f"training twins of {words[0]}" if words else f"resuming {resume}")
    from excite.twins import run_twins

    report = run_twins(
        words[0] if words else None,
        words[1:],
        gates=gates,
        seeds=seeds,
        folds=folds,
        out=out,
        resume=resume,
        confidence=confidence,
        until=until,
        margin=margin,
        quiet=as_json,
    )
    if as_json:
        from excite.twins.report import outward

        print_json(outward(report))
    else:
        from excite.twins.report import show_files

        show_files(report)
    if report["failures"]:
        from excite.twins.report import said_as

        failed = "; ".join(f"{said_as(f)}: {f['reason']}" for f in report["failures"])
        raise ExciteError(
            f"{counted(len(report['failures']), 'run')} failed; repeat the command to try them again: {failed}"
        )
