"""Runs at an address: their local folder, which of the two copies is newer, and fetching one to resume it."""

import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypedDict, cast

from excite.errors import ExciteError, absence
from excite.files import append_text, cache_folder, not_ours, told, write_json
from excite.storage.address import READ_ONLY, Remote, RemoteError, is_remote, without_secrets
from excite.storage.connection import connect, retried
from excite.storage.download import CACHE, Changed, Workshop, fetch
from excite.storage.identity import (
    MARKER,
    RUN,
    Begun,
    adopt,
    begin,
    begun_at,
    claim,
    clear_blank,
    files_at,
    is_blank,
    is_private,
    read_begun,
    same_run,
)
from excite.storage.listing import Entry, exists, list_files, nothing
from excite.storage.staging import _key, locked, stage

_STATE = re.compile(r"checkpoints/step-(\d{8,})/state\.pt")
_CHECKPOINT = re.compile(r"checkpoints/(step-\d{8,})/")
_NO_CHECKPOINT = re.compile(r"checkpoints/(?!step-\d{8,}/)[^/]+/")
_ASIDE = re.compile(r"(damaged|set-aside)-step-(\d{8,})")
_RUNS = "EXCITE_RUNS"  # the environment variable that chooses the place of runs that are at an address
RELISTINGS = 5  # a run that is still being trained elsewhere changes while it is fetched


class Marker(TypedDict, total=False):
    """The address of a run.

    Attributes:
        fetched: whether the folder is only a copy.
        pending: number of files not uploaded yet.
        place: a random mark of this folder, by which its uploads are recognised.
        taken: which process took the address over, so that nothing more is uploaded; "" or missing if none did.
    """

    url: str
    fetched: bool
    pending: int
    place: str
    taken: str


def complete_steps(names: Iterable[str]) -> list[int]:
    """Steps with a complete checkpoint among the files of a run, ascending (``state.pt`` is written last)."""
    return sorted(int(match.group(1)) for match in map(_STATE.fullmatch, names) if match)


def local_names(run: Path) -> list[str]:
    """The files of a run folder that belong at its address: all but temporary ones, the marker, and what was set aside
    among the checkpoints."""
    names = []
    for folder, folders, files in os.walk(run):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(folder).relative_to(run)
        names += [(place / name).as_posix() for name in sorted(files) if not name.startswith(".")]
    return [name for name in names if name != MARKER and _NO_CHECKPOINT.match(name) is None]


