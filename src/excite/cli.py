"""The command line: name -> function. Everything heavy is imported inside the functions, so that --help is instant."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from excite.children import make_children_safe
from excite.errors import ExciteError, shown, shown_text
from excite.files import to_json
from excite.leaving import leave_quickly
from excite.runtime.job import is_one_of_several
from excite.text import print_json, printable, show, tell, tell_lines

if TYPE_CHECKING:
    from excite.console import Display


class _Commands(typer.core.TyperGroup):
    """Commands whose usage errors, which repeat what was typed, show control characters and do not send them."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _shown_as_typed():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _shown_as_typed():
            return super().invoke(ctx)


@contextmanager
def _shown_as_typed() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a ClickException: typer has a click of its own, private
        if hasattr(error, "format_message") and hasattr(error, "message"):
            error.message = printable(error.message)
        raise


app = typer.Typer(
    name="excite",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, measure and ship image classifiers with Squeeze-and-Excitation and Gather-Excite gates.",
    epilog="Start with: excite train digits-seresnet20",
)


def _complete_recipe(incomplete: str) -> list[str]:
    from excite.recipe import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


def _complete_override(incomplete: str) -> list[str]:
    from excite.recipe import list_recipes, override_keys

    keys = [f"{key}=" for key in override_keys()]
    return [name for name in [*list_recipes(), *keys] if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from excite.models.catalog import list_models

    return [name for name in list_models() if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RecipeWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe's name, a YAML file or a run folder; then changes to it, such as train.epochs=10.",
        autocompletion=_complete_override,
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, npu, xpu or mps.")]
Fold = Annotated[
    bool | None,
    typer.Option(
        "--fold/--no-fold",
        help="Fold batch norms into convolutions.  [default: on a CPU, where it is faster]",
        show_default=False,
    ),
]


@app.command()
def train(
    args: RecipeWords = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run, exactly as if it had not been.")
    ] = None,
    out: Annotated[
        str, typer.Option(help="Where the new run folder is made: a folder, or an address such as s3://bucket/runs.")
    ] = "runs",
    run_dir: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="The run folder itself: begun, or gone on with if the job is started again."),
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
        _report_on_run(Path(results["run"]), checked.train.device, quiet=as_json)
    if as_json:
        print_json(results)
    else:
        _show_results(results)
    from excite.storage import left_behind

    if missing := left_behind(Path(results["run"])):
        raise ExciteError(missing)


def _report_on_run(run: Path, device: str = "auto", *, quiet: bool) -> None:
    """Write the report of a run that has just ended; whatever fails in it is a sentence, for the run is whole.

    Only the first process of a job comes here, and waits for no other one: they may be gone.
    """
    from excite.console import Display, ProgressBar
    from excite.storage import left_behind, sync, uploads_to

    failed = "the report was not written"
    try:
        from excite.report.build import report as write_report

        with ProgressBar() as progress:
            _, path = write_report(run, device=device, progress=progress)
        failed = f"{path} was written, but not uploaded"
        if uploads_to(run) and not left_behind(run):
            sync(run)
        Display(quiet=quiet).message(f"report {path}")
    except (Exception, KeyboardInterrupt) as error:
        reason = str(error) if isinstance(error, ExciteError) else f"{type(error).__name__}: {error}".rstrip(": ")
        tell(f"{failed} ({reason}); the run is whole, try again: excite report {run}")


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


def _show_results(results: dict[str, Any]) -> None:
    from excite.console import Display, make_table

    display = Display()
    columns = [c for c in RESULT_COLUMNS if c[0] != "test_top1" or results.get("test_top1") is not None]
    if display.console.width >= 150:
        display.table(make_table([results], columns))
    else:  # the same, top to bottom
        rows = [{"what": h, "value": "-" if results[k] is None else format(results[k], f)} for k, h, f in columns]
        display.table(make_table(rows, [("what", "", ""), ("value", "", "")]))
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


@app.command()
def twins(
    args: RecipeWords = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many, counted up from the recipe's train.seed.  [default: 3]")
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option(
            metavar="GATE,...",
            help="none, or any of `excite gates`, with options if need be, such as se:reduction=8.  [default: "
            "none,se,ge_theta_minus,ge_theta,ge_theta_plus]",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the experiment.  [default: runs/twins-RECIPE]", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="DIR", help="Go on with an experiment; the same command again does it, too.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Train a recipe with each gate and each seed: what the gates gain and what they cost, side by side.

    Examples:

      excite twins digits-seresnet20

      excite twins cifar10-seresnet20 data.root=cifar-10-python.tar.gz --gates none,se --seeds 5

      excite twins --resume runs/twins-cifar10-seresnet20
    """
    from excite.twins import run_twins

    words = list(args or [])
    if words and "=" in words[0] and not Path(words[0]).exists() and resume is None:
        raise ExciteError(f"the first word must be a recipe, not {words[0]!r}; `excite recipes` lists them")
    report = run_twins(
        words[0] if words else None,
        words[1:],
        gates=None if gates is None else [gate.strip() for gate in gates.split(",")],
        seeds=seeds,
        out=out,
        resume=resume,
        confidence=confidence,
        quiet=as_json,
    )
    if as_json:
        print_json(report)
    else:
        from excite.twins.report import show_files

        show_files(report)
    if report["failures"]:
        failed = "; ".join(f"{f['gate']}, seed {f['seed']}: {f['reason']}" for f in report["failures"])
        raise ExciteError(f"{len(report['failures'])} run(s) failed, and the same command tries them again: {failed}")


@app.command()
def validate(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a .safetensors file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Other images: data.root=PATH, data.part=test ...", show_default=False
        ),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also a row for each class.")] = False,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; without it, what the network was trained with.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time; no influence on the result.")] = None,
    fold: Fold = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained network: loss, top-1, top-5, every image exactly once.

    Examples:

      excite validate runs/cifar10-seresnet20-20260101-120000 --per-class

      excite validate runs/my-run data.part=test

      excite validate model.safetensors data.root=/other/images
    """
    from excite.console import Display, ProgressBar, make_table
    from excite.inference import validate as run_validation

    display = Display()
    with ProgressBar("evaluating") as progress:
        predictor, result = run_validation(
            source,
            overrides or [],
            device=device,
            precision=_check_precision(precision),
            batch_size=batch_size,
            fold=fold,
            progress=partial(progress, "evaluating"),
        )
    if not predictor.accelerator.is_main_process:
        return
    row = {"model": predictor.meta["model"]["name"], **result.summary(), "precision": predictor.precision}
    row |= {"measured": result.measured, "notes": list(result.notes)}
    rows = result.per_class(predictor.classes)
    if as_json:
        print_json({**row, "source": source, **({"per_class": rows} if per_class else {})})
        _tell_not_finite(result.warning, result.usable)
        return
    columns = [("model", "model", ""), ("images", "images", "d"), ("loss", "loss", ".4f"), ("top1", "acc@top1", ".2f")]
    if format(result.balanced, ".2f") != format(result.top1, ".2f"):
        columns.append(("balanced", "balanced", ".2f"))
    columns.append(("top5", "acc@top5", ".2f"))
    display.table(make_table([row], [*columns, ("precision", "precision", "")]))
    for note in result.notes:
        display.message(note)
    if per_class:
        table = [("class", "class", ""), ("images", "images", "d"), ("top1", "top-1 (recall)", ".2f")]
        display.table(make_table(rows, [*table, ("precision", "precision", ".2f")]))
    _tell_not_finite(result.warning, result.usable)


def _tell_not_finite(warning: str | None, usable: bool) -> None:
    """The sentence about images without finite logits; an error where the network has an answer for none of them."""
    if warning is not None and not usable:
        raise ExciteError(warning)
    if warning is not None:
        tell(f"warning: {warning}")


def _check_precision(precision: str | None) -> str | None:
    if precision not in (None, "auto", "fp32", "bf16", "fp16"):
        raise ExciteError(f"--precision is {precision!r}; choose auto, fp32, bf16 or fp16")
    return precision


@app.command()
def predict(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a .safetensors file.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB...", help="What to classify.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for each image.")] = 3,
    grid: Annotated[Path | None, typer.Option(help="Draw the first 50 images with their class into this PNG.")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, or auto: what suits the device.")] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    fold: Fold = None,
    as_json: Json = False,
) -> None:
    """Classify images: the most likely classes by name. Unreadable images are named, and make the exit status 1.

    So do images for which the network has no finite logits.

    Examples:

      excite predict runs/my-run photo.jpg

      excite predict runs/my-run "photos/*.jpg" --json

      excite predict runs/my-run photos/ --grid out.png
    """
    from excite.console import Display, ProgressBar, make_table
    from excite.data.decode import BadImageError
    from excite.inference import NO_ANSWER, Prediction, draw_grid, find_images, load, to_rows
    from excite.logits import sentence

    files = find_images(images, tell)
    predictor = load(source, device, _check_precision(precision) or "fp32", fold)
    found: list[Prediction] = []
    bad: list[str] = []
    with ProgressBar("classifying") as progress:
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            try:
                found += predictor.predict(part, top_k, batch_size)
            except BadImageError:
                for file in part:  # one by one, so that a broken image costs only itself
                    try:
                        found += predictor.predict([file], top_k)
                    except BadImageError as error:
                        bad.append(str(error))
            progress("classifying", start + len(part), len(files))
    if as_json:
        print_json(to_rows(found))
    else:
        rows = [
            {"image": p.path, "top": "  ".join(f"{c} {100 * v:.1f} %" for c, v in p.top) or NO_ANSWER} for p in found
        ]
        Display().table(make_table(rows, [("image", "image", ""), ("top", f"top {top_k}", "")]))
    if grid is not None and found:
        tell(f"grid: {draw_grid(found, grid, white=predictor.preprocessing.white)}")
    without = [p.path for p in found if not p.top]
    if told := sentence(len(without), len(found), without[0] if without else None, about="not classified"):
        bad.append(told)
    if bad:
        raise ExciteError("; ".join(bad))


@app.command()
def sync(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]", help="Where its copy is kept; without it, where it was kept before.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload what the remote copy of a run lacks, for example after a lost connection.

    Examples:

      excite sync runs/cifar10-seresnet20-20260101-120000

      excite sync runs/my-run s3://bucket/runs/my-run
    """
    from excite.storage import sync as sync_run

    address, sent = sync_run(run, url, tell)
    if as_json:
        print_json({"run": run, "url": address, "uploaded": sent})
    else:
        show(printable(f"{address} has all of {run}: {sent} file(s) uploaded"))


@app.command()
def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL[,OPTION=VALUE]...",
            help="Models of ours, timm:NAME, mindcv:NAME; with --data: changes to the recipe, such as data.workers=4.",
            autocompletion=_complete_model,
            show_default=False,
        ),
    ] = None,
    train: Annotated[bool, typer.Option("--train/--infer", help="Time training steps, or forward passes.")] = True,
    batch: Annotated[
        str | None, typer.Option(metavar="N,...", help="Images a step and device (default: 16 on a CPU, else 128).")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="S,...", help="Pixels a side (default: the model's own).")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="P,...", help="auto, fp32, bf16, fp16 (default: auto).")
    ] = None,
    compile_mode: Annotated[
        str | None,
        typer.Option("--compile", metavar="C,...", help="off, default, reduce-overhead, max-autotune (default: off)."),
    ] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last/--no-channels-last", help="Memory layout of weights and images.")
    ] = True,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a CPU (default: all).")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each row is measured, all in turns.")] = 3,
    warm_up: Annotated[
        int | None, typer.Option(min=2, help="Steps before those that count (default: 3 on a CPU, else 10).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps a round (default: as many as --seconds take).")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long a round of a row takes.")] = 5.0,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Append the rows to this file.")] = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write traces for Perfetto or Chrome; name top operators.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Measure a recipe's input pipeline, its step, and both together."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure speed and memory: ours beside others', settings beside settings, data beside compute.

    Every row is measured in a process of its own, in rounds that take turns. The table shows medians and quartiles over
    all timed steps, and the ratio to the first row.

    Examples:

      excite bench seresnet50 resnet50

      excite bench seresnet50 --infer --batch 1,16 --precision fp32,bf16 --json

      excite bench seresnet50 timm:seresnet50 timm:seresnet50,precision=fp32,channels_last=false --csv bench.csv

      excite bench cifar_seresnet110 --compile off,default --profile traces

      excite bench --data cifar10-seresnet20 data.root=cifar-10-python.tar.gz

      torchrun --nproc-per-node 8 -m excite bench seresnet50 --batch 128
    """
    from excite.bench.command import bench_data, bench_models
    from excite.bench.settings import make_settings, parse_list, refuse_options_of_models

    given = {"batch": batch, "image_size": image_size, "precision": precision, "compile": compile_mode}
    if data is not None:
        of_models = {
            **{f"--{name.replace('_', '-')}": value for name, value in given.items()},
            "--threads": threads,
            "--warm-up": warm_up,
            "--steps": steps,
            "--csv": csv,
            "--profile": profile,
            "--infer": None if train else True,
            "--no-channels-last": None if channels_last else True,
            "--device": None if device == "auto" else device,
        }
        refuse_options_of_models(of_models)
        bench_data(data, models or [], rounds=rounds, seconds=seconds, as_json=as_json)
        return
    if not models:
        raise ExciteError("give models to measure (`excite models` lists them), or --data RECIPE")
    lists = {name: parse_list(text, name) for name, text in given.items()}
    settings = make_settings(
        models,
        lists,
        mode="train" if train else "infer",
        channels_last=channels_last,
        device=device,
        threads=threads,
        warm_up=warm_up,
        steps=steps,
        seconds=seconds,
    )
    bench_models(settings, rounds=rounds, csv=csv, profile=profile, as_json=as_json)


@app.command()
def scale(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, a YAML file or a run folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.", show_default=False)
    ] = None,
    devices: Annotated[str, typer.Option(metavar="N,...", help="How many, to plan for.")] = "1,8,64,1024",
    batch_per_device: Annotated[
        int | None,
        typer.Option(min=1, help="Let the batch grow with the devices (and scale the rate); else it is the recipe's."),
    ] = None,
    measured: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="A finished run to set beside; may be given several times.")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(metavar="N,...", help="Time steps on this machine in so many processes, such as 1,2.")
    ] = None,
    steps: Annotated[int, typer.Option(min=3, help="With --measure: steps timed of each.")] = 10,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images, for the hours.", show_default=False)
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device for an hour, for the cost.")] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another assumption than those listed; may be given several times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict how a recipe scales to many devices, with measurements beside, before you rent them.

    Examples:

      excite scale imagenet-seresnet50-100ep --devices 8,64,1024

      excite scale imagenet-seresnet50-100ep --batch-per-device 128 --assume tflops=60 --assume network_gb_s=50

      excite scale cifar10-seresnet20 --measure 1,2 --batch-per-device 32

      excite scale imagenet-seresnet50-100ep --measured runs/one --measured runs/eight
    """
    from excite.recipe import load_recipe
    from excite.scaling import plan, plan_tables

    result = plan(
        load_recipe(recipe, overrides or []),
        devices=devices,
        batch_per_device=batch_per_device,
        measured=measured or [],
        measure_on=measure,
        steps=steps,
        images=images,
        price=price,
        assume=assume or [],
        progress=tell,
    )
    if as_json:
        print_json(result)
        return
    from excite.console import Display

    display = Display()
    for table in plan_tables(result):
        display.table(table)
    for note in result["notes"]:
        display.message(note)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint of MindSpore, TensorFlow, Caffe, PyTorch or excite; https://, hf:owner/name, timm:name.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="The file to write.")],
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The network, where it is not to be recognised.", autocompletion=_complete_model
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(metavar="NPZ|IMAGE", help="Compare with the input and outputs in an .npz, or classify an image."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Compare, layer by layer, with another checkpoint.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference that passes, relative to the largest value.")
    ] = 1e-4,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take what fits, and list what does not.")
    ] = False,
    to: Annotated[str, typer.Option(metavar="LIBRARY", help="Write for excite, timm or torchvision.")] = "excite",
    classes: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one a line.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Bring in weights from another system, or write ours for one. Format and network are recognised.

    Examples:

      excite convert seresnet18.ckpt seresnet18.safetensors --verify outputs.npz

      excite convert seresnet110.ckpt cifar.safetensors

      excite convert timm:seresnet50.ra2_in1k seresnet50.safetensors --classes imagenet.txt

      excite convert runs/my-run seresnet50.pth --to timm
    """
    from excite.console import Display, ProgressBar, make_table
    from excite.weights.command import run as run_conversion

    display = Display()
    columns = [
        ("place", "place", ""),
        ("shape", "shape", ""),
        ("relative", "largest difference / largest value", ".2e"),
    ]
    with ProgressBar() as progress:
        result = run_conversion(
            source,
            destination,
            arch=arch,
            verify=verify,
            against=against,
            tolerance=tolerance,
            allow_partial=allow_partial,
            to=to,
            classes=classes,
            force=force,
            say=progress.beside(_teller(display, as_json)),
            show=None if as_json else progress.beside(lambda rows: display.table(make_table(rows, columns))),
            progress=progress,
        )
    if as_json:
        print_json(result)


@app.command()
def graft(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run folder, a checkpoint (of other systems, too), timm:NAME, or a model's name.",
            autocompletion=_complete_model,
        ),
    ],
    gate: Annotated[str, typer.Option(metavar="GATE", help="One of `excite gates`.")] = "se",
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Where; may be given several times.  [default: ends of branches]"),
    ] = None,
    init: Annotated[
        str, typer.Option(help="identity: changes nothing at first, and learns; paper: the usual start.")
    ] = "identity",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of the gate, such as reduction=8; may be given several times."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the places and what the gates cost.")] = False,
    images: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Images for the proof; without it, random ones.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights of a timm: model; without it, they are random.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the grafted network (.safetensors).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Put gates into a network that was trained without them, and prove that it computes what it did.

    Examples:

      excite graft timm:resnet50 --gate se --dry-run

      excite graft runs/my-run --images photos/ --out grafted.safetensors

      excite graft runs/my-run --gate ge --option variant=theta --option extent=4 --at layer3 --at layer4

      excite graft timm:resnet50 --weights resnet50.safetensors --gate eca --out grafted.safetensors
    """
    from excite.console import Display, ProgressBar, make_table
    from excite.grafting.command import run as run_graft

    display = Display()

    def show(plan: Any) -> None:
        columns = [("place", "place", ""), ("channels", "channels", "d"), ("map", "map", "")]
        columns += [("parameters", "new parameters", ",d"), ("what", "gate", "")]
        display.table(make_table(plan.rows(), columns))
        display.message(f"{plan.sentence}; {plan.added:,} new parameters")
        for note in plan.notes:
            display.message(note)

    with ProgressBar() as progress:
        result = run_graft(
            source,
            gate=gate,
            at=at or [],
            init=init,
            options=_options_given(option or []),
            dry_run=dry_run,
            images=images,
            weights=weights,
            out=out,
            force=force,
            say=progress.beside(_teller(display, as_json)),
            show=(lambda plan: None) if as_json else progress.beside(show),
            progress=progress,
        )
    if as_json:
        print_json(result)


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a .safetensors file.")],
    format: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help="onnx, openvino or pt2.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Images to prove it on: data.part=test, data.root=PATH.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The artefact.  [default: beside the weights]", show_default=False),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to int8, gates in float; with the gates, too, to compare.")
    ] = False,
    int8_gates: Annotated[
        bool, typer.Option("--int8-gates", help="The same, but write the one with quantised gates.")
    ] = False,
    calibrate: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images for --int8.  [default: the run's training images]")
    ] = None,
    verify: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images to prove it on.  [default: the run's validation images]")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="At most so many of them; 0: all.")] = 2000,
    input_kind: Annotated[
        str, typer.Option("--input", metavar="KIND", help="uint8: images of any size; float: prepared ones, 0 to 1.")
    ] = "uint8",
    opset: Annotated[int, typer.Option(min=18, help="Of ONNX.")] = 20,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of logits, in units of the largest logit.")
    ] = 1e-3,
    max_drop: Annotated[float, typer.Option(min=0, metavar="POINTS", help="Top-1 that int8 may lose.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a network as one file that runs without this package, proven to compute the same, or nothing.

    Examples:

      excite export runs/my-run --format onnx

      excite export runs/my-run --format openvino --int8 --out model.int8.xml

      excite export runs/my-run --format onnx --int8-gates --calibrate photos/train --verify photos/val

      excite export model.safetensors --format pt2 --verify photos/ --input float
    """
    from excite.console import Display, ProgressBar, make_table
    from excite.export import export as run_export

    display = Display()
    with ProgressBar() as progress:
        result = run_export(
            source,
            format,
            overrides or [],
            out=out,
            int8=int8,
            int8_gates=int8_gates,
            calibrate=calibrate,
            verify=verify,
            images=images,
            input=input_kind,  # type: ignore[arg-type]
            opset=opset,
            tolerance=tolerance,
            max_drop=max_drop,
            force=force,
            say=progress.beside(_teller(display, as_json)),
            progress=progress,
        )
    if as_json:
        print_json(result)
        return
    rows = [{**row, "what": f"{'-> ' if row['written'] else ''}{row['what']}"} for row in result["rows"]]
    columns = [("what", "what", ""), ("largest_difference", "logits differ by up to", ".2g")]
    columns += [("agreement", "same top-1 %", ".2f"), ("top1", "acc@top1", ".2f")]
    columns += [("ms_1", "ms, batch 1", ".2f"), ("ms_16", "ms, batch 16", ".2f")]
    display.table(make_table(rows, columns))
    display.message(result["timed"])
    display.message(f"{result['artefact']}  {result['bytes'] / 1e6:.2f} MB  (docs/export.md: how to run it)")


