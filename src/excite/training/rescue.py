"""What a run has reached is saved when it cannot go on for a reason that is not its own: workers, processes, memory.

One place for all such reasons, see :class:`Rescue`.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from excite.data.watched import LoaderFailed
from excite.errors import ExciteError
from excite.files import WriteFailed
from excite.recipe import TrainConfig
from excite.runtime.device import is_out_of_memory, needed_memory
from excite.training import launch
from excite.training.precision import BufferGuard
from excite.training.reporting import NonFiniteLoss
from excite.training.setup import Run
from excite.weights.locate import saved_steps


class Rescue:
    """Context of a training. When the images can no longer be loaded (:class:`LoaderFailed`), a file can no longer be
    written (:class:`WriteFailed`) or another process of the job is gone, the first process saves the last step that was
    done, and the error says so.

    An evaluation changes nothing, so whatever ends one, the step before it is saved. A run that is resumed there owes
    the evaluation (:attr:`Run.owes_evaluation`), and begins with it.

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

    @contextmanager
    def nothing_yet(self) -> Iterator[None]:
        """Context before the first step: what an error in it leaves is not what the run starts from, nor saved."""
        save, self._save = self._save, None
        yield
        self._save = save

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
        elif self._run.owes_evaluation and isinstance(error, Exception) and not isinstance(error, NonFiniteLoss):
            self._add(error, self._rescued())
        elif is_out_of_memory(error):  # of a step that broke off in the middle nothing may be saved
            with suppress(ExciteError):  # what is being written may be the last good state
                self._run.saver.wait()
            raise ExciteError(_of_a_step(self._run.recipe.train, error, _last(self._run.folder))) from error

    def _add(self, error: Exception, clause: str) -> None:
        """Have an error of an evaluation say what was saved. One of our own faults keeps its traceback."""
        if isinstance(error, ExciteError):
            error.args = (f"{error}; {clause}",)
        elif is_out_of_memory(error):
            size = self._run.recipe.eval.batch_size
            more = needed_memory(error)
            told = (
                f"the evaluation needs more memory than there is{more}: give a smaller eval.batch_size (it is {size})"
            )
            raise ExciteError(f"{told}; {clause}") from error
        else:
            error.add_note(clause)

    def _rescued(self) -> str:
        """Save, and say what there is now, as a clause."""
        run = self._run
        try:
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


def _of_a_step(config: TrainConfig, error: BaseException, last: str) -> str:
    """What a step that memory did not suffice for says; ``last`` is what is saved."""
    told = f"a step needs more memory than there is{needed_memory(error)}; {last}"
    again = f"begin again with train.grad_accumulation={2 * config.grad_accumulation} or a smaller train.batch_size"
    if config.grad_checkpointing:
        return f"{told}. To need less, {again} (it is {config.batch_size})"
    go_on = "add train.grad_checkpointing=true, at about a third more time a step, or "
    return f"{told}. To need less, {go_on}{again} (it is {config.batch_size})"


#: Refusals that a second file would meet, too.
_LASTING = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS)


def _last(folder: Path) -> str:
    steps = saved_steps(folder)
    if not steps:
        return "nothing was saved before"
    return f"step {steps[-1]} is saved; go on with: excite train --resume {folder}"
