"""Commands on more images than memory holds: a process gets little more memory than it needs for a few images."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from excite.recipe import Recipe
from tests.soak.watch import MB, Watch, wait_for_the_end
from tests.training.small import small

#: Where version 1 of cgroups is mounted, and version 2.
_VERSION_1, _VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
KINDS = ("cgroup", "ulimit")
#: For "ulimit": glibc gives back at once what is freed, instead of keeping up to 50 MB of activations, more or less
#: from run to run. Mapping them anew takes several times as long: a long run has a cgroup and more room instead.
PRECISE = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1"}


@dataclass
class Done:
    """A command that has ended.

    Attributes:
        status: its exit status.
        out, said: what it printed on standard output and on standard error.
        seconds: how long it took.
        memory: most MB of anonymous and shared memory of all its processes; ``data``: most MB of virtual memory that
            are not mapped files, in one process. The limits of cgroups and of ``ulimit -d`` are on these.
    """

    status: int
    out: str
    said: str
    seconds: float
    memory: float = 0.0
    data: float = 0.0

    def peak(self, kind: str) -> float:
        """What a limit of this kind limits."""
        return self.memory if kind == "cgroup" else self.data


def run(
    words: Sequence[str],
    scratch: Path,
    kind: str = "",
    megabytes: float = 0.0,
    precise: bool = False,
    every: float = 0.05,
) -> Done:
    """Run a command, within a limit of memory if ``kind`` is given.

    Args:
        words: the command.
        scratch: a folder for its $TMPDIR and what it prints.
        kind: "cgroup" (a limit for all its processes together) or "ulimit" (``ulimit -d``, for each).
        megabytes: the limit.
        precise: whether to have memory given back at once; see :data:`PRECISE`.
        every: seconds between two looks at its memory.
    """
    temporary = scratch / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    with fence(kind, megabytes) as enter, (scratch / "out").open("wb") as out, (scratch / "err").open("wb") as err:
        since = time.monotonic()
        environment = {**os.environ, **(PRECISE if precise else {}), "TMPDIR": str(temporary)}
        process = subprocess.Popen(
            words, stdout=out, stderr=err, env=environment, start_new_session=True, preexec_fn=enter
        )
        watch, data = Watch(process.pid, temporary, temporary), 0.0
        try:
            while process.poll() is None:
                watch.sample()
                data = max([data, *_data(process.pid)])
                time.sleep(every)
        finally:
            process.kill()
            process.wait()
        seconds = time.monotonic() - since
        wait_for_the_end(process.pid)
    texts = [(scratch / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
    peak = max((sample.memory for sample in watch.samples), default=0.0)
    return Done(process.returncode, *texts, seconds, peak, data)


def _data(pid: int) -> Iterator[float]:
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in family:
            yield process.memory_info().data / MB
    except psutil.Error:
        return


@contextmanager
def fence(kind: str, megabytes: float) -> Iterator[Callable[[], None] | None]:
    """What a child calls before it becomes the command. Raises PermissionError if there may be no cgroups."""
    if not kind:
        yield None
        return
    size = int(megabytes * MB)
    if kind == "ulimit":
        yield lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        return
    first = (_VERSION_1 / "memory.limit_in_bytes").exists()
    place = (_VERSION_1 if first else _VERSION_2) / f"excite-soak-{os.getpid()}"
    try:
        place.mkdir()
        (place / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(size))
    except OSError as error:
        if place.is_dir():
            place.rmdir()
        raise PermissionError(f"no cgroup with a limit of memory can be made: {error}") from None
    try:
        yield lambda: (place / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        _remove(place)


def _remove(place: Path) -> None:
    for _ in range(100):
        try:
            for pid in (place / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            place.rmdir()
            return
        except OSError:  # a killed process is not gone at once
            time.sleep(0.1)


def make_images(folder: Path, distinct: int, copies: int, side: int) -> Path:
    """Class folders with ``distinct`` JPEG files of two classes, each under ``copies`` names (hard links)."""
    import random

    from PIL import Image

    draw = random.Random(7)
    for number in range(distinct):
        name, level = (("dark", 60), ("light", 180))[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        noise = Image.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((side, side))
        first = folder / name / f"{number:05}-0.jpg"
        Image.blend(noise, Image.new("RGB", (side, side), (level,) * 3), 0.3).save(first)
        for copy in range(1, copies):
            os.link(first, folder / name / f"{number:05}-{copy}.jpg")
    return folder


def copied(few: Path, many: Path, copies: int) -> Path:
    """The images of ``few``, each under ``copies`` names."""
    for path in sorted(few.rglob("*.jpg")):
        place = many / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            os.link(path, place / f"{path.stem}-{copy}.jpg")
    return many


def recipe_for(images: Path, side: int) -> Recipe:
    """One epoch of a network that is quick for the size of its images, evaluated in batches of which few images already
    have several."""
    data = ("data.source=folder", f"data.root={images}", "in_chans=3", f"data.image_size={side}", "data.workers=0")
    more = ("model.name=se_efficientnet_lite0", "train.batch_size=16", "eval.batch_size=16", "epochs=1")
    return small(*data, *more, "data.limit_train=32", "data.limit_val=null")


def excite(*words: object) -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-P", "-m", "excite", *map(str, words)]


@dataclass
class Studied:
    """A command on few images without a limit, and on many within one.

    Attributes:
        command: "validate", "predict", "report".
        images: how many are many; ``few``: how many are few.
        decoded: MB that the many take when decoded.
        allowed: MB of memory beyond the peak with few.
        before, within: how the command went on few and on many.
        differing: figures that differ, although they should not.
    """

    command: str
    images: int
    few: int
    decoded: float
    allowed: float
    before: Done
    within: Done
    differing: list[str] = field(default_factory=list)

    @property
    def bytes_an_image(self) -> float:
        """Memory that an image more takes, if there are many more: peaks are as exact as samples and glibc allow."""
        return MB * (self.within.memory - self.before.memory) / (self.images - self.few)

    @property
    def wrong(self) -> list[str]:
        """What went wrong; [] if all is well."""
        failed = [
            f"{self.command} on {images} images ended with status {done.status}: {done.said.strip()[-300:]}"
            for images, done in ((self.few, self.before), (self.images, self.within))
            if done.status
        ]
        return [*failed, *self.differing]


def prepare(folder: Path, few: int, copies: int, side: int) -> tuple[Path, Path, Path]:
    """A run, ``few`` images that it was not trained on, and the same ones under ``copies`` names each.

    Args:
        folder: an empty folder.
        few: number of images.
        copies: number of names.
        side: side of the images that the network sees.
    """
    from excite.training import train

    images = make_images(folder / "few", few, 1, side + 32)
    train(recipe_for(copied(images, folder / "train", 1), side), run_dir=folder / "run", quiet=True)
    return folder / "run", images, copied(images, folder / "many", copies)


def study(
    command: str,
    network: Path,
    few: Path,
    many: Path,
    copies: int,
    size: int,
    scratch: Path,
    kind: str,
    allowed: float,
    mode: str = "auto",
) -> Studied:
    """Run a command on few images, then on many within little more memory, and compare what they say.

    Args:
        command: "validate", "predict" or "report".
        network: a run folder.
        few, many: see :func:`copied`.
        copies: how often each image is among the many.
        size: side of the images that the network sees.
        scratch: an empty folder.
        kind: of the limit, see :func:`run`.
        allowed: MB beyond the peak with few.
        mode: ``data.mode``.
    """
    count = sum(1 for _ in few.rglob("*.jpg"))
    done = []
    for name, images in (("few", few), ("many", many)):
        words = _words(command, network, images, scratch / name, mode)
        limit = (kind, done[0].peak(kind) + allowed) if done else ()
        done.append(run(words, scratch / name, *limit, precise=kind == "ulimit"))
    decoded = 3 * size**2 * count * copies / MB
    found = Studied(command, count * copies, count, decoded, allowed, *done)
    if not any(each.status for each in done):
        found.differing = _compare(command, *(json.loads(each.out) for each in done), copies)
    return found


def _words(command: str, network: Path, images: Path, scratch: Path, mode: str) -> list[str]:
    if command == "predict":
        return excite("predict", network, images, "--batch-size", 16, "--json")
    other = (f"data.root={images}", f"data.mode={mode}", "data.workers=1", "data.limit_val=null")
    if command == "validate":
        return excite("validate", network, *other, "--json")
    scratch.mkdir(parents=True)
    limits = ("report.robustness_images=100", "report.gate_images=100")
    return excite("report", network, *other, *limits, "--out", scratch / "page.html", "--quick", "--json")


def _compare(command: str, few: Any, many: Any, copies: int) -> list[str]:
    """Where the figures of many differ from what they have to be."""
    if command == "predict":
        wanted = {Path(row["path"]).stem: row["top"] for row in few}
        found = [row for row in many if not _same(row["top"], wanted[Path(row["path"]).stem.rpartition("-")[0]])]
        lost = [] if len(many) == copies * len(few) else [f"{len(many)} predictions"]
        return [*lost, *(f"another prediction for {row['path']}" for row in found[:5])]
    if command == "report":
        few, many = few["accuracy"], many["accuracy"]
    keys = ("top1", "top5", *(("loss", "balanced") if command == "validate" else ()))
    wrong = [f"{key} is {many[key]}, not {few[key]}" for key in keys if abs(many[key] - few[key]) > 1e-4]
    return wrong + ([] if many["images"] == copies * few["images"] else [f"{many['images']} images"])


def _same(one: Any, other: Any) -> bool:
    """Whether two predictions agree; in batches of another size, sums are rounded differently."""
    return [row["class"] for row in one] == [row["class"] for row in other] and all(
        abs(a["probability"] - b["probability"]) < 1e-4 for a, b in zip(one, other, strict=True)
    )
