"""``excite train``: train a network, then write the report."""

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
from excite.weights.locate import join_step, split_step


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
    """Train a network and write a run folder with weights, metrics, curves, results and the report.

    Args:
        recipe: a Recipe, the name of a shipped one, a YAML file or a run folder; or a folder of images, for which a
            recipe is chosen. May be None with ``resume``.
        overrides: one or several ``section.key=value`` strings, as on the command line; or a mapping of keys to values.
        resume: a run folder to resume, by default with its own recipe. ``RUN@STEP``, or a checkpoint folder of it,
            resumes from that step; later checkpoints are kept aside.
        out: folder in which to create the run folder. ``resume``, ``out`` and ``run_dir`` may be addresses such as
            ``s3://...``: the run is then trained in a local folder that is continuously copied there.
        run_dir: the run folder itself: started if it is new or empty, resumed if it contains a run.
        time: "20m", "1h30m" or seconds, for a new run: train for as many epochs as fit, at least one.
        quiet: print nothing (``log.txt`` is written anyway).
        changes: further overrides as keyword arguments: ``epochs=10``, or a section, ``data={"root": "photos"}``.

    Returns:
        The contents of ``results.json``: accuracy, speed, size; ``run`` is the path of the run folder. Under torchrun
        and similar launchers, all processes but the first get an empty dict.

    Raises:
        ExciteError: a wrong recipe, data that cannot be read, a non-finite loss, a full disk ... An error in the report
            is only printed on standard error, because the run is complete.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved first.
    """
    begun: Path | None = None
    if resume is not None:
        where, step = split_step(str(resume))
        begun = storage.local_run(where)
        resume = join_step(begun, step)
    name = recipe if recipe is not None else begun
    if name is None:
        raise ExciteError("give a recipe (`excite recipes` lists them), or a run folder to resume (resume=RUN)")
    words = [*override_words(overrides), *override_words(changes)]
    checked = as_recipe(name, words) if resume is not None else recipe_for(name, words, run_dir=run_dir, quiet=quiet)
    limit = None if time is None else parse_duration(time, "time")
    results = loop.train(checked, resume=resume, out=out, run_dir=run_dir, time_limit=limit, quiet=quiet)
    if results and checked.report.write:  # the first process only
        report_on_run(Path(results["run"]), checked.train.device, quiet=quiet)
    return results


def report_on_run(run: Path, device: str = "auto", *, quiet: bool) -> None:
    """Write the report of a run that has just finished; an error is only printed, because the run is complete.

    Called in the first process of a job only; it does not wait for others, which may have ended.
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
        tell(f"{failed} ({reason}); the run is complete, try again: excite report {run}")
