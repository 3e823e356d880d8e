"""Runs at an address: their local folder, which of the two copies is newer, and fetching one to resume it."""

import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypedDict, cast

from excite.errors import ExciteError
from excite.files import cache_folder, not_ours, write_json
from excite.storage.address import READ_ONLY, Remote, RemoteError, is_remote, without_secrets
from excite.storage.connection import connect, retried
from excite.storage.download import Changed, Workshop, disk_error, fetch
from excite.storage.listing import Entry, exists, list_files, nothing
from excite.storage.staging import _key, locked, stage

#: In a run folder.
MARKER = "remote.json"
_STATE = re.compile(r"checkpoints/step-(\d{8,})/state\.pt")
_CHECKPOINT = re.compile(r"checkpoints/(step-\d{8,})/")
RELISTINGS = 5  # a run that is still being trained elsewhere changes while it is fetched


class Marker(TypedDict, total=False):
    """The address of a run.

    Attributes:
        fetched: whether the folder is only a copy.
        pending: number of files not uploaded yet.
    """

    url: str
    fetched: bool
    pending: int


def complete_steps(names: Iterable[str]) -> list[int]:
    """Steps with a complete checkpoint among the files of a run, ascending (``state.pt`` is written last)."""
    return sorted(int(match.group(1)) for match in map(_STATE.fullmatch, names) if match)


def local_names(run: Path) -> list[str]:
    """The files of a run folder that belong at its address: all but temporary ones and the marker."""
    names = []
    for folder, folders, files in os.walk(run):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(folder).relative_to(run)
        names += [(place / name).as_posix() for name in sorted(files) if not name.startswith(".")]
    return [name for name in names if name != MARKER]


