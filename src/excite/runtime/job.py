"""The role of this process in its job. This is the only file that reads it from the environment; it imports nothing
heavy.

A *job* is a set of processes started by torchrun, ``accelerate launch``, an MPI launcher or
``excite.training.launch.run_on_this_machine``, which read their rank and number from the environment. Slurm's own
variables (``SLURM_PROCID``, ``SLURM_NTASKS``) do not make a job: they are also set in a batch script that starts a
single process, and Accelerate does not read them, either. Under Slurm, the processes are torchrun's (docs/scaling.md).
"""

import os
from typing import NamedTuple


class _Names(NamedTuple):
    """The variables in which a launcher gives a process its rank and the like; "" if there is none."""

    rank: str
    world: str
    local_rank: str
    local_world: str


#: First those of torch and its launchers, then those of the MPI launchers that Accelerate supports.
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
    """The launcher that sets both rank and number; a variable without its partner is a leftover."""
    for names in _LAUNCHERS:
        rank, world = _number(names.rank), _number(names.world)
        if rank is not None and world is not None and rank < world:
            return names
    return None


def in_job() -> bool:
    """Whether a launcher started this process (possibly as the only one)."""
    return _launcher() is not None


def rank() -> int:
    """The rank of this process in its job; 0 outside a job."""
    names = _launcher()
    return 0 if names is None else _number(names.rank) or 0


def world_size() -> int:
    """Number of processes in the job; 1 outside a job."""
    names = _launcher()
    return 1 if names is None else _number(names.world) or 1


def local_rank() -> int:
    """The rank of this process among those of the job on this machine; 0 if unknown."""
    return _first("local_rank") or 0


def local_world_size() -> int:
    """Number of processes that share this machine; 1 if unknown. Processes without a job may set it, too."""
    return _first("local_world") or 1


def _first(what: str) -> int | None:
    names = _launcher()
    asked = _LAUNCHERS if names is None else (names,)
    return next((n for each in asked if (n := _number(getattr(each, what))) is not None), None)


def is_one_of_several() -> bool:
    """Whether this is one of several processes, only one of which should report."""
    return world_size() > 1


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
