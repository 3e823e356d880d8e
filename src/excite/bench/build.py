"""`excite bench`: from models, or a recipe, to rows."""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, final

import excite
from excite.bench.report import Row, append_csv, check_csv, make_rows
from excite.bench.runner import run_in_turns, run_profile
from excite.bench.settings import Setting, Several, settle
from excite.errors import ExciteError
from excite.recipe import Recipe, as_recipe
from excite.runtime import git
from excite.runtime.job import rank, world_size
from excite.text import tell

if TYPE_CHECKING:
    from excite.bench.pipeline import Pipeline
    from excite.bench.profile import Profile


@final
class Measured(TypedDict):
    """What ``excite bench --json`` prints: a row for each setting, and with ``profile`` what each trace shows.

    Attributes:
        rows: those that could not be measured have an ``error``.
        profiles: file of a trace -> the most expensive operators and the floors in it.
        unprofiled: why a row has no trace, a sentence each.
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
    """Measure speed and memory, each row in a process of its own, in rounds that take turns.

    Args:
        models: models of ours, ``timm:NAME``, ``mindcv:NAME``, with options of a row behind commas if need be; with
            ``data`` changes to the recipe.
        train: time training steps; False: forward passes.
        batch, image_size, precision, compile_mode: a value, or several in a list or separated by commas: every
            combination is a row.
        channels_last, device, threads: of all rows.
        rounds: how often each row is measured.
        warm_up, steps, seconds: of a round; see :class:`~excite.bench.settings.Setting`.
        csv: a file that the rows are appended to.
        profile: a folder for a trace of every row.
        data: a recipe: measure its input pipeline, its training step, and both together, instead.
        say: gets a sentence now and then on how far it is.

    Returns:
        The rows; with ``data`` the parts of the recipe's training. Under a launcher, those of the first process.

    Raises:
        ExciteError: no such model, an option that is none, or data that cannot be read.
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
    """Measure every setting; in all processes of a job, of which the first says how far it is.

    Args:
        settings: the rows.
        rounds: how often each is measured, in turns.
        csv: file that the rows are appended to.
        profile: folder that gets a trace of every row.
        say: see :func:`bench`.

    Raises:
        ExciteError: ``csv`` holds something else.
    """
    first = rank() == 0
    if profile is not None and world_size() > 1:
        raise ExciteError("--profile is for one process: run it without torchrun")
    if csv is not None and first:
        check_csv(csv)
    report = say if first else _keep_quiet
    with tempfile.TemporaryDirectory(prefix="excite-bench-") as cache:
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
    """Trace file -> most expensive operators and floors, of every row that could be measured; and what went wrong."""
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
        same = sum(Path(trace).name.startswith(f"{name}.") for trace in found)  # by what names do not tell: threads ...
        trace = folder / (f"{name}.{same + 1}.json" if same else f"{name}.json")
        answer = run_profile(setting, trace, cache)
        if "error" in answer:
            failed.append(f"{setting.name}: {answer['error']}")
        else:
            found[str(trace)] = answer
    return found, failed


def source_version() -> str:
    """The version of excite, with the commit where it runs from a checkout ("+" if that was changed since)."""
    home = Path(excite.__file__).parent
    # An environment may lie inside of somebody's repository, whose commit says nothing about the package.
    found = git.checkout(home, only=True) if git.knows(home, "__init__.py") else None
    if found is None:
        return excite.__version__
    return f"{excite.__version__}-{found.commit[:10]}" + ("+" if found.changed else "")
