"""What a result was produced with: versions, command, machine, state of the git checkout."""

import platform
import sys
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # the standard library's has no model in pydantic before Python 3.12

from excite.files import read_typed
from excite.runtime import git

PACKAGES = ["excite", "torch", "accelerate", "torchmetrics", "kornia", "safetensors", "pydantic", "numpy", "pillow"]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a run."""
    import torch

    found = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    # With its build (+cpu, +cu130), which some builds leave out of the package's metadata.
    return {**found, "torch": str(torch.__version__)}


@cache
def _version(package: str) -> str:
    """What is installed; looked up once per process, for it takes 5 ms and every checkpoint has it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


class GitState(TypedDict):
    """A commit, and whether the checkout has changes."""

    commit: str
    changed: bool


@with_config(ConfigDict(strict=True, extra="allow"))
class Environment(TypedDict, total=False):
    """The contents of ``environment.json``: where and with what a run was produced."""

    command: str
    started: str
    versions: dict[str, str]
    platform: str
    device: str
    processes: int
    threads: int
    precision: str
    git: GitState | None


def environment(device: str, precision: str, processes: int) -> Environment:
    """Where and with what a run is produced: command, versions, device, git state of the current folder."""
    import torch

    return {
        "command": " ".join(sys.argv),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": platform.platform(),
        "device": device,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "git": git_state(),
    }


def read_environment(path: Path) -> Environment:
    """Read the :func:`environment` of a run. Raises ExciteError if the file is damaged."""
    return read_typed(path, Environment, "delete it to go on without it")


def git_state() -> GitState | None:
    """Commit of the current folder and whether it has changes; None outside a checkout or without git."""

    found = git.checkout(Path())
    return None if found is None else {"commit": found.commit, "changed": found.changed}
