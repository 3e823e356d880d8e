"""`excite bench`: from models, or a recipe, to a table."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, final

import excite
from excite.bench.report import Row, append_csv, check_csv, make_rows
from excite.bench.runner import run_in_turns, run_profile
from excite.bench.settings import Setting, Several, settle
from excite.errors import ExciteError
from excite.owners import scratch_folder
from excite.recipe import Recipe, as_recipe
from excite.runtime import git
from excite.runtime.job import rank, world_size
from excite.text import tell

if TYPE_CHECKING:
    from excite.bench.pipeline import Pipeline
    from excite.bench.profile import Profile


@final
class Measured(TypedDict):
    """The result of ``excite bench``: a row per setting, and with ``profile`` a summary of each trace.

    Attributes:
        rows: the rows; those that could not be measured have an ``error``.
        profiles: path of a trace -> its most expensive operators and floors.
        unprofiled: why rows have no trace, one sentence each.
    """

    rows: list[Row]
    profiles: NotRequired[dict[str, "Profile"]]
    unprofiled: NotRequired[list[str]]


def bench(
    models: str | Sequence[str] = (),
    *,
    train: bool = True,
    batch: Several = None,
    image_size: Several = None,
    precision: Several = None,
    compile_mode: Several = None,
    channels_last: bool = True,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 3,
    warm_up: int | None = None,
    steps: int | None = None,
    seconds: float = 5.0,
    csv: str | Path | None = None,
    profile: str | Path | None = None,
    data: Recipe | str | Path | None = None,
    say: Callable[[str], None] = tell,
) -> "Measured | Pipeline":
    """Measure speed and memory: each row in a separate process, with the rows taking turns.

    Args:
        models: names of excite models, ``timm:NAME``, ``mindcv:NAME``, optionally followed by options of the row,
            separated by commas; with ``data``, changes to the recipe.
        train: time training steps; False: forward passes.
        batch, image_size, precision, compile_mode: one value or several, as a list or separated by commas; every
            combination is a row.
        channels_last, device, threads: settings of all rows.
        rounds: measurements per row.
        warm_up, steps, seconds: length of a round; see :class:`~excite.bench.settings.Setting`.
        csv: a file to append the rows to.
        profile: a folder for a trace of every row.
        data: a recipe, to measure its input pipeline, its training step, and both together instead of models.
        say: called with a line about the progress.

    Returns:
        The rows; with ``data``, the parts of the recipe's training. Under a launcher, the result of the first process.

    Raises:
        ExciteError: there is no such model or option, or the data cannot be read.
    """
    words = [models] if isinstance(models, str) else list(models)
    settings = settle(
        words,
        train=train,
        batch=batch,
        image_size=image_size,
        precision=precision,
        compile_mode=compile_mode,
        channels_last=channels_last,
        device=device,
        threads=threads,
        warm_up=warm_up,
        steps=steps,
        seconds=seconds,
        csv=csv,
        profile=profile,
        data=data,
    )
    if data is not None:
        checked = as_recipe(data, words)
        from excite.bench.pipeline import measure_pipeline

        return measure_pipeline(checked, rounds=rounds, seconds=seconds)
    csv, profile = (None if place is None else Path(place) for place in (csv, profile))
    return bench_models(settings, rounds=rounds, csv=csv, profile=profile, say=say)


def bench_models(
    settings: Sequence[Setting],
    *,
    rounds: int,
    csv: Path | None,
    profile: Path | None,
    say: Callable[[str], None] = tell,
) -> Measured:
    """Measure every setting, in all processes of a job; the first one reports progress.

    Args:
        settings: the rows.
        rounds: measurements per row, in turns.
        csv: a file to append the rows to.
        profile: a folder for a trace of every row.
        say: see :func:`bench`.

    Raises:
        ExciteError: ``csv`` has other columns, or ``profile`` is used with several processes.
    """
    first = rank() == 0
    if profile is not None and world_size() > 1:
        raise ExciteError("--profile works in one process only: run it without torchrun")
    if csv is not None and first:
        check_csv(csv)
    report = say if first else _keep_quiet
    with scratch_folder("bench") as folder:
        cache = str(folder)
        rows = make_rows(settings, run_in_turns(settings, rounds, report, cache), source_version())
        profiles, unprofiled = ({}, []) if profile is None else _profiles(settings, rows, profile, cache)
    if csv is not None and first:
        append_csv(csv, rows)
    found: Measured = {"rows": rows}
    return found if profile is None else {**found, "profiles": profiles, "unprofiled": unprofiled}


def _keep_quiet(line: str) -> None:
    pass


def _profiles(
    settings: Sequence[Setting], rows: Sequence[Row], folder: Path, cache: str
) -> "tuple[dict[str, Profile], list[str]]":
    """Path of a trace -> its profile, for every row that could be measured; and sentences on failures."""
    found: dict[str, Profile] = {}
    failed = []
    for setting, row in zip(settings, rows, strict=True):
        if "error" in row:
            continue
        words = [setting.name, setting.mode, f"b{row['batch']}", str(row["image_size"]), row["precision"]]
        words += [] if setting.channels_last else ["contiguous"]
        words += [] if setting.compile == "off" else [setting.compile]
        words += [] if setting.fused == "auto" else [f"fused-{setting.fused}"]
        words += [] if setting.fused_sgd else ["plain-sgd"]
        name = re.sub(r"[^\w.-]+", "-", "-".join(words))
        same = sum(
            Path(trace).name.startswith(f"{name}.") for trace in found
        )  # settings that are not part of the name: threads ...
        trace = folder / (f"{name}.{same + 1}.json" if same else f"{name}.json")
        answer = run_profile(setting, trace, cache)
        if "error" in answer:
            failed.append(f"{setting.name}: {answer['error']}")
        else:
            found[str(trace)] = answer
    return found, failed


def source_version() -> str:
    """The version of excite; in a checkout also the commit, with "+" if there are uncommitted changes."""
    home = Path(excite.__file__).parent
    # An environment may be inside another repository, whose commit is unrelated to this package.
    found = git.checkout(home, only=True) if git.knows(home, "__init__.py") else None
    if found is None:
        return excite.__version__
    return f"{excite.__version__}-{found.commit[:10]}" + ("+" if found.changed else "")