@app.command()
def prune(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a .safetensors file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Other images: data.root=PATH, data.part=test ...", show_default=False
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="Top-1 that may be lost, in percentage points.")
    ] = 0.0,
    tolerance: Annotated[float, typer.Option(min=0, help="A scale this near to its mean is constant.")] = 1e-4,
    calibration: Annotated[int, typer.Option(min=1, help="Training images that the scales are measured on.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Images of a timed batch.")] = 16,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write model.safetensors, prune.json, prune.png into it.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Take gates out, the least useful first: accuracy and time with ever fewer, what they do on average folded in.

    Examples:

      excite prune runs/my-run --out pruned

      excite prune runs/my-run data.root=/other/images --max-drop 0.2 --out pruned
    """
    from excite.console import Display, make_table
    from excite.grafting.prune import prune as run_prune
    from excite.grafting.prune import write

    if out is not None and out.exists():
        raise ExciteError(f"{out} exists already; name a new folder")
    display = Display()
    result = run_prune(
        source,
        overrides,
        tolerance=tolerance,
        max_drop=max_drop,
        calibration=calibration,
        batch=batch,
        device=device,
        say=_teller(display, as_json),
    )
    if out is not None:
        write(result, out, source, _teller(display, as_json))
    if as_json:
        print_json(result.to_dict())
        return
    rows = [
        {**row, "place": ("-> " if i == result.chosen else "") + (row["place"] or "as it was")}
        for i, row in enumerate(result.to_dict()["points"])
    ]
    columns = [("place", "taken out", ""), ("gates", "gates left", "d"), ("effect", "worth alone", "+.2f")]
    columns += [
        ("top1", "acc@top1", ".2f"),
        ("loss", "loss", ".4f"),
        ("ms", f"ms/{batch} images, {result.timed}", ".2f"),
    ]
    display.table(make_table(rows, [*columns, ("parameters", "parameters", ",d")]))
    if out is not None:
        display.message(f"{out}/: model.safetensors (the row with the arrow), prune.json, prune.png")


def _teller(display: "Display", as_json: bool) -> Callable[[str], None]:
    """Where sentences go: to the terminal, or, so that standard output is JSON alone, to standard error."""
    return tell if as_json else display.message


def _options_given(words: list[str]) -> dict[str, Any]:
    """NAME=VALUE, the values as in a recipe. Raises ExciteError where a word is of another form."""
    from excite.recipe import parse_yaml

    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ExciteError(f"--option {shown(word)} is not of the form NAME=VALUE (for example reduction=8)")
        options[name] = parse_yaml(text, f"the value of --option {shown_text(name)}")
    return options


@app.command()
def explain(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a .safetensors file.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE|FOLDER|GLOB|KEY=VALUE]...",
            help="Images to explain one by one; other data, such as data.root=PATH.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Other data; short for data.root=PATH.")] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Validation images to look at (class-balanced); 0: only the images named.")
    ] = 2000,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder (default: explain-NAME here).")
    ] = None,
    classes: Annotated[list[str] | None, typer.Option("--class", help="Draw this class; may be repeated.")] = None,
    gates: Annotated[list[str] | None, typer.Option("--gate", help="Draw this gate; may be repeated.")] = None,
    ablation: Annotated[
        str, typer.Option(help="full: an evaluation with each gate fixed at its mean; estimate: one pass; off.")
    ] = "full",
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Time the network without each gate.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Images of a timed pass.")] = 16,
    max_drop: Annotated[
        float, typer.Option(min=0, metavar="POINTS", help="Top-1 that the gates that could go may cost together.")
    ] = 0.1,
    target: Annotated[str | None, typer.Option(help="Grad-CAM for this class (default: the most likely).")] = None,
    layer: Annotated[str | None, typer.Option(help="Grad-CAM on this module (default: the last map).")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show for an image.")] = 5,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto (what it was trained with), fp32, bf16 or fp16.")] = "auto",
    as_json: Json = False,
) -> None:
    """Show what the gates do: scales by class and depth, which gates matter, and what each did to an image.

    Examples:

      excite explain runs/my-run

      excite explain runs/my-run photo.jpg --images 500 --out explained

      excite explain model.safetensors data.root=/other/images --class cat --class dog --ablation estimate --json
    """
    from excite.console import Display, ProgressBar
    from excite.explain.command import run as run_explain
    from excite.explain.command import show

    with ProgressBar() as progress:
        result, folder = run_explain(
            source,
            words or [],
            data,
            out,
            limit=images,
            drawn_classes=classes or [],
            drawn_gates=gates or [],
            ablation=ablation,
            timing=timing,
            batch=batch,
            max_drop=max_drop,
            target=target,
            layer=layer,
            top_k=top_k,
            device=device,
            precision=_check_precision(precision) or "auto",
            progress=progress,
        )
    if as_json:
        print_json({**result.to_dict(), "folder": str(folder)})
    else:
        show(result, folder, Display())
    if result.images and result.not_finite == result.images:
        raise ExciteError(f"none of {result.images:,} images has finite logits, so nothing here explains the network")
    if result.bad:
        raise ExciteError("; ".join(f"{path}: {reason}" for path, reason in result.bad))


@app.command()
def compare(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT... [KEY=VALUE]...",
            help="Two or more; then other data for all, such as data.root=PATH.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="The page; a CSV goes beside it.  [default: compare.html]", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN", help="What the others are compared with (default: the first).")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="NAME,...", help="What to call each run.")] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write every figure as PNG and SVG.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; without it, what each network was trained in.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Compare trained networks on the same images: differences with intervals, McNemar's test, recipes, curves.

    Examples:

      excite compare runs/my-seresnet runs/my-resnet

      excite compare runs/a runs/b runs/c --labels none,se,ge --baseline none --out gates.html --figures gates

      excite compare runs/a model.safetensors data.root=/other/images --json
    """
    from excite.compare.command import run as run_comparison
    from excite.compare.command import show
    from excite.console import Display, ProgressBar

    with ProgressBar() as progress:
        result, written = run_comparison(
            words or [],
            out=out,
            figures=figures,
            force=force,
            labels=None if labels is None else labels.split(","),
            baseline=baseline,
            confidence=confidence,
            device=device,
            precision=_check_precision(precision),
            progress=progress,
        )
    if as_json:
        print_json({**result.to_dict(), "files": [str(path) for path in written]})
    else:
        show(result.to_dict(), written, Display())
    if dead := [r["label"] for r in result.found["rows"] if r["not_finite"] and r["not_finite"] == r["images"]]:
        raise ExciteError(f"for none of the images has {' or '.join(dead)} finite logits: there is nothing to compare")