def set_aside(run: Path, kinds: Iterable[str] = ("damaged", "set-aside")) -> set[int]:
    """The steps whose checkpoints this run has set aside: ``checkpoints/damaged-step-N``, ``set-aside-step-N``."""
    folder = run / "checkpoints"
    found = [_ASIDE.match(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return {int(match.group(2)) for match in found if match is not None and match.group(1) in kinds}


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


def write_marker(
    run: Path, url: str, *, fetched: bool = False, pending: int = 0, taken: str = "", place: str | None = None
) -> None:
    """Record a run's address in its folder, and that this user has given the address. The folder keeps its mark."""
    remember_address(url)
    place = place or place_of(run)
    value: Marker = {"url": url, "fetched": fetched, "pending": pending, "place": place, "taken": taken}
    write_json(run / MARKER, value)


def place_of(run: Path) -> str:
    """The mark of a run folder; a new one if it has none."""
    with suppress(ExciteError):
        place = read_marker(run).get("place")
        if isinstance(place, str) and place:
            return place
    return uuid.uuid4().hex


def remember_address(url: str) -> None:
    """Record that this user has given an address to upload to. Uploads go to no other; see :func:`uploads_to`."""
    if _is_remembered(url):
        return
    path = _addresses()
    with told(path, CACHE):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not_ours(path.lstat()) is not None:
            path.unlink()
    append_text(path, f"{url.rstrip('/')}\n", private=True, setting=CACHE)


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
    return Path(os.environ.get(_RUNS) or "runs") if is_remote(out) else Path(out)


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


#: What a command found at the address of its run when it started: whether anything was there, and the local id then.
_looked: dict[str, tuple[bool, str | None]] = {}


def check_target(out: str | Path, run_dir: str | Path | None) -> None:
    """:func:`check_writable` for the address of a new or resumed run, if it has one; called before the long work.

    What is at ``run_dir`` now is remembered: :func:`keep_at` refuses a run that somebody else begins meanwhile.
    """
    if run_dir is None:
        if is_remote(out):
            check_writable(str(out))
    elif is_remote(run_dir):
        check_writable(str(run_dir))
        remote = connect(str(run_dir))
        _looked[remote.url] = bool(files_at(remote)), _id_in(local_parent(remote.url) / remote.name)


def _id_in(folder: Path) -> str | None:
    begun = read_begun(folder)
    return None if begun is None else begun["id"]


def keep_at(folder: Path, out: str | Path, run_dir: str | Path | None) -> None:
    """Reserve the address of a run and record it in the run's folder: ``run_dir``, or its own name below ``out``.

    If a run of that name is there already, a number is appended to the name. A run that was begun at ``run_dir`` by a
    machine that vanished before it uploaded anything is gone on with: this folder becomes the same run.

    Raises:
        ExciteError: another machine began a run at ``run_dir`` while this command was starting; access is denied or
            the connection fails.
    """
    if run_dir is not None and is_remote(run_dir):
        remote = connect(str(run_dir))
        anything, own = _looked.pop(remote.url, (True, None))
        there = begun_at(remote) if not anything else None
        if there is not None and there["id"] != own:
            raise _begun_meanwhile(remote.url, there, folder)
        if is_blank(folder):
            _begin_at(remote, folder, is_new=not anything)
    marked = read_marker(folder).get("url")
    if marked is not None:  # fetched from there, or this job was restarted
        given = connect(str(out if run_dir is None else run_dir)).url if is_remote(run_dir or out) else None
        if given is not None and (marked == given if run_dir is not None else marked.rpartition("/")[0] == given):
            remember_address(marked)
    elif run_dir is not None:
        if is_remote(run_dir):
            write_marker(folder, connect(str(run_dir)).url)
    elif is_remote(out):
        write_marker(folder, _free_name(connect(str(out)), folder))


def _free_name(parent: Remote, folder: Path) -> str:
    """Reserve a name below an address for a new run, and return its address."""
    name, attempt, own = folder.name, 0, _id_in(folder)
    while True:
        remote = Remote(parent.fs, parent.at(name), f"{parent.url}/{name}")
        there = begun_at(remote)
        if there is not None and there["id"] == own:  # killed after it had reserved the name
            return remote.url
        if there is None and not exists(remote) and claim(remote, folder) is None:
            return remote.url
        attempt += 1
        name = f"{folder.name}-at-{attempt}"


def _begin_at(remote: Remote, folder: Path, is_new: bool) -> None:
    there = claim(remote, folder)
    if there is not None and is_new:
        raise _begun_meanwhile(remote.url, there, folder)
    if there is not None:
        adopt(folder, remote)
    write_marker(folder, remote.url)


def _begun_meanwhile(url: str, there: Begun, folder: Path) -> ExciteError:
    if is_blank(folder):
        clear_blank(folder)
    return ExciteError(
        f"process {there['pid']} on {there['host']} began a run at {url} ({there['begun']}) while this command was "
        "starting; give another address, or the same command again to go on with that run"
    )


def check_run_folder(run: str | Path) -> None:
    """Raise ExciteError if ``run`` is neither a run folder on this machine nor an address."""
    path = Path(run)
    if not is_remote(run) and not os.path.isfile(path / "recipe.yaml"):
        what = "it has no recipe.yaml" if os.path.isdir(path) else absence(path)
        raise ExciteError(f"{run} is not a run folder: {what}")


def local_run(run: str | Path) -> Path:
    """The local path of a run folder: itself, or the folder that a run at an address is fetched to."""
    return fetch_run(str(run)) if is_remote(run) else Path(run)


def open_run(run_dir: str | Path) -> Path:
    """The local folder of a new or resumed run, fetched if there is one at an address."""
    if not is_remote(run_dir):
        return Path(run_dir)
    remote = connect(str(run_dir))
    entries = files_at(remote)
    if entries and ("recipe.yaml" in entries or RUN not in entries):
        return fetch_run(remote.url)
    # Nothing is there, or the beginning of a run of which nothing is worth fetching.
    folder = local_parent(remote.url) / remote.name
    if is_blank(folder):
        if folder.is_dir() and _marked(folder) not in (None, remote.url):  # begun for another address, or damaged
            clear_blank(folder)
    elif _marked(folder) != remote.url or (entries and not same_run(remote, entries, folder)):
        raise _another_run(folder, remote.url)
    return folder


def begin_in(folder: Path) -> None:
    """Begin a run in a blank folder, whatever a kill left there. Raises ExciteError if it cannot be written."""
    if _marked(folder) == "":
        with told(folder / MARKER):
            (folder / MARKER).unlink(missing_ok=True)
    begin(folder)


def _marked(folder: Path) -> str | None:
    """The address in a folder's marker; "" if the marker is damaged."""
    try:
        return read_marker(folder).get("url")
    except ExciteError:
        return ""


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
        if not is_blank(local):
            if not same_run(remote, entries, local):
                raise _another_run(local, url)
            if _newest(local_names(local)) >= _newest(entries, set_aside(local, ["set-aside"])):
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


def _newest(names: Iterable[str], without: Container[int] = ()) -> int:
    return max((step for step in complete_steps(names) if step not in without), default=-1)


def _run_entries(remote: Remote) -> dict[str, Entry]:
    """The files of a run, without incomplete checkpoints."""
    entries = list_files(remote)
    if "recipe.yaml" not in entries and RUN in entries:
        raise RemoteError(
            f"{remote.url}: a run was begun there, but none of its files were uploaded; begin it again with: "
            f"excite train RECIPE --run-dir {remote.url}",
            True,
        )
    if "recipe.yaml" not in entries:
        raise RemoteError(f"{remote.url}: this is not a run folder (it has no recipe.yaml)", True)
    whole = {f"step-{step:08d}" for step in complete_steps(entries)}
    return {
        name: entry
        for name, entry in entries.items()
        if not is_private(name) and ((match := _CHECKPOINT.match(name)) is None or match.group(1) in whole)
    }


def _fetched(remote: Remote, entries: dict[str, Entry], local: Path) -> Path:
    building = local.with_name(f".{local.name}.fetching")
    for attempt in range(RELISTINGS):
        try:
            workshop = Workshop(building, _RUNS)
            fetch(remote, entries, workshop, {})
            break
        except Changed as error:  # the run is still being trained elsewhere
            if attempt + 1 == RELISTINGS:
                raise ExciteError(f"{remote.url} keeps changing: is the run still being trained elsewhere?") from error
            entries = _run_entries(remote)
    with told(local, _RUNS):
        if local.exists():
            if is_blank(local):
                clear_blank(local)
            elif read_marker(local).get("fetched"):
                shutil.rmtree(local)
            if local.exists():
                stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
                local.rename(local.with_name(f"{local.name}-older-{stamp}"))
        if RUN not in entries:
            begin(workshop.files)  # of an older version, which has none: as every other copy of it would name it
        write_marker(workshop.files, remote.url, fetched=True)
        os.replace(workshop.files, local)
        shutil.rmtree(building)
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
