"""Mirrors a run folder to an address in a thread, which never delays the training and never gives up.

A checkpoint becomes visible there atomically: its ``state.pt`` is uploaded last, after the metrics up to it, and
deleted first. What has been sent is tracked, and compared with a listing after every lost connection and at the end, so
that even a bucket that was deleted and created again gets everything.
"""

import hashlib
import os
import random
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from excite.errors import ExciteError, absence
from excite.storage.address import Remote, RemoteError, without_secrets
from excite.storage.connection import connect, explained, forget_connections, retried
from excite.storage.listing import Entry, exists, list_files
from excite.storage.runs import (
    check_writable,
    complete_steps,
    foreign_address,
    local_names,
    read_marker,
    same_run,
    uploads_to,
    write_marker,
)

SCAN_SECONDS = 2.0  # between two looks at the folder
CHANGING_SECONDS = 30.0  # between two copies of a growing file (metrics, log), unless a new checkpoint needs it
LONGEST_PAUSE = 60.0  # between two tries; the first is a second, and each is twice the last
WAIT_AT_END, WAIT_WHEN_STOPPED = 300.0, 20.0  # for the last uploads; schedulers kill a job 30 s after SIGTERM


class Aborted(Exception):
    """The run has ended and does not wait any longer."""


class NewerElsewhere(RemoteError):
    """There is something at the address that this run must not overwrite."""

    def __init__(self, message: str) -> None:
        super().__init__(message, lasting=True)


