"""Jobs of several processes: how they are started on this machine, and how one failed process ends them all.

A *job* is a set of processes started by torchrun, ``accelerate launch`` or :func:`run_on_this_machine`, which read
their rank from the environment. Nothing heavy is imported until it is needed, so that the command line can ask at once.
"""

import atexit
import json
import multiprocessing.util
import os
import re
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, NotRequired, TypedDict

from excite.children import python_options
from excite.errors import ExciteError, first_line
from excite.files import write_json
from excite.owners import scratch_folder
from excite.recipe import Origin, Recipe
from excite.runtime.job import cores, in_job, local_rank, rank, world_size
from excite.runtime.meeting import JobBoard, board, failure
from excite.runtime.ranks import Ranks
from excite.text import counted, printable, tell, tell_lines
from excite.training.stop import Interrupted

#: Environment variable: the folder in which the processes of :func:`run_on_this_machine` leave their outcome.
OUTCOME = "EXCITE_OUTCOME"
#: Seconds that a process which lost its peers waits for one of them to report why.
GRACE_SECONDS = 5.0
#: Seconds that processes have to save and exit after a SIGTERM or Ctrl-C (torch's 30 s are short for a long step).
SHUTDOWN_SECONDS = 120
_WATCH = "watch for failures"
_rescue_begun, _rescue_expected = threading.Event(), threading.Event()
_ranks: Ranks | None = None


def watch_for_failures() -> None:
    """Exit soon after another process of the job has failed, even in the middle of a collective operation.

    Gloo notices a peer that is gone. NCCL may wait for it until the launcher kills the process (SIGKILL after 30 s).
    Calling this again does nothing.
    """
    notes = board()
    if notes is None or any(thread.name == _WATCH for thread in threading.enumerate()):
        return
    from torch import distributed

    if notes.read(JobBoard.FAILURE) is not None:  # restarted by the launcher, but the failure would only repeat
        _leave_silently()

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            try:
                failed = notes.read(JobBoard.FAILURE) is not None
            except RuntimeError:  # the board is gone, and so is the job
                return
            if failed:
                time.sleep(1.0)  # the process that failed exits by itself
                if _rescue_expected.is_set() and _rescue_begun.wait(GRACE_SECONDS):
                    time.sleep(SHUTDOWN_SECONDS)  # the main thread saves, and ends this process
                _leave_silently()
            if _ranks is not None:
                with suppress(RuntimeError):
                    _ranks.tick()

    thread = threading.Thread(target=watch, daemon=True, name=_WATCH)
    thread.start()

    def leave_group() -> None:  # only reached by a process that ends normally: see tell_and_end
        ended.set()
        thread.join()  # otherwise it could be in the middle of a call when the interpreter shuts down
        if distributed.is_initialized():
            distributed.destroy_process_group()

    atexit.register(leave_group)


def expect_rescue(step: Callable[[], int], saves: bool) -> None:
    """A training has begun in this process of a job.

    Args:
        step: gives the number of steps done; the processes tell each other.
        saves: whether this process will save when another one is lost, and must be given the time.
    """
    global _ranks
    notes = board()
    if notes is not None and world_size() > 1:
        _ranks = Ranks(notes, rank(), world_size(), step)
    if saves:
        _rescue_expected.set()


@contextmanager
def rescuing() -> Iterator[None]:
    """The main thread saves what was reached, although the job has failed."""
    _rescue_begun.set()
    yield


def note_saved(text: str) -> None:
    """Tell what there is to go on with, besides why the job failed: to the launching process, or to the user."""
    outcome = os.environ.get(OUTCOME)
    if outcome:
        write_json(Path(outcome) / "saved.json", {"message": text, "status": 0})
    else:
        tell(f"rank {rank()}: {text}")


def _leave_silently() -> NoReturn:
    _leave(1)


