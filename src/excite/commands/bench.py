"""``excite bench``"""

from pathlib import Path
from typing import Annotated

import typer

from excite.commands.common import Device, Json, complete_model, complete_recipe
from excite.errors import ExciteError


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL[,OPTION=VALUE]...",
            help="Models of ours, timm:NAME, mindcv:NAME; with --data: changes to the recipe, such as data.workers=4.",
            autocompletion=complete_model,
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
        typer.Option(
            metavar="RECIPE",
            autocompletion=complete_recipe,
            help="Measure a recipe's input pipeline, its step, and both together.",
        ),
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
    from excite.bench.build import bench_data, bench_models
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