class Mirror:
    """Copies a run folder to an address.

    Args:
        run: the local run folder.
        url: the address.
        say: called with a line when uploads start to fail and when they continue.
    """

    def __init__(self, run: Path, url: str, say: Callable[[str], None]) -> None:
        self.run, self.url = run, url.rstrip("/")
        self.problem: ExciteError | None = None
        self._say = say
        self._remote: Remote | None = None
        self._sent: dict[str, tuple[int, int]] = {}  # name -> size and time of the local file that was sent
        self._there: set[str] = set()
        self._compared = False
        self._changing_at = float("-inf")
        self._closing, self._abort = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="excite-upload", daemon=True)

    def start(self) -> None:
        """Start copying in the background."""
        self._thread.start()

    def close(self, seconds: float) -> list[str]:
        """Wait up to ``seconds`` until everything is copied and verified; return the names of files that are not."""
        self._closing.set()
        with suppress(KeyboardInterrupt):  # Ctrl-C: no longer
            self._thread.join(seconds)
        self._abort.set()
        if not self._thread.is_alive() and self.problem is None:
            return []
        return self.unsent() or local_names(self.run)  # sent, but a store that is away may have lost it

    def unsent(self) -> list[str]:
        """Names of files that have no copy at the address, or an older one."""
        return [name for name in local_names(self.run) if self._sent.get(name) != _stamp(self.run / name)]

    def missing(self) -> list[str]:
        """Names of files that the address lacks, in the order to send them. Lists the address if it has not been listed
        since the last failure. Raises RemoteError or ExciteError."""
        if self._remote is None:
            self._remote = connect(self.url)
        if not self._compared:
            self._compare(self._remote)
        return sorted(self.unsent(), key=_order)

    def copy(self) -> None:
        """Copy everything that is missing, once. Raises RemoteError or ExciteError."""
        names = self.missing()
        assert self._remote is not None
        changing = [name for name in names if _is_changing(name)]
        lasting = [name for name in names if not _is_changing(name)]
        due = lasting or self._closing.is_set() or time.monotonic() - self._changing_at > _changing_seconds()
        if changing and due:
            self._changing_at = time.monotonic()
        for name in (changing if due else []) + lasting:
            self._send(self._remote, name)
        self._delete_pruned(self._remote)

    def copy_all(self) -> None:
        """Copy everything and compare with a listing until nothing is missing. Raises RemoteError or ExciteError."""
        self._closing.set()
        for _ in range(3):
            self.copy()
            self._compared = False
            if not self.missing():
                return
        raise RemoteError(f"{self.url} does not keep the files that are sent to it", False)

    def _work(self) -> None:
        failures = 0
        while not self._abort.is_set():
            closing = self._closing.is_set()
            try:
                self.copy_all() if closing else self.copy()
                if failures:
                    self._say_safely(f"uploading to {self.url} continues")
                failures, self.problem = 0, None
                if closing and not self.unsent():
                    return
                pause = min(SCAN_SECONDS, _changing_seconds())
            except Aborted:
                return
            except NewerElsewhere as error:
                self.problem = error
                self._say_safely(str(error))
                return
            except Exception as error:
                self.problem, self._compared, self._remote = explained(error, self.url), False, None
                forget_connections()
                failures += 1
                if failures == 1:
                    self._say_safely(
                        f"uploading failed: {self.problem}; training continues, {self.run} has everything, and the "
                        "upload will be tried again"
                    )
                # So that a thousand runs do not all try at the same moment when the store is back.
                pause = min(2.0 ** (failures - 1), LONGEST_PAUSE, 5.0 if closing else LONGEST_PAUSE)
                pause *= random.uniform(0.75, 1.25)
            (self._abort if closing else self._closing).wait(pause)

    def _say_safely(self, line: str) -> None:
        with suppress(Exception):  # a full disk stops the training anyway, with its own message
            self._say(line)

    def _compare(self, remote: Remote) -> None:
        """Find out what is already there, by size and, if the store gives one, MD5."""
        listed = list_files(remote) if exists(remote) else {}
        own = local_names(self.run)
        if listed and not same_run(remote, listed, self.run):
            raise NewerElsewhere(
                f"{self.url} holds a different run than {self.run}: nothing was uploaded; give another address"
            )
        newest, here = max(complete_steps(listed), default=-1), max(complete_steps(own), default=-1)
        if newest > here:
            raise NewerElsewhere(
                f"{self.url} has a checkpoint of step {newest}, which is newer than {self.run}: nothing was uploaded; "
                f"resume from there with: excite train --resume {self.url}"
            )
        self._there = set(listed)
        self._sent = {
            name: stamp
            for name in own
            if name in listed and (stamp := _stamp(self.run / name)) and self._equal(name, stamp, listed[name])
        }
        self._compared = True

    def _equal(self, name: str, stamp: tuple[int, int], entry: Entry) -> bool:
        if entry.size != stamp[0]:
            return False
        if self._sent.get(name) == stamp:
            return True
        if entry.md5 is None:  # a step's checkpoint is written once; other files may change and keep their size
            return name.startswith("checkpoints/")
        try:
            with (self.run / name).open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == entry.md5
        except OSError:
            return False

    def _send(self, remote: Remote, name: str) -> None:
        if self._abort.is_set():
            raise Aborted
        path, target = self.run / name, remote.at(name)
        before = _stamp(path)
        if before is None:  # deleted since it was listed
            return
        if remote.is_object_store:
            remote.fs.put_file(str(path), target)
        else:
            parent, _, last = target.rpartition("/")
            remote.fs.makedirs(parent, exist_ok=True)
            remote.fs.put_file(str(path), f"{parent}/.{last}.part")
            remote.fs.mv(f"{parent}/.{last}.part", target)
        self._there.add(name)
        self._sent[name] = before  # if it has been replaced meanwhile, its stamp differs and it is sent again

    def _delete_pruned(self, remote: Remote) -> None:
        """Delete the checkpoints there that the run has deleted here, also incomplete ones."""
        folders = {name.rpartition("/")[0] for name in self._there if name.startswith("checkpoints/step-")}
        for folder in sorted(folders):
            if (self.run / folder).is_dir():
                continue
            names = [name for name in self._there if name.startswith(f"{folder}/")]
            for name in sorted(names, key=lambda n: not n.endswith("/state.pt")):
                if self._abort.is_set():
                    raise Aborted
                with suppress(FileNotFoundError):
                    remote.fs.rm_file(remote.at(name))
                self._there.discard(name)
            if not remote.is_object_store:
                remote.fs.rm(remote.at(folder), recursive=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _is_changing(name: str) -> bool:
    """Whether a file grows during a run, unlike weights and results, which are sent at once."""
    return not name.startswith("checkpoints/") and not name.endswith(".safetensors") and name != "results.json"


def _order(name: str) -> tuple[int, int, bool, str]:
    """Upload order: small files, the best weights, then checkpoints from newest to oldest with state.pt last."""
    step = re.match(r"checkpoints/step-(\d+)/", name)
    kind = 2 if step else 1 if name.endswith(".safetensors") else 3 if name == "results.json" else 0
    return kind, -int(step.group(1)) if step else 0, name.endswith("/state.pt"), name


def _changing_seconds() -> float:
    return _seconds("EXCITE_UPLOAD_EVERY", CHANGING_SECONDS)


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if value < 0:
        raise ExciteError(f"the environment variable {variable} is {text!r}: give seconds, such as {default:g}")
    return value


@contextmanager
def mirrored(run: Path, say: Callable[[str], None]) -> Iterator[Mirror | None]:
    """Context that mirrors a run folder to the address in its marker, if this user has given that address. The address
    is printed before anything is sent. Without a marker, nothing happens.

    Yields the mirror, or None without a marker. At the end, it waits for the uploads, up to $EXCITE_UPLOAD_WAIT seconds
    (300), or 20 s if the block raised an error, and says what is missing and how to upload it later. Failed uploads do
    not raise: the local folder is complete in any case.
    """
    url = uploads_to(run)
    if url is None:
        if foreign := foreign_address(run):
            say(foreign)
        yield None
        return
    wait, _ = _seconds("EXCITE_UPLOAD_WAIT", WAIT_AT_END), _changing_seconds()
    connect(url)  # an address that cannot work stops the run now, a lost connection never
    write_marker(run, url)
    mirror = Mirror(run, url, say)
    say(f"uploads    {url}")
    mirror.start()
    patience = min(wait, WAIT_WHEN_STOPPED)
    try:
        yield mirror
        patience = wait
    finally:
        left = mirror.close(patience)
        if left:
            write_marker(run, url, pending=len(left))
            say(left_behind(run))


def left_behind(run: Path) -> str:
    """A sentence on what of a run is not at its address and how to upload it; "" if nothing is missing."""
    marker = read_marker(run)
    if not marker.get("pending") or uploads_to(run) is None:
        return ""
    command = f"excite sync {shlex.quote(str(run))}"
    return f"{marker['pending']} file(s) of {run} could not be uploaded to {marker['url']}; upload them with: {command}"


def upload_missing(
    run: str | Path, url: str | None = None, say: Callable[[str], object] = lambda line: None
) -> tuple[str, int]:
    """Upload what the address of a run lacks, and delete checkpoints there that the run has deleted.

    Args:
        run: a run folder.
        url: the address of its copy; None: the address used before.
        say: called with a line on the destination before the first upload.

    Returns:
        The address, and the number of files that it lacked.

    Raises:
        ExciteError: it is not a run folder; there is no address, or only one that this user never gave; there is a
            different or newer run at the address; access is denied or the connection fails.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        what = "it has no recipe.yaml" if run.is_dir() else absence(run)
        raise ExciteError(f"{run} is not a run folder: {what}")
    given, url = url, url or read_marker(run).get("url")
    if url is None:
        raise ExciteError(f"{run} has no address yet; give one: excite sync {run} s3://bucket/runs/{run.name}")
    elif given is None and (foreign := foreign_address(run)):
        raise ExciteError(foreign)
    say(f"uploading {run} to {without_secrets(url)}")
    check_writable(url)
    mirror = Mirror(run, url, lambda line: None)
    missing = len(retried(mirror.missing, url))
    retried(mirror.copy_all, url)
    write_marker(run, mirror.url)
    return mirror.url, missing
