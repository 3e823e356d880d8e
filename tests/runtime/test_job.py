"""Who a process is in its job, by every launcher's variables."""

import os
import subprocess
import sys

import pytest

from excite.errors import ExciteError
from excite.runtime import device, job, meeting
from excite.training import launch

NAMES = {
    "torch": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "MPICH, Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
}
ALL = [name for names in NAMES.values() for name in names]


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in ALL:
        monkeypatch.delenv(name, raising=False)


def who():
    return job.in_job(), job.rank(), job.world_size(), job.local_rank(), job.local_world_size(), job.is_one_of_several()


@pytest.mark.parametrize("launcher", NAMES)
def test_every_launcher_says_who_this_is(launcher, monkeypatch):
    assert who() == (False, 0, 1, 0, 1, False)
    for name, value in zip(NAMES[launcher], (5, 8, 1, 4), strict=True):
        monkeypatch.setenv(name, str(value))
    assert who() == (True, 5, 8, 1, 4, True)
    assert (launch.rank(), meeting.world_size(), launch.in_job()) == (5, 8, True)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "4"},
        {"RANK": "0"},
        {"RANK": "x", "WORLD_SIZE": "4"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "0", "PMI_SIZE": "4"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"},  # set in a batch script, too
        {"LOCAL_WORLD_SIZE": "four"},
    ],
)
def test_leftovers_make_no_job(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert who() == (False, 0, 1, 0, 1, False)


def test_torch_goes_before_mpi(monkeypatch):
    """torchrun started by mpirun, once a machine."""
    for name, value in {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "RANK": "9",
        "WORLD_SIZE": "16",
    }.items():
        monkeypatch.setenv(name, value)
    assert (job.rank(), job.world_size()) == (9, 16)


def test_mpi_without_a_place_to_meet_is_one_sentence(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ExciteError, match=r"2 processes were started, but MASTER_ADDR and MASTER_PORT are not set"):
        device.make_accelerator("cpu")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "29400x"])
def test_a_port_that_nobody_can_meet_at_is_one_sentence(monkeypatch, port):
    """With port 0, all processes but the first waited for ever."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ExciteError, match=f"MASTER_PORT is '{port}', but must be the number of a free port"):
        device.make_accelerator("cpu")


def test_one_process_of_an_mpi_job_speaks_for_all():
    """Each of them used to."""
    told = []
    for rank in (0, 1):
        values = dict(zip(NAMES["Open MPI"], map(str, (rank, 2, rank, 2)), strict=True))
        done = subprocess.run(
            [sys.executable, "-P", "-m", "excite", "train", "digits-seresnet20", "epochz=1"],
            capture_output=True,
            text=True,
            env={**os.environ, **values},
        )
        assert done.returncode == 1
        told.append(done.stderr)
    assert told[0].startswith("error: rank 0: unknown key 'epochz'")
    assert told[1] == ""


def test_the_environment_is_asked_in_one_place_only():
    home = os.path.dirname(os.path.dirname(job.__file__))
    asking = []
    for folder, _, files in os.walk(home):
        for file in files:
            path = os.path.join(folder, file)
            if file.endswith(".py") and path != job.__file__:
                with open(path, encoding="utf-8") as source:
                    text = source.read()
                asking += [(file, name) for name in ALL if f'"{name}"' in text]
    assert asking == []
