"""What a run has reached is saved when it cannot go on for a reason that is not its own: workers, processes.

One place for all such reasons, see :class:`Rescue`.
"""

import errno
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from excite.data.watched import LoaderFailed
from excite.errors import ExciteError
from excite.files import WriteFailed
from excite.training import launch
from excite.training.precision import BufferGuard
from excite.training.run_folder import read_metrics
from excite.training.setup import Run
from excite.weights.locate import saved_steps


class Rescue:
    """Context of a training. When the images can no longer be loaded (:class:`LoaderFailed`), a file can no longer be
    written (:class:`WriteFailed`) or another process of the job is gone, the first process saves the last step that was
    done, and the error says so.

    A step that was broken off by a lost process has changed nothing but the statistics of batch norm: the optimiser
    steps after the last exchange. They are put back, so that a resumed run is the same, bit for bit. On NCCL this is
    never reached: a process waits inside the GPU's queue until it is ended.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._record: Callable[[], None] | None = None
        self._save: Callable[[], None] | None = None
        self._guard: BufferGuard | None = None
        self._kept_at = -1

    def ready(self, record: Callable[[], None], save: Callable[[], None]) -> None:
        """From now on there is something to save.

        Args:
            record: writes the steps since the last line of the metrics. Not called if there are several processes.
            save: writes a checkpoint.
        """
        self._record, self._save = record, save
        run = self._run
        saves = run.accelerator.is_main_process and run.device.type == "cpu"
        launch.expect_rescue(lambda: run.step, saves)
        if self._run.accelerator.num_processes > 1 and self._run.device.type == "cpu":
            self._guard = BufferGuard(self._run.model)
            self._run.net.register_forward_pre_hook(self._keep)

    def _keep(self, *_: object) -> None:
        """Before the forward pass of a step; with gradient accumulation, before its first."""
        if self._guard is not None and self._run.net.training and self._kept_at != self._run.step:
            self._guard.keep()
            self._kept_at = self._run.step

    def __enter__(self) -> "Rescue":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or self._save is None or not self._run.accelerator.is_main_process:
            return
        if isinstance(error, LoaderFailed):
            raise LoaderFailed(f"{error}; {self._rescued()}") from None
        if isinstance(error, WriteFailed):
            self._record = None  # that may be what failed
            again = error.number in _LASTING or not (self._run.folder / "recipe.yaml").is_file()
            raise WriteFailed(
                f"{error}; {_last(self._run.folder) if again else self._rescued()}", error.number
            ) from None
        if launch.is_lost_peer(error):
            with launch.rescuing():
                launch.note_saved(self._rescued())

    def _rescued(self) -> str:
        """Save, and say what there is now, as a clause."""
        run = self._run
        try:
            if not self._owes_evaluation():
                self._write()
        except (ExciteError, RuntimeError, OSError) as error:  # the first error is what matters
            return f"saving step {run.step} failed, too ({error}); {_last(run.folder)}"
        return _last(run.folder)

    def _write(self) -> None:
        assert self._save is not None
        if self._run.accelerator.num_processes == 1:
            if self._record is not None:
                self._record()
        elif self._guard is not None and self._kept_at == self._run.step:
            self._guard.put_back()
        self._save()

    def _owes_evaluation(self) -> bool:
        """Whether the run is at the end of an epoch whose evaluation is due: a checkpoint made now would skip it."""
        run = self._run
        epoch, inside = divmod(run.step, run.steps_per_epoch)
        if inside or not run.step:
            return False
        due = epoch == run.recipe.train.epochs or epoch % run.recipe.eval.every_epochs == 0
        evals = [r["step"] for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "eval"]
        return due and run.step not in evals


#: Refusals that a second file would meet, too.
_LASTING = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS)


def _last(folder: Path) -> str:
    steps = saved_steps(folder)
    if not steps:
        return "nothing was saved before"
    return f"step {steps[-1]} is saved; go on with: excite train --resume {folder}"
