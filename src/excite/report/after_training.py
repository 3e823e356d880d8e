"""The report that ends a training."""

from pathlib import Path

from excite.console import Display, ProgressBar
from excite.errors import ExciteError
from excite.storage import left_behind, upload_missing, uploads_to
from excite.text import tell


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
