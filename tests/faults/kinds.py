"""The kinds of faults. Each is planted into a job, which is then started again until it ends, and its result compared.

A job is a function of a module; started again with the same arguments it goes on, as a scheduler would have it.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import torch

from excite.models import create_model
from excite.recipe import Recipe
from excite.weights.own import read_own
from excite.weights.write import export_state_dict, save_state_dict
from tests.faults.harness import HUNG_STATUS, Fault, Outcome, result_of, run_job, was_killed
from tests.training.small import small

K = TypeVar("K", bound=Hashable)
#: Most restarts: one more than a fault can need.
RESTARTS = 3

#: Up to so many faults the short runs have places enough.
FEW = 8
#: Kinds of places, and what they are called.
NAMES = {
    "step": "step",
    "evaluation": "evaluation",
    "save": "save",
    "file": "file operation",
    "collective": "collective operation",
}


@dataclass
class Row:
    """A line of the table: how often a fault was planted and what became of it.

    Attributes:
        planted: how often; ``reached``: how often it struck before the job had ended.
        lost: jobs that could not be brought to their end; ``hung``; ``tracebacks``; ``wrong``: another result.
        examples: what was said in the cases that went wrong.
    """

    fault: str
    planted: int = 0
    reached: int = 0
    lost: int = 0
    hung: int = 0
    tracebacks: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return self.reached > 0 and not (self.lost or self.hung or self.tracebacks or self.wrong)


def train_job(recipe: str, run: str) -> None:
    """Train in ``run``, or go on in it."""
    from excite.training import train

    train(Recipe.from_yaml(recipe), run_dir=run, quiet=True)


def train_until(recipe: str, run: str, step: int) -> None:
    """Train in ``run``, and stop after a step as after a signal."""
    from excite.training import train

    train(Recipe.from_yaml(recipe), run_dir=run, quiet=True, until=step)


def in_memory() -> str:
    """A recipe whose checkpoints and evaluations come often."""
    return small("epochs=2", "checkpoint.every_steps=2", "limit_train=128").to_yaml()


def from_files(images: Path, *overrides: str) -> str:
    """The same, with images that a worker decodes."""
    words = ("data.source=folder", f"data.root={images}", "data.mode=stream", "data.workers=1", "in_chans=3")
    more = ("data.image_size=8", "limit_train=null", "limit_val=null", "epochs=2", "checkpoint.every_steps=2")
    return small(*words, *more, "train.batch_size=16", *overrides).to_yaml()


def longer(kind: str) -> str:
    """A recipe of tiny epochs with more than fifty places of a kind; for "file" the usual one has hundreds."""
    if kind == "file":
        return in_memory()
    few = ("limit_val=16", "train.batch_size=16")
    if kind == "evaluation":
        return small("epochs=52", "limit_train=16", *few).to_yaml()
    every = 1 if kind == "save" else 2
    return small("epochs=18", "limit_train=48", f"checkpoint.every_steps={every}", *few).to_yaml()


def make_images(folder: Path) -> Path:
    """96 training and 32 validation images of two classes."""
    from PIL import Image

    draw = random.Random(5)
    for part, count in (("train", 48), ("val", 16)):
        for name in ("dark", "light"):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                level = draw.randrange(100) + (0 if name == "dark" else 120)
                image = Image.new("RGB", (16, 16), (level, draw.randrange(256), level))
                image.save(place / f"{number:03}.png")
    return folder


def plant(row: Row, make: Callable[[Path], tuple[str, Path]], faults: Iterator[Fault], folder: Path, world: int) -> Row:
    """Plant faults into trainings.

    Args:
        row: where to count.
        make: folder -> the recipe (YAML) and the run folder.
        faults: what to plant.
        folder: for the runs; each is deleted once it has been compared.
        world: number of ranks.
    """
    recipe, run = make(folder / "undisturbed")
    calm = run_job(train_job, [recipe, str(run)], run, Fault(), world)
    assert calm.statuses == [0] * world, calm.said
    wanted = result_of(run)
    for number, fault in enumerate(faults):
        recipe, run = make(folder / f"run-{number}")
        row.planted += 1
        first = run_job(train_job, [recipe, str(run)], run, fault, world)
        row.reached += first.statuses != [0] * world
        count(row, first, fault)
        last = first
        for _ in range(RESTARTS):
            if last.statuses == [0] * world:
                break
            last = run_job(train_job, [recipe, str(run)], run, Fault("step", 0), world)
            count(row, last, fault)
        if last.statuses != [0] * world:
            row.lost += 1
            row.examples.append(f"{fault}: {last.said}")
        elif (got := result_of(run)) != wanted:
            row.wrong += 1
            row.examples.append(f"{fault}: {[name for name in wanted if got.get(name) != wanted[name]]}")
        shutil.rmtree(run.parent, ignore_errors=True)
    return row


def count(row: Row, outcome: Outcome, fault: Fault) -> None:
    if outcome.hung:
        row.hung += 1
        row.examples.append(f"{fault}: hung: {outcome.said}")
    if outcome.tracebacks or any(s not in (0, 1, HUNG_STATUS) and not was_killed(s) for s in outcome.statuses):
        row.tracebacks += 1
        row.examples.append(f"{fault}: {outcome.statuses}: {outcome.said}")


def ticks_of(recipe: str, run: Path, kind: str, world: int = 1) -> int:
    """How often a job reaches a trap of this kind."""
    counted = run_job(train_job, [recipe, str(run)], run, Fault(kind), world)
    assert counted.statuses == [0] * world, counted.said
    return counted.ticks


def spread(total: int, times: int, seed: int) -> list[int]:
    """``times`` different numbers from 1 to ``total``, at random; all if there are fewer."""
    return sorted(random.Random(seed).sample(range(1, total + 1), min(times, total)))


def in_turn(counts: Mapping[K, int], times: int, seed: int) -> list[tuple[K, int]]:
    """``times`` different places, as many of each kind as there are: one of each in turn, at random within a kind."""
    places = {kind: random.Random(f"{seed} {kind}").sample(range(1, n + 1), n) for kind, n in counts.items()}
    drawn: list[tuple[K, int]] = []
    while len(drawn) < times and any(places.values()):
        for kind, left in places.items():
            if left and len(drawn) < times:
                drawn.append((kind, left.pop()))
    return drawn


# --- the kinds --------------------------------------------------------------------------------------------------------


def killed_at(kind: str, folder: Path, times: int, seed: int = 0) -> Row:
    """One process, killed before its K-th file operation, step, evaluation or save."""
    recipe = in_memory() if times <= FEW else longer(kind)

    def make(place: Path) -> tuple[str, Path]:
        place.mkdir(parents=True, exist_ok=True)
        return recipe, place / "run"

    total = ticks_of(*make(folder / "counted"), kind)
    faults = (Fault(kind, at) for at in spread(total, times, seed))
    return plant(Row(f"killed before {NAMES[kind]} K of {total}"), make, faults, folder, 1)


def worker_killed(folder: Path, times: int, seed: int = 0) -> Row:
    """A decoding worker is killed before the K-th step: the run saves, ends with a sentence and is started again."""
    images = make_images(folder / "images")
    recipe = (
        from_files(images)
        if times <= FEW
        else from_files(images, "epochs=3", "train.batch_size=5", "checkpoint.every_steps=6")
    )

    def make(place: Path) -> tuple[str, Path]:
        place.mkdir(parents=True, exist_ok=True)
        return recipe, place / "run"

    total = ticks_of(*make(folder / "counted"), "step")
    row = Row(f"decoding worker killed before step K of {total}")
    # Near the end of an epoch a worker may have done its work and be gone: then another step is drawn.
    drawn = random.Random(seed).sample(range(1, total + 1), total)
    steps = takewhile(lambda _: row.reached < times, drawn)
    return plant(row, make, (Fault("step", at, "worker") for at in steps), folder, 1)


def rank_killed(folder: Path, times: int, ranks: Sequence[int], action: str = "die", seed: int = 0) -> Row:
    """One of two ranks, or with the action "node" both as soon as one of ``ranks`` is there, killed at places of
    several kinds, and the job started again."""

    def make(place: Path) -> tuple[str, Path]:
        place.mkdir(parents=True, exist_ok=True)
        return in_memory(), place / "run"

    counts = {}
    for rank in ranks:
        for kind in list(NAMES)[:times]:
            place = make(folder / f"counted-{rank}-{kind}")
            counted = run_job(train_job, [place[0], str(place[1])], place[1], Fault(kind, rank=rank), 2)
            assert counted.statuses == [0, 0], counted.said
            counts[(rank, kind)] = counted.ticks
    faults = [Fault(kind, at, action, rank) for (rank, kind), at in in_turn(counts, times, seed)]
    drawn = Counter(fault.kind for fault in faults)
    found = Counter[str]()
    for (_, kind), count in counts.items():
        found[kind] += count
    where = ", ".join(f"{drawn[kind]} of {found[kind]} {NAMES[kind]}s" for kind in NAMES if found[kind])
    who = "both of 2 ranks (the node)" if action == "node" else f"rank {ranks[0]} of 2"
    return plant(Row(f"{who} killed before {where}"), make, iter(faults), folder, 2)


# --- commands ---------------------------------------------------------------------------------------------------------


def command_job(words: list[str], folder: str) -> None:
    """Run a command in a folder."""
    os.chdir(folder)
    sys.argv = ["excite", *words]
    from excite.cli import main

    main()


#: Command -> its words, the files or folders that it writes, and whether the same input gives the same bytes.
COMMANDS: dict[str, tuple[list[str], list[str], bool]] = {
    "convert": (["convert", "net.pth", "new.safetensors", "--force"], ["new.safetensors"], True),
    "graft": (["graft", "net.pth", "--gate", "eca", "--out", "new.safetensors", "--force"], ["new.safetensors"], True),
    "export": (
        ["export", "source", "--format", "onnx", "--images", "20", "--out", "new.onnx", "--force"],
        ["new.onnx"],
        False,
    ),
    "report": (["report", "source"], ["source/report.html"], False),
    "prune": (["prune", "source", "--out", "pruned", "--max-drop", "100"], ["pruned/model.safetensors"], False),
    "twins": (["twins", "small.yaml", "--gates", "none,se", "--seeds", "1", "--out", "twins"], [], False),
}


#: What a pruning leaves.
_PRUNED = {"model.safetensors", "prune.json", "prune.png"}


def command_killed(name: str, folder: Path, times: int, seed: int = 0) -> Row:
    """A command is killed before its K-th file operation: what was there before, or the whole new file, is there; the
    next run of the command ends well and leaves nothing temporary."""
    words, targets, same = COMMANDS[name]
    model = _source(folder / "model")
    place = _fresh(model, folder / "undisturbed")
    counted = run_job(command_job, [words, str(place)], place, Fault("file"))
    assert counted.statuses == [0], counted.said
    wanted = {target: _content(place / target) for target in targets}
    row = Row(f"{name}: killed before file operation K of {counted.ticks}")
    for at in spread(counted.ticks, times, seed):
        place = _fresh(model, folder / f"at-{at}")
        for target in targets if "--force" in words else []:
            (place / target).write_bytes(b"before")
        row.planted += 1
        first = run_job(command_job, [words, str(place)], place, Fault("file", at))
        row.reached += first.statuses != [0]
        count(row, first, Fault("file", at))
        for target in targets if "--force" in words else []:
            found = _content(place / target)
            if found not in (b"before", wanted[target]) and (same or not _is_onnx(place / target)):
                row.wrong += 1
                row.examples.append(f"{name} at {at}: {target} is neither the old nor the new one")
        done = name == "prune" and (place / "pruned").exists()  # killed after the last rename: it is complete
        again = run_job(command_job, [words, str(place)], place, Fault("step"))
        count(row, again, Fault("file", at))
        if done:
            read_own(place / "pruned" / "model.safetensors")  # raises if its digest is another
            if "already exists" not in again.said or {p.name for p in (place / "pruned").iterdir()} != _PRUNED:
                row.wrong += 1
                row.examples.append(f"{name} at {at}: {again.said}")
        elif again.statuses != [0]:
            row.lost += 1
            row.examples.append(f"{name} at {at}: {again.said}")
        elif same and {target: _content(place / target) for target in targets} != wanted:
            row.wrong += 1
            row.examples.append(f"{name} at {at}: another result")
        if left := [str(path) for path in place.rglob(".*.tmp-*")]:
            row.wrong += 1
            row.examples.append(f"{name} at {at}: left over: {left[0]}")
        shutil.rmtree(place)
    return row


def _is_onnx(path: Path) -> bool:
    """Whether this is a whole ONNX file. Two exports differ in the times that they note."""
    import onnx

    try:
        onnx.checker.check_model(onnx.load(path))
    except Exception:  # protobuf and the checker have errors of their own
        return False
    return True


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _source(folder: Path) -> Path:
    """A trained run ("source"), a network of torchvision's ("net.pth") and a recipe ("small.yaml")."""
    folder.mkdir(parents=True)
    words = ("epochs=1", "mixup=0.0", "limit_train=128", "report.robustness_images=5", "report.gate_images=5")
    made = run_job(train_job, [small(*words).to_yaml(), str(folder / "source")], folder / "source", Fault())
    assert made.statuses == [0], made.said
    torch.manual_seed(0)
    network = export_state_dict(create_model("resnet18", num_classes=10), "torchvision")
    save_state_dict(network, folder / "net.pth")
    (folder / "small.yaml").write_text(small("epochs=1", "limit_train=96").to_yaml())
    return folder


