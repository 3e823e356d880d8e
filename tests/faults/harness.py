"""Runs real processes with a fault in them, and compares what the job gives in the end with an undisturbed one.

A process is forked from a server that has imported everything once (see ``tests.command``): importing PyTorch anew
would take most of the time.
"""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tests.command
from excite.errors import ExciteError
from excite.files import sha256_of
from excite.training.launch import tell_and_end
from excite.weights.locate import EMA, STATE, WEIGHTS, saved_steps, step_folder
from tests.faults import gate
from tests.faults.hooks import NODE, Trap, die, lose_a_worker, lose_the_node, make_read_only, set_trap, turn_gate
from tests.training.jobs import free_port

_context = get_context("forkserver")
#: Seconds after which a process counts as hung. None of them has more than a few seconds of work.
HUNG = 180.0
ACTIONS: dict[str, Callable[[], None]] = {
    "die": die,
    "node": lose_the_node,
    "worker": lose_a_worker,
    "read-only": make_read_only,
    **{mode: partial(turn_gate, mode) for mode in gate.MODES},
}


def import_beforehand(*modules: str) -> None:
    """Import these once, too, for all processes: what the long form would otherwise do most of its time."""
    _context.set_forkserver_preload([*tests.command.PRELOADED, *modules])


@dataclass(frozen=True)
class Fault:
    """What goes wrong: at the ``at``-th tick of ``kind``, in the process of rank ``rank``, ``action`` happens.

    ``at`` 0: nothing, but the ticks are counted.
    """

    kind: str = "file"
    at: int = 0
    action: str = "die"
    rank: int = 0


@dataclass
class Outcome:
    """How a job of one or several processes ended.

    Attributes:
        statuses: exit status of each rank; -9: killed; 1: ended by one sentence; 70: a traceback.
        said: the last line that the processes printed on standard error.
        ticks: how often the trap was reached, if it was only counted.
        tracebacks: whether a process printed one.
    """

    statuses: list[int] = field(default_factory=list)
    said: str = ""
    ticks: int = 0

    @property
    def hung(self) -> bool:
        return HUNG_STATUS in self.statuses

    tracebacks: bool = False


HUNG_STATUS, TRACEBACK = 124, 70


def run_job(work: Callable[..., object], args: Sequence[object], root: Path, fault: Fault, world: int = 1) -> Outcome:
    """Run ``work(*args)`` in ``world`` processes, each of a group of its own, and wait for them.

    Args:
        work: a function of a module.
        args: its arguments.
        root: file operations below it are counted.
        fault: what goes wrong.
        world: number of ranks.
    """
    port, said = free_port(), Path(tempfile.mkstemp(prefix="faults-", suffix=".said")[1])
    root.with_name(f"{root.name}.pids").unlink(missing_ok=True)
    processes = []
    for rank in range(world):
        order = (work, tuple(args), str(root), fault, rank, world, port, str(said))
        process = _context.Process(target=_process, args=order)
        process.start()
        processes.append(process)
    outcome = Outcome()
    for process in processes:
        process.join(HUNG)
        if process.exitcode is None:
            process.kill()
            process.join()
            outcome.statuses.append(HUNG_STATUS)
        else:
            outcome.statuses.append(process.exitcode)
    lines = said.read_text(encoding="utf-8").splitlines()
    said.unlink()
    outcome.tracebacks = any(line.startswith("Traceback (most recent") for line in lines)
    ticks = [line for line in lines if line.startswith("ticks ")]
    outcome.ticks = int(ticks[-1].split()[1]) if ticks else 0
    outcome.said = next((line for line in reversed(lines) if line and not line.startswith("ticks ")), "")
    return outcome


def _process(
    work: Callable[..., object],
    args: tuple[Any, ...],
    root: str,
    fault: Fault,
    rank: int,
    world: int,
    port: int,
    said: str,
) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    os.setsid()
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    if world > 1:
        sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **sizes}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ[NODE] = f"{root}.pids"
    with open(os.environ[NODE], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    trap = Trap(fault.at, ACTIONS[fault.action])
    if rank == fault.rank:
        set_trap(fault.kind, root, trap)
    status = 0
    try:
        work(*args)
    except (ExciteError, KeyboardInterrupt) as error:
        if world > 1:
            tell_and_end(error)
        print(error, file=sys.stderr, flush=True)
        status = 1
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException as error:
        if world > 1:
            tell_and_end(error)  # as the command does: it knows which error is another rank's fault
        traceback.print_exc()
        status = TRACEBACK
    if rank == fault.rank and not fault.at:
        print(f"ticks {trap.count}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 0 and distributed.is_initialized():
        distributed.destroy_process_group()  # as at the end of any process
    os._exit(status)


def result_of(run: Path) -> dict[str, str]:
    """SHA-256 of what a run gives: its weights, and its last checkpoint with the optimiser's state."""
    last = step_folder(run, saved_steps(run)[-1])
    files = [run / WEIGHTS, *(last / name for name in (WEIGHTS, EMA, STATE) if (last / name).is_file())]
    return {str(file.relative_to(run)): sha256_of(file) for file in files}


def was_killed(status: int) -> bool:
    """Whether SIGKILL ended a process."""
    return status == -signal.SIGKILL
