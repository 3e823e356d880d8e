"""A machine that goes away at any moment of its uploads: the next one goes on with the same run, and so does the third.

``s3fs`` is cut after K writes, as if the machine had vanished then; each machine has its own disk.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from excite.errors import ExciteError
from excite.storage import connection
from excite.storage.runs import complete_steps
from excite.training import train
from tests.storage.conftest import Bucket
from tests.storage.test_mirror import copied
from tests.training.small import metrics, same, small, tensors

WRITES = ("put_object", "complete_multipart_upload")


class Cut:
    """Lets ``most`` writes of the code under test through, then nothing at all."""

    def __init__(self, monkeypatch, most: int) -> None:
        import s3fs

        self.writes, self.most = 0, most
        genuine = s3fs.S3FileSystem._call_s3

        async def call(fs: Any, method: str, *words: Any, **options: Any) -> Any:
            changes = method in (*WRITES, "delete_object", "create_multipart_upload")
            if not changes or "write-check" in options["Key"]:
                return await genuine(fs, method, *words, **options)
            if self.writes >= self.most:
                raise ConnectionResetError("the machine is gone")
            self.writes += method in WRITES
            return await genuine(fs, method, *words, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)


@contextlib.contextmanager
def machine(monkeypatch, tmp_path: Path, name: str, most: int | None = None):
    """A machine with a disk of its own, which is lost at the end; it writes ``most`` files to the store."""
    disk = tmp_path / name
    with monkeypatch.context() as here:
        here.setenv("EXCITE_RUNS", str(disk / "runs"))
        here.setenv("EXCITE_CACHE", str(disk / "cache"))
        if most is not None:
            here.setenv("EXCITE_UPLOAD_WAIT", "0.5")
            here.setattr(connection, "TRIES", 1)
            yield Cut(here, most)
        else:
            yield None
    shutil.rmtree(disk, ignore_errors=True)


def job(url: str) -> Any:
    """What every machine is told to do."""
    return train(small("epochs=1", "limit_train=64", "limit_val=32"), run_dir=url, quiet=True)


def identity(bucket) -> str:
    return json.loads(bucket.get("x/run.json"))["id"]


def vanish_after(writes: int, bucket, monkeypatch, tmp_path: Path) -> bool:
    """The first machine vanishes, the second ends the run, the third finds it; whether the first was cut at all."""
    url, tmp_path = f"{bucket.url}/x", tmp_path / str(writes)
    with machine(monkeypatch, tmp_path, "first", writes) as cut, contextlib.suppress(ExciteError):
        job(url)
    begun = identity(bucket) if "run.json" in bucket.names("x") else None
    assert (begun is None) == (writes == 0)
    steps, ended = complete_steps(bucket.names("x")), "results.json" in bucket.names("x")
    with machine(monkeypatch, tmp_path, "second"):
        results = job(url)
        run = Path(results["run"])
        log = (run / "log.txt").read_text()
        assert ("going on after step" in log) == (bool(steps) and not ended)
        assert begun in (None, identity(bucket))
        files = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
        del files["remote.json"], files[".owner.lock"]
        assert copied(bucket, "x") == files
        weights, lines = tensors(run), metrics(run)
    with machine(monkeypatch, tmp_path, "third"):
        again = job(url)
        assert again["top1"] == results["top1"]
        assert same(weights, tensors(again["run"]))
        assert lines == metrics(again["run"])
    assert begun in (None, identity(bucket))
    return cut.writes >= writes


@pytest.mark.parametrize("writes", [0, 1, 2, 4])
def test_a_machine_that_vanishes_early_is_followed_by_the_same_run(writes, bucket, monkeypatch, tmp_path):
    assert vanish_after(writes, bucket, monkeypatch, tmp_path)


@pytest.mark.heavy
def test_a_machine_that_vanishes_after_any_file_is_followed_by_the_same_run(server, bucket, monkeypatch, tmp_path):
    """Until the first machine writes all it has; each time in a bucket of its own."""
    writes = 1
    while vanish_after(writes, Bucket(server), monkeypatch, tmp_path):
        writes += 1
    assert writes > 12  # the identity, the owner, four small files, and two checkpoints at least
