"""Mirrors a run folder to an address in a thread, which never delays the training and never gives up.

A checkpoint becomes visible there atomically: its ``state.pt`` is uploaded last, after the metrics up to it, and
deleted first. What has been sent is tracked, and compared with a listing after every lost connection and at the end, so
that even a bucket that was deleted and created again gets everything.

Only one process at a time writes to an address (:mod:`excite.storage.owner`): before each file it looks whether it is
still the one. A file that is on its way at the very moment of a takeover may still arrive; whoever took over sends its
own at the end, when it compares everything.
"""

import hashlib
import os
import random
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from excite.errors import ExciteError
from excite.storage.address import Remote, RemoteError, without_secrets
from excite.storage.connection import connect, explained, forget_connections, retried
from excite.storage.identity import RUN, adopt, claim, files_at, read_begun, same_run
from excite.storage.listing import Entry
from excite.storage.owner import Owner, TakenOver, read_owner, take, this_owner, words
from excite.storage.runs import (
    check_run_folder,
    check_writable,
    complete_steps,
    foreign_address,
    local_names,
    place_of,
    read_marker,
    set_aside,
    uploads_to,
    write_marker,
)
from excite.text import counted

SCAN_SECONDS = 2.0  # between two looks at the folder
CHANGING_SECONDS = 30.0  # between two copies of a growing file (metrics, log), unless a new checkpoint needs it
LONGEST_PAUSE = 60.0  # between two tries; the first is a second, and each is twice the last
WAIT_AT_END, WAIT_WHEN_STOPPED = 300.0, 20.0  # for the last uploads; schedulers kill a job 30 s after SIGTERM
SILENT_SECONDS, SAY_SECONDS = 1.0, 60.0  # of that wait: before the first line about it, and between two lines
MANIFEST = "manifest.json"  # of a checkpoint: digests of its files


class Aborted(Exception):
    """The run has ended and does not wait any longer."""


class NewerElsewhere(RemoteError):
    """There is something at the address that this run must not overwrite."""

    def __init__(self, message: str) -> None:
        super().__init__(message, lasting=True)


class OwnerGone(Exception):
    """The address has lost its owner's name, and so perhaps everything."""


