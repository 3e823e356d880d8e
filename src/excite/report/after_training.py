"""``excite train``: a training, and the report that ends it."""

from pathlib import Path

from excite import storage
from excite.choices import parse_duration
from excite.console import Display, ProgressBar
from excite.errors import ExciteError
from excite.recipe import Overrides, Recipe, as_recipe, override_words
from excite.storage import left_behind, upload_missing, uploads_to
from excite.text import tell
from excite.training import loop
from excite.training.choose import recipe_for
from excite.training.results import Results


def train(
    recipe: Recipe | str | Path | None = None,
    overrides: Overrides = (),
    *,
    resume: str | Path | None = None,
    out: str | Path = "runs",
    run_dir: str | Path | None = None,
    time: str | float | None = None,
    quiet: bool = False,
    **changes: object,
) -> Results:
    """Train a network, and leave a run folder with weights, metrics, curves, results and the report.

    Args:
        recipe: a Recipe, the name of a shipped one, a YAML file or a run folder; or a folder of images, for which one
            is chosen; None with ``resume``.
        overrides: ``section.key=value`` strings, as on the command line, or one of them; or values by key.
        resume: a run folder to go on with, by its own recipe where none is given.
        out: folder in which the new run folder is made. Of these three, each may be an address such as ``s3://...``:
            the run is trained in a local folder that is kept copied to it.
        run_dir: the run folder itself: begun if it is new or empty, gone on with if it holds a run.
        time: "20m", "1h30m" or seconds for a new run: as many epochs as fit, at least one.
        quiet: print nothing (``log.txt`` is written all the same).
        changes: more values by key: ``epochs=10``, or a section's, ``data={"root": "photos"}``.

    Returns:
        What ``results.json`` holds: accuracy, speed, size; ``run`` is the path of the run folder. Under torchrun and
        the like, all processes but the first get an empty one.

    Raises:
        ExciteError: one sentence: a wrong recipe, data that cannot be read, a non-finite loss, a full disk ... What
            fails in the report is a sentence on standard error: the run is whole.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved first.
    """
    resume = None if resume is None else storage.local_run(resume)
    name = recipe if recipe is not None else resume
    if name is None:
        raise ExciteError("give a recipe (`excite recipes` lists them), or a run folder to go on with (resume=RUN)")
    words = [*override_words(overrides), *override_words(changes)]
    checked = as_recipe(name, words) if resume is not None else recipe_for(name, words, run_dir=run_dir, quiet=quiet)
    limit = None if time is None else parse_duration(time, "time")
    results = loop.train(checked, resume=resume, out=out, run_dir=run_dir, time_limit=limit, quiet=quiet)
    if results and checked.report.write:  # the first process only
        report_on_run(Path(results["run"]), checked.train.device, quiet=quiet)
    return results


def report_on_run(run: Path, device: str = "auto", *, quiet: bool) -> None:
    """Write the report of a run that has just ended; whatever fails in it is a sentence, for the run is whole.

    Only the first process of a job comes here, and waits for no other one: they may be gone.
    """
    failed = "the report was not written"
    try:
        from excite.report.build import report

        with ProgressBar() as progress:
            _, path = report(run, device=device, progress=progress)
        failed = f"{path} was written, but not uploaded"
        if uploads_to(run) and not left_behind(run):
            upload_missing(run)
        Display(quiet=quiet).message(f"report {path}")
    except (Exception, KeyboardInterrupt) as error:
        reason = str(error) if isinstance(error, ExciteError) else f"{type(error).__name__}: {error}".rstrip(": ")
        tell(f"{failed} ({reason}); the run is whole, try again: excite report {run}")