def read_marker(run: Path) -> Marker:
    """The marker of a run folder; empty if the run has no address."""
    try:
        value = json.loads((run / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ExciteError(f"{run / MARKER} cannot be read ({error}); delete it to go on without uploads") from None
    if not isinstance(value, dict) or not is_remote(value.get("url")):
        raise ExciteError(f"{run / MARKER} names no address; delete it to go on without uploads")
    return cast(Marker, value)


def write_marker(run: Path, url: str, *, fetched: bool = False, pending: int = 0) -> None:
    """Record a run's address in its folder, and that this user has given the address."""
    remember_address(url)
    write_json(run / MARKER, {"url": url, "fetched": fetched, "pending": pending})


def remember_address(url: str) -> None:
    """Record that this user has given an address to upload to. Uploads go to no other; see :func:`uploads_to`."""
    if _is_remembered(url):
        return
    path = _addresses()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not_ours(path.lstat()) is not None:
            path.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{url.rstrip('/')}\n")
    except OSError as error:
        raise disk_error(error, path) from error


def _is_remembered(url: str) -> bool:
    path = _addresses()
    try:
        if not_ours(path.lstat()) is not None:
            return False
        return url.rstrip("/") in path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False


def _addresses() -> Path:
    return cache_folder() / "upload-addresses.txt"


def uploads_to(run: Path) -> str | None:
    """The address that a run is mirrored to; None without an address, or with one that this user never gave.

    A marker alone does not suffice: a run folder from somebody else may name any address, including ``file://`` ones,
    and this user's weights, logs and permissions would be used for it.
    """
    url = read_marker(run).get("url")
    return url if url is not None and _is_remembered(url) else None


def foreign_address(run: Path) -> str:
    """A sentence about a run folder whose marker names an address that this user never gave; "" for others."""
    url = read_marker(run).get("url")
    if url is None or _is_remembered(url):
        return ""
    return (
        f"{run / MARKER} names {without_secrets(url)}, an address that you have not given on this machine: nothing is "
        f"uploaded; to upload there: excite sync {shlex.quote(str(run))} {shlex.quote(without_secrets(url))}; if you "
        f"do not know it, delete {MARKER}"
    )


def local_parent(out: str | Path) -> Path:
    """The folder for new run folders: ``out`` itself, or, if it is an address, $EXCITE_RUNS or ``runs``."""
    return Path(os.environ.get("EXCITE_RUNS") or "runs") if is_remote(out) else Path(out)


def check_writable(url: str) -> None:
    """Write and delete an empty file below an address, so that mistakes show before the training rather than after it.

    Raises:
        ExciteError: the scheme is read-only, access is denied, there is no such bucket, or it cannot be reached.
    """
    remote = connect(url)
    if remote.protocol in READ_ONLY:
        raise ExciteError(f"{url} is read-only; give an address such as s3://bucket/runs")
    probe = remote.at(f".excite-write-check-{uuid.uuid4().hex}")
    if not remote.is_object_store:
        retried(lambda: remote.fs.makedirs(remote.path, exist_ok=True), url)
    try:
        retried(lambda: remote.fs.pipe_file(probe, b""), url)
    except RemoteError as error:
        raise (nothing(remote) if error.missing else error) from error
    with suppress(RemoteError):  # somebody may write but not delete
        retried(lambda: remote.fs.rm_file(probe), url)


def keep_at(folder: Path, out: str | Path, run_dir: str | Path | None) -> None:
    """Record in a run folder that its address is ``run_dir``, or its own name below ``out``.

    If another machine started a run of that name in the same second, a number is appended to the name there.
    """
    marked = read_marker(folder).get("url")
    if marked is not None:  # fetched from there, or this job was restarted
        given = connect(str(out if run_dir is None else run_dir)).url if is_remote(run_dir or out) else None
        if given is not None and (marked == given if run_dir is not None else marked.rpartition("/")[0] == given):
            remember_address(marked)
        return
    if run_dir is not None:
        if is_remote(run_dir):
            write_marker(folder, connect(str(run_dir)).url)
    elif is_remote(out):
        parent, name, attempt = connect(str(out)), folder.name, 0
        while exists(Remote(parent.fs, parent.at(name), f"{parent.url}/{name}")):
            attempt += 1
            name = f"{folder.name}-at-{attempt}"
        write_marker(folder, f"{parent.url}/{name}")


def local_run(run: str | Path) -> Path:
    """The local path of a run folder: itself, or the folder that a run at an address is fetched to."""
    return fetch_run(str(run)) if is_remote(run) else Path(run)


def open_run(run_dir: str | Path) -> Path:
    """The local folder of a new or resumed run, fetched if there is one at an address."""
    if not is_remote(run_dir):
        return Path(run_dir)
    remote = connect(str(run_dir))
    if exists(remote):
        return fetch_run(remote.url)
    folder = local_parent(remote.url) / remote.name
    if folder.is_dir() and any(folder.iterdir()) and read_marker(folder).get("url") != remote.url:
        raise _another_run(folder, remote.url)
    return folder


def fetch_run(url: str) -> Path:
    """Fetch a run into the local folder of its name, unless the copy there is up to date; return that folder.

    An older local copy that was trained here is renamed and kept.

    Raises:
        ExciteError: there is no run at the address, the local folder is another run, access is denied, or the
            connection fails.
    """
    remote = connect(url)
    local = local_parent(url) / remote.name
    with locked(cache_folder() / "remote" / f"run-{_key(remote, '')}"):
        try:
            entries = _run_entries(remote)
        except RemoteError as error:
            if error.lasting or not os.path.isfile(local / "recipe.yaml"):
                raise
            raise RemoteError(
                f"{error}; to resume from the local copy: excite train --resume {local}", False
            ) from error
        if local.is_dir() and any(local.iterdir()):
            if not same_run(remote, entries, local):
                raise _another_run(local, url)
            if _newest(local_names(local)) >= _newest(entries):
                marked = read_marker(local).get("url")
                if marked is None:
                    write_marker(local, remote.url)
                elif marked == remote.url:
                    remember_address(marked)
                return local
        return _fetched(remote, entries, local)


def _another_run(local: Path, url: str) -> ExciteError:
    return ExciteError(
        f"{local} is not the run at {url}: move it away, or set EXCITE_RUNS to another folder for local copies"
    )


def _newest(names: Iterable[str]) -> int:
    return max(complete_steps(names), default=-1)


def _run_entries(remote: Remote) -> dict[str, Entry]:
    """The files of a run, without incomplete checkpoints."""
    entries = list_files(remote)
    if "recipe.yaml" not in entries:
        raise RemoteError(f"--resume {remote.url}: this is not a run folder (it has no recipe.yaml)", True)
    whole = {f"step-{step:08d}" for step in complete_steps(entries)}
    return {
        name: entry
        for name, entry in entries.items()
        if (match := _CHECKPOINT.match(name)) is None or match.group(1) in whole
    }


def same_run(remote: Remote, entries: Mapping[str, Entry], local: Path) -> bool:
    """Whether two copies are of the same run: they record the same start (command, second, machine)."""
    name = "environment.json"
    if name not in entries or not (local / name).is_file():
        return name not in entries and not (local / name).is_file()
    return bool(retried(lambda: remote.fs.cat_file(entries[name].path), remote.url) == (local / name).read_bytes())


def _fetched(remote: Remote, entries: dict[str, Entry], local: Path) -> Path:
    building = local.with_name(f".{local.name}.fetching")
    for attempt in range(RELISTINGS):
        try:
            workshop = Workshop(building)
            fetch(remote, entries, workshop, {})
            break
        except Changed as error:  # the run is still being trained elsewhere
            if attempt + 1 == RELISTINGS:
                raise ExciteError(f"{remote.url} keeps changing: is the run still being trained elsewhere?") from error
            entries = _run_entries(remote)
    try:
        if local.exists():
            if not any(local.iterdir()) or read_marker(local).get("fetched"):
                shutil.rmtree(local)
            else:
                stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
                local.rename(local.with_name(f"{local.name}-older-{stamp}"))
        write_marker(workshop.files, remote.url, fetched=True)
        os.replace(workshop.files, local)
        shutil.rmtree(building)
    except OSError as error:
        raise disk_error(error, local) from error
    return local


def weights_at(url: str, names: Sequence[str]) -> Path:
    """The local copy of the weights at the address of a file, a checkpoint folder or a run folder.

    Args:
        url: the address.
        names: file names to look for, best first, in the folder itself and then in its newest complete checkpoint.

    Raises:
        ExciteError: there are no weights, access is denied, or the connection fails.
    """
    remote = connect(url)
    if remote.is_local:
        return Path(remote.path)
    listed = list_files(remote)
    if list(listed) == [remote.name] and next(iter(listed.values())).path == remote.path:
        return stage(url).path
    steps = complete_steps(listed)
    folders = ["", *([f"checkpoints/step-{steps[-1]:08d}/"] if steps else [])]
    found = next((folder + name for folder in folders for name in names if folder + name in listed), None)
    if found is None:
        raise ExciteError(
            f"{url} has no {names[-1]} and no checkpoints: it is not a run folder, or nothing has been saved yet"
        )
    return stage(f"{remote.url}/{found}").path
