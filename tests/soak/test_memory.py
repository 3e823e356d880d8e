"""Evaluations of more images than memory holds, within a limit that would end them if pixels were kept."""

import sys
from pathlib import Path

import pytest

from tests.soak import memory
from tests.soak.memory import Done, Studied, fence, prepare, run, study

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")

SIDE, COPIES = 128, 32
#: MB beyond what few images take. The many take 101 MB when they are decoded.
ALLOWED = 32.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A run, few images, and many."""
    return prepare(tmp_path_factory.mktemp("memory"), 64, COPIES, SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "predict"])
def test_more_images_than_memory_holds(command: str, prepared: tuple[Path, Path, Path], tmp_path: Path):
    found = study(command, *prepared, COPIES, SIDE, tmp_path, "ulimit", ALLOWED)
    assert found.wrong == []
    assert found.decoded > 2.5 * ALLOWED


@pytest.mark.slow
def test_kept_in_memory_they_would_not_fit(prepared: tuple[Path, Path, Path], tmp_path: Path, monkeypatch):
    """Otherwise the limit would prove nothing."""
    keeping = "from excite.data import room; room.SHARE = 1e9; from excite.cli import main; main()"
    genuine = memory.excite
    monkeypatch.setattr(memory, "excite", lambda *words: [sys.executable, "-c", keeping, *genuine(*words)[4:]])
    found = study("validate", *prepared, COPIES, SIDE, tmp_path, "ulimit", ALLOWED)
    assert found.before.status == 0
    assert found.within.status != 0


@pytest.mark.parametrize("kind", memory.KINDS)
def test_a_limit_is_one(kind: str, tmp_path: Path):
    taking = [sys.executable, "-c", "kept = b'x' * 300_000_000; print(len(kept))"]
    try:
        within = run(taking, tmp_path / "a", kind, 150)
        enough = run(taking, tmp_path / "b", kind, 500)
    except PermissionError as error:
        pytest.skip(str(error))
    assert within.status != 0
    assert (enough.status, enough.out) == (0, "300000000\n")
    assert enough.peak(kind) < 500


def test_without_the_right_to_make_cgroups_that_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(memory, "_VERSION_1", tmp_path / "none")
    monkeypatch.setattr(memory, "_VERSION_2", tmp_path / "none")
    with pytest.raises(PermissionError, match="no cgroup"), fence("cgroup", 100):
        pass


def _done(out: str = "", status: int = 0) -> Done:
    return Done(status, out, "Killed", 1.0, 100.0, 200.0)


def test_what_differs_is_found():
    few = {"top1": 50.0, "top5": 100.0, "loss": 0.7, "balanced": 50.0, "images": 4}
    assert memory._compare("validate", few, {**few, "images": 12}, 3) == []
    assert memory._compare("validate", few, {**few, "images": 11}, 3) == ["11 images"]
    assert memory._compare("validate", few, {**few, "images": 12, "loss": 0.8}, 3) == ["loss is 0.8, not 0.7"]
    top = [{"class": "dark", "probability": 0.9}]
    rows = [{"path": f"many/dark/1-{copy}.jpg", "top": top} for copy in range(2)]
    assert memory._compare("predict", [{"path": "few/dark/1.jpg", "top": top}], rows, 2) == []
    rows[1] = {**rows[1], "top": [{"class": "light", "probability": 0.9}]}
    assert len(memory._compare("predict", [{"path": "few/dark/1.jpg", "top": top}], rows, 2)) == 1
    assert memory._compare("predict", [{"path": "few/dark/1.jpg", "top": top}], rows[:1], 2) == ["1 predictions"]
    assert Studied("x", 9, 3, 1.0, 1.0, _done(), _done()).wrong == []
    assert len(Studied("x", 9, 3, 1.0, 1.0, _done(), _done(status=-9)).wrong) == 1