class Mirror:
    """Copies a run folder to an address.

    Args:
        run: the local run folder.
        url: the address.
        say: called with a line when uploads start to fail and when they continue.
        takes_over: become the owner of the address, whoever is. If false, only upload to an address that nobody owns or
            that this folder's processes own.
    """

    def __init__(self, run: Path, url: str, say: Callable[[str], object], takes_over: bool = True) -> None:
        self.run, self.url = run, url.rstrip("/")
        self.place = place_of(run)
        self._mine, self._takes_over, self._owns = this_owner(self.place), takes_over, False
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
            self._wait(seconds)
        self._abort.set()
        if not self._thread.is_alive() and self.problem is None:
            return []
        if isinstance(self.problem, TakenOver):
            return self.unsent()
        return self.unsent() or local_names(self.run)  # sent, but a store that is away may have lost it

    def _wait(self, seconds: float) -> None:
        """Wait for the thread, and say so: at once if uploads have failed, else if it takes longer than a moment."""
        until = time.monotonic() + seconds
        self._thread.join(min(seconds, 0.0 if self.problem else SILENT_SECONDS))
        while self._thread.is_alive() and (left := until - time.monotonic()) > 0:
            names = self.unsent()
            what = (
                f"{counted(len(names), 'file')} to reach {self.url}"
                if names
                else f"{self.url} to confirm what was sent"
            )
            self._say_safely(f"waiting up to {left:.0f} s for {what} (Ctrl-C: no longer)")
            self._thread.join(min(left, SAY_SECONDS))

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
        for _ in range(2):
            try:
                return self._copy()
            except OwnerGone:  # the store has lost it; what else has it lost?
                self._compared = False
        raise RemoteError(f"{self.url} does not keep the files that are sent to it", False)

    def _copy(self) -> None:
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
            except TakenOver as error:
                self.problem = error
                self._say_safely(f"{error}: nothing more is uploaded; training continues, {self.run} has everything")
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
        """Become the owner of the address, and find out what is already there."""
        listed = files_at(remote)
        self._check_run(remote, listed)
        self._own(remote)
        same = {folder: self._same_step(remote, folder, listed) for folder in _step_folders(listed)}
        self._there = set(listed)
        self._sent = {
            name: stamp
            for name in local_names(self.run)
            if name in listed
            and (stamp := _stamp(self.run / name))
            and self._equal(name, stamp, listed[name], same.get(name.rpartition("/")[0]))
        }
        if RUN not in listed and (stamp := _stamp(self.run / RUN)):  # it was written there to reserve the address
            self._there.add(RUN)
            self._sent[RUN] = stamp
        self._compared = True

    def _check_run(self, remote: Remote, listed: dict[str, Entry]) -> None:
        """Raise NewerElsewhere if the address belongs to another run or is ahead; otherwise it is this run's."""
        different = NewerElsewhere(
            f"{self.url} holds a different run than {self.run}: nothing was uploaded; give another address"
        )
        if listed and not same_run(remote, listed, self.run):
            raise different
        newest, here = self._newest_there(listed), max(complete_steps(local_names(self.run)), default=-1)
        if newest > here:
            raise NewerElsewhere(
                f"{self.url} has a checkpoint of step {newest}, which is newer than {self.run}: nothing was uploaded; "
                f"resume from there with: excite train --resume {self.url}"
            )
        if RUN in listed and read_begun(self.run) is None:
            adopt(self.run, remote)
        if RUN not in listed and claim(remote, self.run) is not None:
            raise different

    def _newest_there(self, listed: dict[str, Entry]) -> int:
        """The newest step at the address, without those that this run has had and set aside."""
        aside = set_aside(self.run)
        return max((step for step in complete_steps(listed) if step not in aside), default=-1)

    def _own(self, remote: Remote) -> None:
        """Become the owner of the address. Raises TakenOver if another process is and this one may not."""
        owner = retried(lambda: read_owner(remote), self.url)
        if owner is not None and (self._owns or not self._takes_over):
            self._check_owner(owner)
            return
        before = take(remote, self._mine)
        self._owns = True
        if before is not None and before["place"] != self._mine["place"]:
            self._say_safely(f"{self.url} is gone on with from here; its uploads came from {words(before)} until now")

    def _still_owns(self, remote: Remote) -> None:
        self._check_owner(retried(lambda: read_owner(remote), self.url))

    def _check_owner(self, owner: Owner | None) -> None:
        if owner is None:
            raise OwnerGone
        shared = not self._owns and owner["place"] == self._mine["place"]  # from the same folder
        if owner["token"] != self._mine["token"] and not shared:
            raise TakenOver(self.url, owner)

    def _same_step(self, remote: Remote, folder: str, listed: dict[str, Entry]) -> bool | None:
        """Whether the checkpoint there is the one here: None if only its files can tell (an older version's).

        An unfinished one never is: its files may be those of a machine that vanished, whose numbers differ in the last
        bits. With a manifest, which has a digest of each file, that decides.
        """
        if f"{folder}/state.pt" not in listed:
            return False
        try:
            manifest = (self.run / folder / MANIFEST).read_bytes()
        except OSError:
            return None
        name = f"{folder}/{MANIFEST}"
        return name in listed and retried(lambda: remote.fs.cat_file(remote.at(name)), self.url) == manifest

    def _equal(self, name: str, stamp: tuple[int, int], entry: Entry, same_step: bool | None) -> bool:
        """Whether a file there is the one here. ``same_step``: for one of a checkpoint, see :meth:`_same_step`."""
        if entry.size != stamp[0]:
            return False
        if self._sent.get(name) == stamp:
            return True
        if same_step is not None:
            return same_step
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
        self._still_owns(remote)
        try:
            self._put(remote, path, target)
        except (FileNotFoundError, RemoteError):
            if _stamp(path) is not None:
                raise
            return  # deleted after it was looked at, as a checkpoint that newer ones have replaced
        self._there.add(name)
        self._sent[name] = before  # if it has been replaced meanwhile, its stamp differs and it is sent again

    def _put(self, remote: Remote, path: Path, target: str) -> None:
        if remote.is_object_store:
            retried(lambda: remote.fs.put_file(str(path), target), self.url)
        else:
            parent, _, last = target.rpartition("/")
            remote.fs.makedirs(parent, exist_ok=True)
            remote.fs.put_file(str(path), f"{parent}/.{last}.part")
            remote.fs.mv(f"{parent}/.{last}.part", target)

    def _delete_pruned(self, remote: Remote) -> None:
        """Delete the checkpoints there that the run has deleted here, also incomplete ones.

        Not one that is damaged here: the copy there may be whole, and stays until the run is further.
        """
        here = max(complete_steps(local_names(self.run)), default=-1)
        kept = {f"checkpoints/step-{step:08d}" for step in set_aside(self.run, ["damaged"]) if step > here}
        for folder in sorted(_step_folders(self._there) - kept):
            if (self.run / folder).is_dir():
                continue
            self._still_owns(remote)
            names = [name for name in self._there if name.startswith(f"{folder}/")]
            for name in sorted(names, key=lambda n: not n.endswith("/state.pt")):
                if self._abort.is_set():
                    raise Aborted
                _delete(remote, name)
                self._there.discard(name)
            if not remote.is_object_store:
                remote.fs.rm(remote.at(folder), recursive=True)


