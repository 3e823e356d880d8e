"""Faults between a training and the store that its run folder is mirrored to, or in the machine that uploads."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from excite.files import cache_folder
from excite.recipe import Recipe
from tests.faults.gate import Gate
from tests.faults.harness import Fault, Outcome, result_of, run_job
from tests.faults.hooks import GATE, open_gate_after
from tests.faults.kinds import Row, count, in_memory, judge, spread

BUCKET = "faults"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


def upload_job(recipe: str, url: str, disk: str, endpoint: str) -> None:
    """Train at an address on a machine with a disk of its own."""
    from excite.errors import ExciteError
    from excite.storage import left_behind
    from excite.training import train

    _prepare(disk, endpoint)
    results = train(Recipe.from_yaml(recipe), run_dir=url, quiet=True)
    if missing := left_behind(Path(results["run"])):  # as the command does
        raise ExciteError(missing)


def away_job(recipe: str, url: str, disk: str, endpoint: str, orders: int, back_after: int | None) -> None:
    """The same, with a store that goes away and, unless None, is back after so many further requests."""
    from excite.storage import connection, mirror

    os.environ |= {GATE: str(orders), "EXCITE_UPLOAD_WAIT": "60" if back_after else "0.5"}
    # Tenths of a second instead of minutes. What is waited for is as long as before, and a store that is only slow
    # (this machine is busy) is tried again.
    connection.ANSWER_SECONDS, connection.GIVE_UP_SECONDS, mirror.LONGEST_PAUSE = 0.4, 0.6, 0.2
    if back_after:
        open_gate_after(back_after)
    upload_job(recipe, url, disk, endpoint)


def sync_job(run: str, disk: str, endpoint: str) -> None:
    """``excite sync RUN``."""
    from excite.storage import upload_missing

    _prepare(disk, endpoint)
    upload_missing(run)


def _prepare(disk: str, endpoint: str) -> None:
    from excite.storage import connection, mirror

    os.environ |= {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ |= {"EXCITE_RUNS": f"{disk}/runs", "EXCITE_CACHE": f"{disk}/cache"}
    connection.FIRST_WAIT, mirror.SCAN_SECONDS = 0.01, 0.01


class Store:
    """moto's server with a bucket, a gate in front of it, and the machines that upload to it.

    Args:
        folder: for the disks of the machines.
    """

    def __init__(self, folder: Path) -> None:
        from tests.storage.conftest import Server

        self.folder, self._server = folder, Server()
        self.gate = Gate(self._server.port)
        self.endpoint = self._server.url
        _make_bucket(self.endpoint)

    def machine(self, name: str, url: str) -> tuple[Path, Path]:
        """A new disk, and where a run at this address has its folder on it."""
        disk = self.folder / name
        disk.mkdir(parents=True)
        for cache in (cache_folder(), self.folder / "undisturbed" / "cache"):
            if (cache / "kernels").is_dir():  # compiling them again takes longer than all the rest
                shutil.copytree(cache / "kernels", disk / "cache" / "kernels")
                break
        return disk, disk / "runs" / url.rpartition("/")[2]

    def files(self, url: str) -> dict[str, bytes]:
        """What is at an address, without the files of the mechanism."""
        import s3fs

        key = {"key": KEYS["AWS_ACCESS_KEY_ID"], "secret": KEYS["AWS_SECRET_ACCESS_KEY"]}
        fs: Any = s3fs.S3FileSystem(use_listings_cache=False, endpoint_url=self.endpoint, **key)
        base = url.removeprefix("s3://")
        names = [name for name in fs.find(base) if not name.rpartition("/")[2].startswith(".")]
        return {name[len(base) + 1 :]: fs.cat_file(name) for name in names}

    def stop(self) -> None:
        """End the server and the gate."""
        self.gate.stop()
        self._server.stop()


@contextmanager
def store_for(folder: Path) -> Iterator[Store]:
    """A store that is stopped at the end."""
    store = Store(folder)
    try:
        yield store
    finally:
        store.stop()


def _make_bucket(endpoint: str) -> None:
    """Without credentials: moto takes any request."""
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=30).close()


# --- the machine is gone ----------------------------------------------------------------------------------------------


def upload_killed(folder: Path, times: int, seed: int = 0) -> Row:
    """A machine is gone before its K-th change at the store, with its disk; the next one goes on at the address."""
    with store_for(folder) as store:
        return _machines(store, times, seed)


def _machines(store: Store, times: int, seed: int) -> Row:
    def on_a_machine(name: str, url: str, fault: Fault) -> tuple[Outcome, Path]:
        disk, run = store.machine(name, url)
        return run_job(upload_job, [in_memory(), url, str(disk), store.endpoint], disk, fault), run

    calm, run = on_a_machine("undisturbed", f"s3://{BUCKET}/undisturbed", Fault("upload"))
    assert calm.statuses == [0], calm.said
    wanted, row = result_of(run), Row(f"machine and disk gone before upload K of {calm.ticks}")
    for at in spread(calm.ticks, times, seed):
        url, fault = f"s3://{BUCKET}/run-{at}", Fault("upload", at)
        first, _ = on_a_machine(f"first-{at}", url, fault)
        row.planted += 1
        row.reached += first.statuses != [0]
        count(row, first, fault)
        second, run = on_a_machine(f"second-{at}", url, Fault("step"))
        count(row, second, fault)
        _judge(row, store, f"{fault}", second, run, url, wanted)
        shutil.rmtree(store.folder / f"first-{at}")
        shutil.rmtree(store.folder / f"second-{at}")
    return row


def _judge(row: Row, store: Store, what: str, last: Outcome, run: Path, url: str, wanted: dict[str, str]) -> None:
    """The job has ended; its result is the wanted one, and the store has all of it."""
    from excite.storage.runs import local_names

    if not judge(row, what, last, run, wanted):
        return
    there, here = store.files(url), {name: (run / name).read_bytes() for name in local_names(run)}
    if there != here:
        row.wrong += 1
        differ = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        row.examples.append(f"{what}: at the address differ {differ}")


# --- the store is gone ------------------------------------------------------------------------------------------------


def store_away(folder: Path, times: int, modes: tuple[str, str], seed: int = 0) -> Row:
    """The store stalls or breaks before the K-th request, in turns of the two modes, to the end or for a few requests.

    A training that has begun ends; whatever is missing at the store afterwards is brought there by ``excite sync``.
    One that has not begun ends with a sentence, and is started again.
    """
    with store_for(folder) as store:
        return _away(store, times, modes, seed)


def _away(store: Store, times: int, modes: tuple[str, str], seed: int) -> Row:
    recipe, gate, counted = in_memory(), store.gate, f"s3://{BUCKET}/undisturbed"
    disk, run = store.machine("undisturbed", counted)
    calm = run_job(upload_job, [recipe, counted, str(disk), gate.url], disk, Fault("request"))
    assert calm.statuses == [0], calm.said
    wanted, row = result_of(run), Row("")
    by_itself = synced = again = 0
    for number, at in enumerate(spread(calm.ticks, times, seed)):
        mode, back_after = modes[number % 2], (None, 2, 12)[number // 2 % 3]
        fault, url = Fault("request", at, mode), f"s3://{BUCKET}/run-{number}"
        what = f"{fault}, {'until the end' if back_after is None else f'for {back_after} requests'}"
        disk, run = store.machine(f"machine-{number}", url)
        words, before = [recipe, url, str(disk), gate.url], gate.turned
        row.planted += 1
        last = run_job(away_job, [*words, gate.orders, back_after], disk, fault)
        row.reached += gate.turned != before
        gate.turn("open")
        count(row, last, fault)
        trained = (run / "results.json").is_file()
        if last.statuses == [0]:
            by_itself += 1
        elif last.statuses == [1] and not ("could not be reached" in last.said or "could not upload" in last.said):
            row.wrong += 1
            row.examples.append(f"{what}: said {last.said}")
        elif not trained and any(run.glob("checkpoints/step-*")):
            row.wrong += 1
            row.examples.append(f"{what}: the training did not go on: {last.said}")
        elif trained:
            synced += 1
            last = run_job(sync_job, [str(run), str(disk), gate.url], disk, Fault("request"))
        else:
            again += 1
            last = run_job(upload_job, words, disk, Fault("request"))
        count(row, last, fault)
        _judge(row, store, what, last, run, url, wanted)
        shutil.rmtree(disk)
    how = "stalls" if "silent" in modes else "breaks"
    row.fault = (
        f"store {how} at request K of {calm.ticks} ({by_itself} caught up by themselves, {synced} by `excite sync`, "
        f"{again} had not begun and were started again)"
    )
    return row
