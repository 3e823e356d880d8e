"""The rendezvous of the processes of a job, and the notes that they leave each other besides gradients.

torch's own ``env://`` does not suffice: :func:`meet` explains what goes wrong after a restart.

PyTorch is only imported where it is needed, so that the command line can ask at once.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from excite.errors import ExciteError
from excite.files import to_json
from excite.runtime.job import rank, world_size

#: Seconds that processes wait for each other at the start (torch's own limit for gloo).
MEET_SECONDS = 1800


class JobBoard:
    """Notes that every process of a job can read, kept by the launcher, so that they survive a restart.

    The first process to write a note wins. It is the key-value store of the rendezvous, with its own connection,
    because the process group's may be busy waiting for a peer that is gone.
    """

    FAILURE = "failure"

    def __init__(self, store: Any) -> None:
        self._store = store

    def read(self, name: str) -> str | None:
        """The note, or None if there is none yet."""
        return self._store.get(name).decode().partition(" ")[2] if self._store.check([name]) else None

    def put(self, name: str, text: str) -> None:
        """Write a note, over an earlier one."""
        self._store.set(name, f"- {text}")

    def write_first(self, name: str, text: str) -> bool:
        """Write a note; False if another process was first."""
        mine = f"{uuid.uuid4().hex} {text}"
        return self._store.compare_set(name, "", mine).decode() == mine


_board: JobBoard | None = None


def board() -> JobBoard | None:
    """The board of this job; None outside a job, or if no launcher provides one and rank 0 has not created it yet."""
    global _board
    if _board is not None:
        return _board
    kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world_size() == 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return None
    from datetime import timedelta

    from torch import distributed

    if not kept_by_launcher and not distributed.is_initialized():
        return None
    try:
        store = distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=10),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError):
        return None
    _board = JobBoard(distributed.PrefixStore("excite", store))
    return _board


def failure() -> str | None:
    """The report of this job's first failure; None if there is none, or no board has been requested yet."""
    return None if _board is None else _board.read(JobBoard.FAILURE)


def meet(*_: Any, **__: Any) -> Iterator[tuple[Any, int, int]]:
    """The rendezvous handler of ``excite://``: (store, rank, world size) for a process group, as for ``env://``.

    A launcher that restarts processes may let them use the store of the dead ones (torchrun of torch 2.13 does), where
    they find the addresses of the dead, and sometimes connect to those. Here, each start uses a name of its own.
    """
    from datetime import timedelta

    from torch import distributed

    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: Any = distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size(),
        is_master=rank() == 0 and not by_launcher,
        timeout=timedelta(seconds=MEET_SECONDS),
        multi_tenant=True,
    )
    if by_launcher:
        store = distributed.PrefixStore(_agree_on_name(distributed.PrefixStore("excite-meet", store)), store)
    yield store, rank(), world_size()
    raise RuntimeError("a process group meets only once")


def _agree_on_name(store: Any) -> str:
    """A name shared by exactly the processes of this start, agreed on in a store that may hold older notes.

    Every process says hello with a fresh random number. Rank 0 answers with a fresh name and all the hellos it has
    received. A process that finds its own number in the answer knows that the answer is current, and confirms it.
    """
    deadline, mine = time.monotonic() + MEET_SECONDS, uuid.uuid4().hex
    others = [str(r) for r in range(1, world_size())]

    def heard(kind: str) -> list[str]:
        names = [f"{kind}-{r}" for r in others]
        return [value.decode() for value in store.multi_get(names)] if not names or store.check(names) else []

    while rank() != 0:
        store.set(f"hello-{rank()}", mine)
        if store.check(["answer"]):
            answer = json.loads(store.get("answer"))
            if answer["hellos"].get(str(rank())) == mine:
                store.set(f"agreed-{rank()}", answer["name"])
                return answer["name"]
        _wait_to_meet(deadline)
    while heard("agreed") != [mine] * len(others):
        hellos = heard("hello")
        if hellos:
            store.set("answer", to_json({"name": mine, "hellos": dict(zip(others, hellos, strict=True))}))
        _wait_to_meet(deadline)
    return mine


def _wait_to_meet(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise ExciteError(
            f"not all of the {world_size()} processes of this job connected within {MEET_SECONDS / 60:g} minutes; "
            "did one of them fail to start?"
        )
    time.sleep(0.05)


_runs = 0


def folder_of_job(make: Callable[[], Path]) -> Path:
    """The folder of this process's next run (rank 0 only): a new one, or the same as before a restart by the launcher.

    A job may do several runs in sequence; after a restart, it does them in the same order.
    """
    global _runs
    notes, name = board(), f"run-{_runs}"
    _runs += 1
    earlier = None if notes is None else notes.read(name)
    if earlier is not None:
        return Path(earlier)
    folder = make()
    if notes is not None:
        notes.write_first(name, str(folder))
    return folder
