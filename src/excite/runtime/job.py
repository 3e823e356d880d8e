"""Who this process is in its job: the only file that asks the environment. Imports nothing heavy.

A *job* is what torchrun, ``accelerate launch``, an MPI launcher or ``excite.training.launch.run_on_this_machine``
started: processes that know their rank and number from the environment. Slurm's own variables (``SLURM_PROCID``,
``SLURM_NTASKS``) make no job: they are also set in a batch script that starts one process only, and Accelerate does not
read them either; under Slurm the processes are torchrun's (docs/scaling.md).
"""

import os
from typing import NamedTuple


class _Names(NamedTuple):
    """The variables in which a launcher tells a process who it is; "" where it has none."""

    rank: str
    world: str
    local_rank: str
    local_world: str


#: The first are those of torch and its launchers; the others are those of the MPI launchers that Accelerate knows.
_LAUNCHERS = (
    _Names("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Names("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Names("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    _Names("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "") if name else ""
    return int(text) if text.isascii() and text.isdigit() else None


def _launcher() -> _Names | None:
    """The launcher that says both, which one of how many; a variable without its partner is a leftover."""
    for names in _LAUNCHERS:
        rank, world = _number(names.rank), _number(names.world)
        if rank is not None and world is not None and rank < world:
            return names
    return None


def in_job() -> bool:
    """Whether a launcher started this process (as the only one, perhaps)."""
    return _launcher() is not None


def rank() -> int:
    """This process's number in its job; 0 outside of one."""
    names = _launcher()
    return 0 if names is None else _number(names.rank) or 0


def world_size() -> int:
    """How many processes the job has; 1 outside of one."""
    names = _launcher()
    return 1 if names is None else _number(names.world) or 1


def local_rank() -> int:
    """This process's number among those of the job on this machine; 0 where nobody says."""
    return _first("local_rank") or 0


def local_world_size() -> int:
    """How many processes share this machine; 1 where nobody says. Who shares it without a job may say so, too."""
    return _first("local_world") or 1


def _first(what: str) -> int | None:
    names = _launcher()
    asked = _LAUNCHERS if names is None else (names,)
    return next((n for each in asked if (n := _number(getattr(each, what))) is not None), None)


def is_one_of_several() -> bool:
    """Whether this is one of several processes, of which one should speak for all."""
    return world_size() > 1


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
