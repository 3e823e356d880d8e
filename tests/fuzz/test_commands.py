"""Command lines: status 0, 1 or 2, and for a mistake one sentence on standard error; the work itself is left out."""

import contextlib
import importlib
import io
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import excite.cli
from excite.command_help import leaves
from excite.recipe import list_recipes, override_keys

from .harness import Case, Surface, found
from .mutations import boundary

#: What a command calls when all of its words were understood.
WORK = (
    "excite.report.after_training.train",
    "excite.trained.accuracy.validate",
    "excite.trained.classify.predict",
    "excite.weights.conversion.convert_file",
    "excite.grafting.proof.graft_and_prove",
    "excite.report.build.report",
    "excite.compare.written.compare_and_write",
    "excite.twins.run_twins",
    "excite.grafting.prune.prune",
    "excite.export.export",
    "excite.bench.build.bench",
    "excite.bench.pipeline.pipeline",
    "excite.explain.written.explain_and_write",
    "excite.explain.explain_and_write",
    "excite.storage.upload_missing",
    "excite.datacheck.build.check_data",
)


class Reached(Exception):
    """The work would begin here."""


def _work(*_: object, **__: object) -> None:
    raise Reached


@pytest.fixture
def no_work(monkeypatch):
    patched = 0
    for place in WORK:
        module, _, name = place.rpartition(".")
        if hasattr(importlib.import_module(module), name):
            monkeypatch.setattr(place, _work)
            patched += 1
    assert patched >= 13
    monkeypatch.setattr(excite.cli, "leave_quickly", lambda: None)
    monkeypatch.setattr(excite.cli, "make_children_safe", lambda: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # `main` sets another one
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, list[str]]:
    """Command -> its options."""
    commands = leaves(typer.main.get_command(excite.cli.app))
    return {
        name: [
            word
            for parameter in command.params
            for word in (*parameter.opts, *parameter.secondary_opts)
            if word[:1] == "-"
        ]
        for name, command in commands.items()
    }


@contextlib.contextmanager
def run_in(folder: Path, words: list[str]) -> Iterator[tuple[int | None, str, str]]:
    """What ``excite WORDS...`` does: (status, or None where the work would begin; output, errors)."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    status: int | None = 0
    sys.argv = ["excite", *words]
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            excite.cli.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Reached:
            status = None
        finally:
            sys.argv = before
    yield status, out.getvalue(), err.getvalue()


def check(folder: Path, words: list[str]) -> int | None:
    with run_in(folder, words) as (status, out, err):
        assert status in (None, 0, 1, 2), f"status {status} of {words!r:.300}"
        assert "Traceback" not in out + err
        if status in (1, 2):
            lines = err.splitlines()
            assert lines, f"nothing is said about {words!r:.300}"
            assert lines[-1].startswith("error: "), f"{words!r:.300} ends with {lines[-1]!r:.300}"
            assert sum(line.startswith("error: ") for line in lines) == 1
            assert len(lines[-1]) < 12_000
            assert lines[-1].isprintable()
    return status


def changed_word(rng: random.Random, word: str) -> str:
    """An abbreviation, a slip of the finger, another dash."""
    at = rng.randrange(len(word) + 1)
    return rng.choice(
        (word[:at], word[:at] + word[at + 1 :], word[:at] + rng.choice("-=xX \0é") + word[at:], word.upper(),
         f"-{word}", word.replace("-", "_"), f"{word}=", f"{word}={boundary(rng)!s:.400}")
    )  # fmt: skip


def value(rng: random.Random, places: list[str]) -> str:
    """What may follow an option, or stand alone."""
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(places)
    if kind == 2:
        return f"{rng.choice(override_keys())}={boundary(rng)!s:.400}"
    if kind == 3:
        return rng.choice(
            (*list_recipes(), "resnet50", "cifar_seresnet20", "se", "timm:resnet50", "all", "se:reduction=8")
        )
    if kind == 4:
        return changed_word(rng, rng.choice((*places, *override_keys(), *list_recipes())))
    return str(boundary(rng))[:5000]


def command_line(rng: random.Random, vocabulary: dict[str, list[str]], places: list[str]) -> list[str]:
    command = rng.choice(list(vocabulary))
    words = [part if rng.random() < 0.95 else changed_word(rng, part) for part in command.split()]
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 8))):
        if rng.random() < 0.4 and vocabulary[command]:
            option = rng.choice(vocabulary[command])
            words.append(option if rng.random() < 0.8 else changed_word(rng, option))
            if rng.random() < 0.7:
                words.append(value(rng, places))
        else:
            words.append(value(rng, places))
    return [word.replace("\0", "") for word in words]  # no system passes it on


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny) -> list[str]:
    """What there is to name: a run, its files, folders of images, files that are none of these."""
    root = tmp_path_factory.mktemp("places")
    shutil.copytree(tiny.gated, root / "run")
    for name in ("cat", "dog"):
        (root / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "images" / name / "0.png")
    (root / "empty").mkdir()
    (root / "text.yaml").write_text("name: x\n")
    (root / "broken.safetensors").write_bytes(b"x" * 100)
    found = [
        root / name
        for name in ("run", "images", "empty", "text.yaml", "broken.safetensors", "not-there", "run/recipe.yaml")
    ]
    found += [
        root / "run/model.safetensors",
        root / "images/cat/0.png",
        root / "images" / "*" / "*.png",
        *(root / "run/checkpoints").iterdir(),
    ]
    return [*map(str, found), "s3://", "hf:a", "https://", "file:///x", "runs", ".", "-"]


def test_command_lines(no_work, no_network, vocabulary, places, tmp_path, monkeypatch):
    monkeypatch.setenv("EXCITE_CACHE", str(tmp_path))
    understood: list[int | None] = []

    def one(case: Case) -> None:
        understood.append(check(case.folder, command_line(case.rng, vocabulary, places)))

    Surface("commands", seconds=30, megabytes=1024, writable=(tmp_path,)).run(
        one, test="test_commands.py::test_command_lines"
    )
    assert understood.count(None) > 0, "no command line reached its work"
    assert understood.count(1) > len(understood) // 10


@pytest.mark.parametrize("path", found("commands"), ids=lambda path: path.name)
def test_corpus(path, no_work, tmp_path):
    """Command lines that were found, one word a line."""
    assert check(tmp_path, path.read_text("utf-8").splitlines()) == 2