@app.command()
def report(
    source: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a .safetensors file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Other images: data.root=PATH, data.part=test; or report.KEY=VALUE.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page.  [default: report.html in the run folder]")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write every figure as PNG and SVG.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="At most so many validation images (class-balanced).  [default: all]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Robustness and gates on 200 images, severities 1, 3 and 5 only.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a trained network; its numbers go to results.json, too.

    Accuracy with its interval, curves, confusion matrix, classes, calibration, most confident mistakes, robustness,
    gates, speed, and how to reproduce it. `excite train` writes it at the end of a run (report.write=false: not).

    Examples:

      excite report runs/my-run

      excite report runs/my-run data.root=/other/images --quick --out report.html

      excite report model.safetensors --images 500 --figures figures --json
    """
    from excite.console import Display, ProgressBar
    from excite.report.build import report as write_report

    with ProgressBar() as progress:
        numbers, path = write_report(
            source,
            overrides or [],
            out=out,
            figures=figures,
            images=images,
            quick=quick,
            device=device,
            progress=progress,
        )
    accuracy, calibration, robust = numbers["accuracy"], numbers["calibration"], numbers["robustness"]
    not_finite = numbers["about"]["warning"], accuracy["not_finite"] < accuracy["images"]
    if as_json:
        print_json({**numbers, "file": str(path)})
        _tell_not_finite(*not_finite)
        return
    lines = [
        f"top-1 {accuracy['top1']:.2f} % (95 %: {accuracy['top1_low']:.2f} to {accuracy['top1_high']:.2f}) of "
        f"{accuracy['images']:,} images ({numbers['about']['measured']})"
        + ("" if calibration["ece"] is None else f", calibration error {calibration['ece']:.2f} %"),
        *([f"under corruptions {robust['mean_top1']:.2f} % of {robust['images']:,} images"] if robust else []),
        *numbers["about"]["notes"],
        f"{path}  {path.stat().st_size / 1e6:.2f} MB",
    ]
    for line in lines:
        Display().message(line)
    _tell_not_finite(*not_finite)


@app.command()
def models(
    pattern: Annotated[
        str, typer.Argument(help='A pattern, such as "*seresnet50*".', autocompletion=_complete_model)
    ] = "*",
    as_json: Json = False,
) -> None:
    """List the models: parameters, GMACs, input size, gate, published accuracy with its source.

    Examples:

      excite models "*seresnet*"

      excite models "*50*" --json
    """
    from excite.errors import nearest
    from excite.models.catalog import list_models

    names = list_models(pattern)
    if not names:
        hint = nearest(pattern.strip("*"), list_models())
        raise ExciteError(f"no model matches {pattern!r}{hint}")
    from excite.console import Display, make_table
    from excite.models.sizes import list_sizes

    rows = list_sizes(names)
    if as_json:
        print_json(rows)
        return
    shown = [
        {
            **row,
            "params_m": row["params"] / 1e6,
            "input": "x".join(map(str, row["input_size"])),
            "published": "; ".join(_published(p) for p in row["published"]) or None,
        }
        for row in rows
    ]
    columns = [
        ("name", "model", ""),
        ("params_m", "params(M)", ".2f"),
        ("gmacs", "GMACs", ".3f"),
        ("input", "input", ""),
    ]
    Display().table(
        make_table(shown, [*columns, ("gate", "gate", ""), ("published", "published top-1/top-5 (source)", "")])
    )


def _complete_gate(incomplete: str) -> list[str]:
    from excite.gates import list_gates

    return [name for name in list_gates() if name.startswith(incomplete)]


@app.command()
def gates(
    name: Annotated[
        str | None,
        typer.Argument(help="Tell all about this gate.", autocompletion=_complete_gate, show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the gates: paper, what each sees and scales, parameters, multiply-adds, passes; or describe one.

    Examples:

      excite gates

      excite gates cbam

      excite gates --json
    """
    from excite.gates.summary import describe_gate, summarise

    if name is None:
        rows = summarise()
        print_json(rows) if as_json else _show_gates(rows)
    else:
        gate = describe_gate(name)
        print_json(gate) if as_json else _show_gate(gate)


def _show_gates(rows: list[dict[str, Any]]) -> None:
    from excite.console import Display, make_table

    display, (channels, height, width) = Display(), rows[0]["map"]
    display.table(
        make_table(
            [{**row, "paper": _citation(row["paper"])} for row in rows],
            [
                ("gate", "gate", ""),
                ("paper", "paper", ""),
                ("squeeze", "sees", ""),
                ("scales", "scales", ""),
                ("parameters", "parameters", ""),
                ("params", f"at C={channels}", ",d"),
                ("macs", f"multiply-adds {channels}x{height}x{width}", ",d"),
                ("passes", "extra passes", "d"),
            ],
        )
    )
    display.message("extra passes: reads and writes of the map that a training step makes more than without the gate")
    display.message('one of them: excite gates NAME; in a network: excite train RECIPE "model.options={gate: NAME}"')
    display.message("selective kernels (SK) are no gate but a kind of block: create_model(..., block_conv='sk')")


def _citation(paper: str | None) -> str | None:
    """What a line has room for: the first author, and where to find it."""
    if paper is None:
        return None
    authors, _, rest = paper.partition(": ")
    place = rest.rsplit(", ", 1)[-1].removeprefix("arXiv ")
    return f"{authors.split(', ')[0]} et al., {place}"


def _show_gate(gate: dict[str, Any]) -> None:
    from excite.console import Display, make_table

    display = Display()
    display.message(f"{gate['name']}: {gate['title'] or 'a gate without a data sheet'}")
    if gate["paper"]:
        display.message(gate["paper"])
    for form in gate["forms"]:
        channels, height, width = form["map"]
        display.message("")
        display.message(f"{form['gate']}: scale = {form['formula']}")
        facts = [
            ("sees", form["squeeze"]),
            ("scales", form["scales"]),
            ("parameters", f"{form['parameters']} ({form['params']:,} at {channels}x{height}x{width})"),
            ("multiply-adds", f"{form['macs']:,} at {channels}x{height}x{width}"),
            ("extra passes", f"{form['passes']} over the map in a training step"),
            ("fused", "with batch norm, addition and ReLU" if form["fused"] else "no, it sees more than the means"),
        ]
        for what, value in facts:
            display.message(f"  {what:<14}{value}")
    if gate["options"]:
        rows = [{**row, "default": to_json(row["default"])} for row in gate["options"]]
        columns = [("option", "option", ""), ("default", "default", ""), ("meaning", "what it is", "")]
        display.message("")
        display.table(make_table(rows, columns))
    display.message("every gate also has the option identity: true makes a fresh one a factor of exactly 1")
    for line in ["", *gate["notes"].splitlines()]:
        display.message(line)


def _published(entry: dict[str, Any]) -> str:
    numbers = "/".join(f"{entry[key]:.2f}" for key in ("top1", "top5") if entry.get(key) is not None)
    return f"{numbers} ({entry['source']}{'' if entry.get('confirmed', True) else ', unconfirmed'})"


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this recipe whole.", autocompletion=_complete_recipe, show_default=False)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """List the recipes, or print one.

    Examples:

      excite recipes

      excite recipes cifar10-seresnet20 > mine.yaml

      excite recipes --schema > excite-recipe.schema.json
    """
    from excite.recipe import json_schema, list_recipes, load_recipe, recipe_text

    if schema:
        show(json_schema().rstrip("\n"))
        return
    if name is not None:
        if as_json:
            print_json(load_recipe(name).model_dump(mode="json"))
        else:
            show(recipe_text(name)[0].rstrip("\n"))
        return
    rows = []
    for each in list_recipes():
        recipe = load_recipe(each)
        first = recipe_text(each)[0].split("\n", 1)[0].lstrip("# ").removeprefix(f"{each}: ")
        rows.append({"recipe": each, "model": recipe.model.name, "epochs": recipe.train.epochs, "what": first})
    if as_json:
        print_json(rows)
        return
    from excite.console import Display, make_table

    columns = [("recipe", "recipe", ""), ("model", "model", ""), ("epochs", "epochs", "d"), ("what", "what", "")]
    Display().table(make_table(rows, columns))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"excite {metadata.version('excite')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A fault of ours, with its place; the names in it are no less other people's."""
    tell_lines("".join(traceback.format_exception(kind, error, trace)))


def main() -> None:
    """Entry point: a user's mistake becomes one sentence on standard error and a non-zero exit status."""
    leave_quickly()
    make_children_safe()
    sys.excepthook = _show_traceback
    try:
        app()
    except Exception as error:
        if is_one_of_several():
            from excite.training.launch import tell_and_end

            tell_and_end(error)
        if isinstance(error, BrokenPipeError):  # `excite models | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if not isinstance(error, ExciteError):
            raise
        # A run that was asked to stop has an exit status of its own, and made no error.
        status = getattr(error, "exit_status", None)
        tell(error if status else f"error: {error}")
        sys.exit(status or 1)