def _fresh(source: Path, place: Path) -> Path:
    shutil.copytree(source, place)
    return place


# --- disks ------------------------------------------------------------------------------------------------------------


def _undisturbed(folder: Path) -> tuple[str, Path, int]:
    """A training without a fault: its recipe, its run folder, its number of steps."""
    recipe, run = in_memory(), folder / "undisturbed" / "run"
    run.parent.mkdir(parents=True)
    calm = run_job(train_job, [recipe, str(run)], run, Fault("step"))
    assert calm.statuses == [0], calm.said
    return recipe, run, calm.ticks


def full_disk(folder: Path, sizes: list[int]) -> Row:
    """A training on a disk of so many kilobytes; when it is full, the run goes on on a larger one."""
    recipe, run, _ = _undisturbed(folder)
    wanted, row = result_of(run), Row("disk full at " + ", ".join(f"{size / 1000:g}" for size in sizes) + " MB")
    for size in sizes:
        disk = folder / f"disk-{size}"
        disk.mkdir()
        with mounted(disk, f"size={size}k"):
            row.planted += 1
            first = run_job(train_job, [recipe, str(disk / "run")], disk / "run", Fault())
            row.reached += first.statuses != [0]
            count(row, first, Fault("disk", size))
            if first.statuses != [0] and "disk is full" not in first.said:
                row.wrong += 1
                row.examples.append(f"{size} kB: {first.said}")
            larger = folder / f"larger-{size}"
            if (disk / "run").is_dir():
                shutil.copytree(disk / "run", larger / "run")
            larger.mkdir(exist_ok=True)
        _goes_on(row, recipe, larger / "run", wanted, f"{size} kB")
    return row