def _leave(status: int) -> NoReturn:
    """Exit now, without torch's tear-down, which may wait for peers that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Release the semaphores of decoding workers, or multiprocessing would complain about them on standard error.
    guard = threading.Timer(5.0, os._exit, (status,))
    guard.daemon = True
    guard.start()
    multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]
    os._exit(status)


def tell_and_end(error: BaseException) -> NoReturn:
    """Exit this process of a job because of ``error``. One process of the job reports it, once, with its rank.

    The others stay silent, whether they met the same error (all read the same recipe) or only lost their peer.
    """
    status = getattr(error, "exit_status", 1)
    if isinstance(error, KeyboardInterrupt):
        status = 130
    elif isinstance(error, Interrupted):
        if rank() == 0:
            _say(error, str(error))
    elif is_lost_peer(error):
        message = _lost(error)
        if _nobody_tells() and _first_to(f"lost-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", message):
            _say(error, f"error: rank {rank()}: {message}")
    else:
        message = str(error) if isinstance(error, ExciteError) else f"{type(error).__name__}: {error}"
        line = f"error: rank {rank()}: {message}"
        if _first_to(JobBoard.FAILURE, line):
            if not isinstance(error, ExciteError):  # a bug of ours: show where it happened
                tell_lines("".join(traceback.format_exception(error)))
            _say(error, line)
        else:
            _report_to_launcher(failure() or line)
    _leave(status)


#: What gloo, NCCL and the sockets below them say when another process does not answer. Some of gloo's errors do not
#: name it.
_LOST = (
    *("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "No route to host"),
    *("Socket Timeout", "Connection timed out", "Application timeout caused pair closure", "Read timeout"),
    "Write timeout",
)


def _lost(error: BaseException) -> str:
    """The sentence about a process that is lost."""
    if _ranks is not None and re.search("time(d )?out", str(error), re.IGNORECASE):
        who = _ranks.suspects() or first_line(error)
        return f"the processes of this job waited too long for each other: {who}"
    return (
        "another process of this job ended without reporting why (killed? out of memory? machine down?): "
        f"{first_line(error)}"
    )


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective operation failed because of another process."""
    if not isinstance(error, RuntimeError):
        return False
    from torch import distributed

    return isinstance(error, distributed.DistError) or any(word in str(error) for word in _LOST)


def _nobody_tells() -> bool:
    notes, deadline = board(), time.monotonic() + GRACE_SECONDS
    while notes is not None and time.monotonic() < deadline:
        try:
            if notes.read(JobBoard.FAILURE) is not None:
                return False
        except RuntimeError:
            break
        time.sleep(0.1)
    return True


def _first_to(name: str, text: str) -> bool:
    """Whether this process is the one to report; without a board, it is the first process of each machine."""
    try:
        notes = board()
        if notes is not None:
            return notes.write_first(name, text)
    except RuntimeError:
        pass
    return local_rank() == 0


def _say(error: BaseException, line: str) -> None:
    """Report to the user, and to the launcher in the form that it reads."""
    outcome = os.environ.get(OUTCOME)
    if outcome:
        kind = "interrupted" if isinstance(error, Interrupted) else "lost" if is_lost_peer(error) else "failed"
        status = getattr(error, "exit_status", 1)
        write_json(Path(outcome) / f"{kind}.json", {"message": line.removeprefix("error: "), "status": status})
        return
    tell(line)
    _report_to_launcher(line)


def _report_to_launcher(line: str) -> None:
    """Leave a sentence for torchrun's closing summary."""
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:  # torchrun shows "py_callstack" in its own summary
        line = printable(line)  # torchrun prints it as it is
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        try:
            write_json(Path(report), {"message": {"message": line, "extraInfo": extra}})
        except ExciteError:  # do not fail while reporting a failure
            return


# --- starting the processes ---------------------------------------------------------------------------------------


def processes_wanted(recipe: Recipe) -> int:
    """Number of processes that ``train.devices`` asks for on this machine; 1 inside a job, which has its own.

    Raises:
        ExciteError: there are fewer accelerators than that.
    """
    devices = recipe.train.devices
    if in_job() or devices == 1:
        return 1
    from excite.runtime.device import count_devices

    kind, count = count_devices(recipe.train.device)
    if devices == "all":
        return 1 if kind == "cpu" else count
    if kind != "cpu" and devices > count:
        raise ExciteError(
            f"train.devices is {devices}, but this machine has {counted(count, 'device')} of type {kind}; use "
            "devices=all"
        )
    return devices


