"""``excite data``: commands about data sets"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excite.commands.beforehand import begin, check_changes, check_data, check_file, check_trained
from excite.commands.common import Device, Json, complete_data_key, complete_run
from excite.errors import ExciteError
from excite.text import counted, print_json

if TYPE_CHECKING:
    from excite.console import Display
    from excite.datacheck.contents import DataNumbers


def complete_words(incomplete: str) -> list[str]:
    """Complete run folders and keys of the ``data`` section."""
    return complete_run(incomplete) + (complete_data_key(incomplete) if incomplete else [])


def check_words(words: list[str] | None) -> None:
    """[ROOT|RUN] [KEY=VALUE]...: one source, which exists; valid changes."""
    from excite.data.root import check_root
    from excite.datacheck.asked import data_recipe, is_network
    from excite.recipe import is_override

    sources = [word for word in words or [] if not is_override(word)]
    changes = [word for word in words or [] if is_override(word)]
    check_changes(changes)
    if len(sources) > 1:
        raise ExciteError(f"give one data set or run, not {len(sources)}: {' and '.join(sources)}")
    if not words:
        raise ExciteError("give a data set or a run, as in: excite data check photos")
    if sources and is_network(sources[0]):
        check_trained(sources[0])
        check_data(sources[0], changes)
    else:
        check_root(data_recipe(sources[0] if sources else None, changes).data)


def check_weights(source: str | None) -> None:
    """--weights: it exists."""
    if source is not None:
        check_trained(source)


def check(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ROOT|RUN] [KEY=VALUE]...",
            help="A folder of images (or other data: data.source=cifar10 ...), or a trained run, whose network then "
            "judges the labels; and changes of the data section.",
            show_default=False,
            callback=check_words,
            autocompletion=complete_words,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page.  [default: data-check.html in the run folder, or here]",
            callback=check_file,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|CHECKPOINT",
            help="Without a run: judge labels and outliers by the features of this network.",
            callback=check_weights,
            autocompletion=complete_run,
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="The most pictures of each finding on the page.")] = 60,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with status 1 if files are broken, or parts share images or groups, for CI."
        ),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Is my data any good? Find broken files, copies, leaks, wrong labels and more, and restate a run's accuracy.

    Writes a page with pictures that you can mark for a CSV of changes. No file of the data is changed.

    Examples:

      excite data check photos

      excite data check runs/my-run --out check.html

      excite data check cifar-10-python.tar.gz data.source=cifar10 --weights runs/my-run --json
    """
    from excite.recipe import is_override

    sources = [word for word in words or [] if not is_override(word)]
    changes = [word for word in words or [] if is_override(word)]
    source = sources[0] if sources else None
    begin(f"checking {source or 'data'}")
    from excite.console import Display, ProgressBar
    from excite.datacheck.build import check_data as run_check

    with ProgressBar() as progress:
        checked = run_check(
            source, changes, weights=weights, out=out, pictures=pictures, device=device, progress=progress
        )
    if as_json:
        print_json({**checked.numbers, "file": str(checked.path)})
    else:
        show_check(checked.numbers, checked.path, Display())
    if strict and checked.fails:
        raise typer.Exit(1)


def check_source(source: str) -> None:
    """SOURCE: a local path exists."""
    from excite.data.root import existing, is_hub, is_pattern
    from excite.storage.address import is_remote

    if not is_hub(source) and not is_remote(source) and not is_pattern(source):
        existing(source)


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images, an archive, a table, shards, hf:owner/name, or other data (data.source=cifar10).",
            callback=check_source,
            show_default=False,
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DESTINATION", help="A new folder, or one half packed.", show_default=False)
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes of the data section, such as data.on_bad_train=stop.",
            show_default=False,
            callback=check_changes,
            autocompletion=complete_data_key,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Resize larger images: the shorter side becomes N pixels."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEGs that are resized.")] = 92,
    shard_mb: Annotated[int, typer.Option(min=1, metavar="N", help="Megabytes of a shard, about.")] = 256,
    as_json: Json = False,
) -> None:
    """Pack images into WebDataset shards (.tar), which disks and networks read faster than many small files.

    Train with them as with a folder. Stopped in the middle, the same command goes on where it was.

    Examples:

      excite data pack photos shards

      excite data pack labels.csv shards --size 256

      excite data pack cifar-10-batches-py shards data.source=cifar10
    """
    begin(f"packing {source}")
    from dataclasses import asdict

    from excite.console import Display, ProgressBar
    from excite.data.pack import Smaller
    from excite.data.pack import pack as run_pack
    from excite.datacheck.asked import data_recipe

    recipe = data_recipe(source, changes or [])
    with ProgressBar() as progress:
        done = run_pack(
            recipe.data,
            destination,
            smaller=None if size is None else Smaller(size, quality),
            shard_mb=shard_mb,
            progress=progress,
        )
    if as_json:
        print_json({**asdict(done), "folder": str(destination)})
        return
    display = Display()
    for note in done.notes:
        display.message(note)
    if done.bad:
        path, reason = done.bad[0]
        display.message(f"{len(done.bad):,} broken images are left out; the first is {path}: {reason}")
    there = "" if done.made == done.shards else f", {done.shards - done.made:,} of which were there already"
    resized = f", {done.smaller:,} resized" if size is not None else ""
    display.message(
        f"{counted(done.images, 'image')} in {counted(done.shards, 'shard')}{there}, {done.bytes / 1e6:,.1f} MB"
        f"{resized}"
    )
    display.message(f"to train with them: excite train {destination}")


def show_check(numbers: "DataNumbers", path: Path, display: "Display") -> None:
    """Print the findings, the worst first."""
    from excite.console import make_table
    from excite.datacheck.words import (
        caveats,
        giveaway_sentences,
        headline,
        noise_sentences,
        restated_table,
        summary_rows,
    )

    display.message(f"{headline(numbers)}.")
    rows = summary_rows(numbers)
    if rows:
        columns = [("title", "finding", ""), ("count", "images", ",d"), ("first", "the first", "")]
        display.table(make_table(rows, columns))
    for finding in numbers["findings"]:
        display.message(f"{finding['sentence']} {finding['advice']}")
    for line in [*noise_sentences(numbers), *giveaway_sentences(numbers)]:
        display.message(line)
    for part in numbers["restated"]:
        head, measure, lines = restated_table(part)
        heads = [
            ("what", head, ""),
            ("images", "images", ",d"),
            ("value", f"{measure} %", ".2f"),
            ("interval", "95 %", ""),
        ]
        display.table(make_table(lines, heads))
    for line in caveats(numbers):
        display.message(line)
    display.message(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