def read_only(folder: Path, times: int, seed: int = 0) -> Row:
    """The disk becomes read-only before the K-th step; the run goes on when it is writable again."""
    recipe, run, steps = _undisturbed(folder)
    wanted, row = result_of(run), Row("disk becomes read-only before step K")
    for at in spread(steps, times, seed):
        disk = folder / f"disk-{at}"
        disk.mkdir()
        with mounted(disk, "bind"):
            row.planted += 1
            first = run_job(train_job, [recipe, str(disk / "run")], disk / "run", Fault("step", at, "read-only"))
            row.reached += first.statuses != [0]
            count(row, first, Fault("read-only", at))
            subprocess.run(["mount", "-o", "remount,bind,rw", str(disk)], check=True)
            _goes_on(row, recipe, disk / "run", wanted, f"step {at}")
    return row


def _goes_on(row: Row, recipe: str, run: Path, wanted: dict[str, str], what: str) -> None:
    last = run_job(train_job, [recipe, str(run)], run, Fault("step"))
    count(row, last, Fault())
    judge(row, what, last, run, wanted)


def judge(row: Row, what: str, last: Outcome, run: Path, wanted: dict[str, str]) -> bool:
    """Whether the job has come to its end with the wanted result; counts it in the row if not."""
    if last.statuses != [0]:
        row.lost += 1
        row.examples.append(f"{what}: {last.said}")
    elif result_of(run) != wanted:
        row.wrong += 1
        row.examples.append(f"{what}: another result")
    else:
        return True
    return False


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory, or with "bind" the folder as one. Raises PermissionError without the right."""
    how = ["--bind", str(folder)] if options == "bind" else ["-t", "tmpfs", "-o", options, "tmpfs"]
    done = subprocess.run(["mount", *how, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda raw: None,
    "empty": lambda raw: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "a bit": lambda raw: raw[: len(raw) // 3] + bytes([raw[len(raw) // 3] ^ 4]) + raw[len(raw) // 3 + 1 :],
    "zeros": lambda raw: (
        raw[: len(raw) // 2] + bytes(min(4096, len(raw) - len(raw) // 2)) + raw[len(raw) // 2 + 4096 :]
    ),
    "foreign": lambda raw: b"\x89PNG\r\n\x1a\n" * 9,
}


def damaged(folder: Path, seed: int = 0, times: int = 10**6) -> Row:
    """Every file of a run in every way; the run goes on, and ends with the same weights or says in one sentence why
    not."""
    recipe, run, _ = _undisturbed(folder)
    wanted = result_of(run)
    half = folder / "half" / "run"
    half.parent.mkdir()
    begun = run_job(train_until, [recipe, str(half), 6], half, Fault("step"))
    assert begun.statuses == [1], begun.said  # after steps 2, 4 and 6, of which the last two are kept
    names = sorted(str(path.relative_to(half)) for path in half.rglob("*") if path.is_file())
    cases = [(name, how) for name in names for how in DAMAGES if not Path(name).name.startswith(".owner")]
    row = Row(f"each of {len(names)} files damaged in {len(DAMAGES)} ways")
    for name, how in random.Random(seed).sample(cases, min(times, len(cases))):
        place = folder / "damaged" / "run"
        shutil.copytree(half, place)
        raw = DAMAGES[how]((place / name).read_bytes())
        if raw is None:
            (place / name).unlink()
        elif not raw and not (place / name).read_bytes():
            continue
        else:
            (place / name).write_bytes(raw)
        row.planted += 1
        row.reached += 1
        last = run_job(train_job, [recipe, str(place)], place, Fault("step"))
        count(row, last, Fault(f"{name}: {how}"))
        if last.statuses == [1] and name == "recipe.yaml":
            pass  # said in one sentence: what to train is not known any more
        elif last.statuses != [0]:
            row.lost += 1
            row.examples.append(f"{name} ({how}): {last.said}")
        elif result_of(place) != wanted:
            row.wrong += 1
            row.examples.append(f"{name} ({how}): another result")
        shutil.rmtree(place.parent)
    return row
