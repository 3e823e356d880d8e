"""The command line: name -> function. Everything heavy is imported inside the functions, so that --help is instant."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from excite.errors import ExciteError

app = typer.Typer(
    name="excite",
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
    if as_json:
        _print_json(results)
    else:
        _show_results(results)
    from excite.storage import left_behind

    if missing := left_behind(Path(results["run"])):
        raise ExciteError(missing)


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
    ("recipe", "recipe", ""),
]


def _show_results(results: dict[str, Any]) -> None:
    from excite.training.display import Display, make_table

    display = Display()
    if display.console.width >= 150:
        display.table(make_table([results], RESULT_COLUMNS))
    else:  # the same, top to bottom
        rows = [
            {"what": h, "value": "-" if results[k] is None else format(results[k], f)} for k, h, f in RESULT_COLUMNS
        ]
        display.table(make_table(rows, [("what", "", ""), ("value", "", "")]))
    run = Path(results["run"])
    display.message(f"{run}/")
    kinds = [
        ("model.safetensors", "best weights, self-contained: excite validate, excite predict"),
        ("results.json", "the table above and more"),
        ("curves.png", "loss, accuracy and learning rate"),
        ("metrics.jsonl", "the same as numbers"),
        ("recipe.yaml", "everything that decided this run: excite train repeats it"),
        ("environment.json", "versions, device, git state"),
        ("log.txt", "what was printed"),
        ("checkpoints", "to go on with: excite train --resume"),
    ]
    for name, what in kinds:
        if (run / name).exists():
            display.message(f"  {name:<18}{what}")


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
            help="none, se, ge_theta_minus, ge_theta, ge_theta_plus, each with options if need be, such as "
            "se:reduction=8.  [default: these five]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the experiment.  [default: runs/twins-RECIPE]", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with an experiment; the same command again does it, too.")
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
        _print_json(report)
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
        typer.Argument(metavar="[KEY=VALUE]...", help="Other data, such as data.root=PATH.", show_default=False),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also a row for each class.")] = False,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; without it, what the network was trained with.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time; no influence on the result.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a trained network: loss, top-1, top-5, every image exactly once.

    Examples:

      excite validate runs/cifar10-seresnet20-20260101-120000 --per-class

      excite validate model.safetensors data.root=/other/images
    """
    from excite.inference import validate as run_validation
    from excite.training.display import Display, make_table

    display = Display()
    with _progress("evaluating") as advance:
        predictor, result = run_validation(
            source,
            overrides or [],
            device=device,
            precision=_check_precision(precision),
            batch_size=batch_size,
            progress=advance,
        )
    if not predictor.accelerator.is_main_process:
        return
    row = {"model": predictor.meta["model"]["name"], **result.summary(), "precision": predictor.precision}
    rows = result.per_class(predictor.classes)
    if as_json:
        _print_json({**row, "source": source, **({"per_class": rows} if per_class else {})})
        return
    columns = [("model", "model", ""), ("images", "images", "d"), ("loss", "loss", ".4f"), ("top1", "acc@top1", ".2f")]
    display.table(make_table([row], [*columns, ("top5", "acc@top5", ".2f"), ("precision", "precision", "")]))
    if per_class:
        table = [("class", "class", ""), ("images", "images", "d"), ("top1", "top-1 (recall)", ".2f")]
        display.table(make_table(rows, [*table, ("precision", "precision", ".2f")]))


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
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    as_json: Json = False,
) -> None:
    """Classify images: the most likely classes by name. Unreadable images are named, and make the exit status 1.

    Examples:

      excite predict runs/my-run photo.jpg

      excite predict runs/my-run "photos/*.jpg" --json

      excite predict runs/my-run photos/ --grid out.png
    """
    from excite.data.decode import BadImageError
    from excite.inference import Prediction, draw_grid, find_images, load, to_json
    from excite.training.display import Display, make_table

    files = find_images(images)
    predictor = load(source, device)
    found: list[Prediction] = []
    bad: list[str] = []
    with _progress("classifying") as advance:
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
            advance(start + len(part), len(files))
    if as_json:
        print(to_json(found))
    else:
        rows = [{"image": p.path, "top": "  ".join(f"{c} {100 * v:.1f} %" for c, v in p.top)} for p in found]
        Display().table(make_table(rows, [("image", "image", ""), ("top", f"top {top_k}", "")]))
    if grid is not None and found:
        print(f"grid: {draw_grid(found, grid)}", file=sys.stderr)
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

    address, sent = sync_run(run, url)
    if as_json:
        _print_json({"run": run, "url": address, "uploaded": sent})
    else:
        print(f"{address} has all of {run}: {sent} file(s) uploaded")


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

    if data is not None:
        of_models = {
            "--batch": batch,
            "--image-size": image_size,
            "--precision": precision,
            "--compile": compile_mode,
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
    given = {"batch": batch, "image_size": image_size, "precision": precision, "compile": compile_mode}
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
        progress=lambda line: print(line, file=sys.stderr),
    )
    if as_json:
        _print_json(result)
        return
    from excite.training.display import Display

    display = Display()
    for table in plan_tables(result):
        display.table(table)
    for note in result["notes"]:
        display.message(note)


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
    from excite.models import describe
    from excite.training.display import Display, make_table

    rows = []
    with _progress("counting") as advance:
        for name in names:
            rows.append(describe(name))
            advance(len(rows), len(names))
    if as_json:
        _print_json(rows)
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
        print(json_schema(), end="")
        return
    if name is not None:
        if as_json:
            _print_json(load_recipe(name).model_dump(mode="json"))
        else:
            print(recipe_text(name)[0], end="")
        return
    rows = []
    for each in list_recipes():
        recipe = load_recipe(each)
        first = recipe_text(each)[0].split("\n", 1)[0].lstrip("# ").removeprefix(f"{each}: ")
        rows.append({"recipe": each, "model": recipe.model.name, "epochs": recipe.train.epochs, "what": first})
    if as_json:
        _print_json(rows)
        return
    from excite.training.display import Display, make_table

    columns = [("recipe", "recipe", ""), ("model", "model", ""), ("epochs", "epochs", "d"), ("what", "what", "")]
    Display().table(make_table(rows, columns))


class _progress:
    """A progress bar on standard error, where that is a terminal; ``advance(done, total)`` moves it."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


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


def main() -> None:
    """Entry point: a user's mistake becomes one sentence on standard error and a non-zero exit status."""
    try:
        app()
    except Exception as error:
        if _in_job():
            from excite.training.launch import tell_and_end

            tell_and_end(error)
        if isinstance(error, BrokenPipeError):  # `excite models | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if not isinstance(error, ExciteError):
            raise
        # A run that was asked to stop has an exit status of its own, and made no error.
        status = getattr(error, "exit_status", None)
        print(error if status else f"error: {error}", file=sys.stderr)
        sys.exit(status or 1)


def _in_job() -> bool:
    """Whether this is one of several processes, of which one should speak for all."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