class TrainOrder(TypedDict):
    """Arguments of ``excite.train``."""

    resume: str | None
    out: str
    run_dir: str | None
    time_limit: float | None
    quiet: bool
    until: int | None


class TimeOrder(TypedDict):
    """Arguments of ``steptime.time_steps``."""

    steps: int
    classes: int | None


class Job(TypedDict):
    """What each process does with a recipe (YAML text): train it, or time its steps."""

    recipe: str
    origin: Origin
    train: NotRequired[TrainOrder]
    time_steps: NotRequired[TimeOrder]


def run_on_this_machine(job: Job, processes: int, threads: int | None = None) -> Any:
    """Run ``excite.training.worker`` in ``processes`` processes under torch's elastic launcher, and wait for them.

    Args:
        job: what each process does.
        processes: how many to start.
        threads: threads per process. None: OMP_NUM_THREADS, or if that is not set an equal share of the cores.

    Returns:
        The result of the first process, read from JSON.

    Raises:
        ExciteError: a process failed; the message is its sentence, with its rank.
        Interrupted: a signal arrived, and the processes saved first.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with scratch_folder("job") as folder, _launching(str(folder), processes, threads):
        order = folder / "job.json"
        write_json(order, job)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
        )
        try:
            elastic_launch(config, sys.executable)(*python_options(), "-m", "excite.training.worker", str(order))
        except ChildFailedError as error:
            died = error.get_first_failure()
            raise _outcome(folder, died[0], died[1].exitcode) from None
        except SignalException as error:
            number = int(error.sigval)
            told = _read(folder, "interrupted")
            message = told["message"] if told else f"stopped by {signal.Signals(number).name} before the first step"
            raise Interrupted(message, number) from None
        result = folder / "result.json"
        return json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}


class _Told(TypedDict):
    """What a process leaves for the launching one (:func:`tell_and_end`)."""

    message: str
    status: int


def _read(folder: Path, kind: str) -> _Told | None:
    path = folder / f"{kind}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _outcome(folder: Path, failed_rank: int, status: int) -> ExciteError:
    """The error for the whole job: what a process reported, else how it died, else what the others saw."""
    failed, interrupted, lost, saved = (_read(folder, kind) for kind in ("failed", "interrupted", "lost", "saved"))
    kept = f"; {saved['message']}" if saved else ""
    if failed:
        return ExciteError(failed["message"] + kept)
    if interrupted:
        return Interrupted(interrupted["message"], interrupted["status"] - 128)
    if status < 0:
        name = signal.Signals(-status).name
        why = " (out of memory?)" if name == "SIGKILL" else ""
        return ExciteError(f"rank {failed_rank}: the process was ended by {name}{why}{kept}")
    ended = f"rank {failed_rank}: the process ended with status {status}"
    return ExciteError((lost["message"] if lost else ended) + kept)


@contextmanager
def _launching(scratch: str, processes: int, threads: int | None) -> Iterator[None]:
    """Set threads and signals for the processes to be started; restores everything afterwards."""
    changes = {OUTCOME: scratch, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS)}
    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        # With one OpenMP thread per core in each process, every parallel region would wait for threads without a core.
        changes["OMP_NUM_THREADS"] = str(threads or max(1, cores() // processes))
    before = {name: os.environ.get(name) for name in [*changes, "TORCHELASTIC_SIGNALS_TO_HANDLE"]}
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT) if sys.platform != "win32" else ()
    # The launcher installs handlers for these signals and does not restore the old ones.
    main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers} if main_thread else {}
    os.environ.update(changes)
    try:
        with _quiet_launcher():
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Keep the launcher from logging what the user gets in one sentence anyway."""
    import logging

    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was