def _delete(remote: Remote, name: str) -> None:
    """Delete a file, which may be gone already. Raises RemoteError."""
    try:
        retried(lambda: remote.fs.rm_file(remote.at(name)), remote.url)
    except RemoteError as error:
        if not error.missing:
            raise


def _step_folders(names: Iterable[str]) -> set[str]:
    """The checkpoint folders that files are in."""
    return {name.rpartition("/")[0] for name in names if name.startswith("checkpoints/step-")}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _is_changing(name: str) -> bool:
    """Whether a file grows during a run, unlike weights and results, which are sent at once."""
    lasting = name.startswith("checkpoints/") or name.endswith(".safetensors") or name in (RUN, "results.json")
    return not lasting


def _order(name: str) -> tuple[int, int, bool, str]:
    """Upload order: the identity, small files, the best weights, then checkpoints from newest to oldest with state.pt
    last."""
    step = re.match(r"checkpoints/step-(\d+)/", name)
    kind = 2 if step else 1 if name.endswith(".safetensors") else 3 if name == "results.json" else 0
    return -1 if name == RUN else kind, -int(step.group(1)) if step else 0, name.endswith("/state.pt"), name


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
            taken = words(mirror.problem.owner) if isinstance(mirror.problem, TakenOver) else ""
            write_marker(run, url, pending=len(left), taken=taken)
            say(left_behind(run))


def left_behind(run: Path) -> str:
    """A sentence on what of a run is not at its address and how to upload it; "" if nothing is missing."""
    marker = read_marker(run)
    if not marker.get("pending") or uploads_to(run) is None:
        return ""
    command = f"excite sync {shlex.quote(str(run))}"
    what = f"could not upload {counted(marker['pending'], 'file')} of {run} to {marker['url']}"
    if taken := marker.get("taken"):
        return f"{what}, which {taken} has taken over; to upload to another address: {command} s3://bucket/runs/{run.name}-2"
    return f"{what}; to upload: {command}"


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
            different or newer run at the address, or another process has taken the run over (and ``url`` is None);
            access is denied or the connection fails.
    """
    run = Path(run)
    check_run_folder(run)
    given, url = url, url or read_marker(run).get("url")
    if url is None:
        raise ExciteError(f"{run} has no address yet; give one: excite sync {run} s3://bucket/runs/{run.name}")
    elif given is None and (foreign := foreign_address(run)):
        raise ExciteError(foreign)
    say(f"uploading {run} to {without_secrets(url)}")
    check_writable(url)
    try:
        mirror, missing = _send_all(run, url, say, takes_over=False)
    except TakenOver as error:
        if given is None:
            command = f"excite sync {shlex.quote(str(run))}"
            raise ExciteError(f"{error}: nothing was uploaded; give another address: {command} URL") from None
        mirror, missing = _send_all(run, url, say, takes_over=True)
    write_marker(run, mirror.url, place=mirror.place)
    return mirror.url, missing


def _send_all(run: Path, url: str, say: Callable[[str], object], takes_over: bool) -> tuple[Mirror, int]:
    mirror = Mirror(run, url, say, takes_over)
    missing = len(retried(mirror.missing, url))
    retried(mirror.copy_all, url)
    return mirror, missing
