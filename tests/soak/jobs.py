"""What is watched: ``python -m tests.soak.jobs KIND FOLDER AMOUNT [LEAK]``, a process of its own.

KIND and AMOUNT: "train" and minutes; "evaluate" and a number of evaluations; "predict" and a number of predictions;
"nothing" and a number of times that nothing is done.
LEAK, one of :data:`LEAKS`, is planted to see that it is noticed.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import torch

from excite.recipe import Recipe
from excite.training.stop import Interrupted
from tests.training.small import small

#: Training images and validation images of each of two classes: an evaluation takes a fraction of an epoch's time.
TRAIN, VAL = 1024, 128
SIDE = 40
#: Evaluations, or predictions, before which a process is not warm: caches fill, libraries are loaded, threads start.
WARM = {"evaluate": 5, "predict": 200, "nothing": 20}
#: Steps before which training is not warm: an epoch has 64, and every second one is evaluated.
WARM_STEPS = 135


def make_images(folder: Path) -> Path:
    """Class folders with two classes of small JPEG files."""
    from PIL import Image

    draw = random.Random(5)
    for part, count in (("train", TRAIN), ("val", VAL)):
        for name, level in (("dark", 60), ("light", 180)):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                noise = Image.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((SIDE, SIDE))
                Image.blend(noise, Image.new("RGB", (SIDE, SIDE), (level,) * 3), 0.7).save(place / f"{number:04}.jpg")
    return folder


def recipe_for(images: Path, epochs: int) -> Recipe:
    """Images that workers decode, a moving average, mixup, checkpoints and evaluations that come often."""
    data = ("data.source=folder", f"data.root={images}", "data.mode=stream", "data.workers=2", "in_chans=3")
    sizes = ("data.image_size=32", "limit_train=null", "limit_val=null", "train.batch_size=32")
    often = ("checkpoint.every_steps=20", "eval.every_epochs=2", "log.every_steps=10")
    return small(*data, *sizes, *often, f"epochs={epochs}")


def run_of(folder: Path) -> Path:
    """The run folder of a job."""
    return folder / "run"


def train_for(folder: Path, minutes: float) -> int:
    """Train until a signal comes, as from a scheduler; returns the steps."""
    from excite.training import loop, train
    from excite.weights.locate import saved_steps

    def end() -> None:
        time.sleep(60 * minutes)
        os.kill(os.getpid(), signal.SIGTERM)

    def begin() -> None:
        print("warm", flush=True)
        threading.Thread(target=end, daemon=True).start()

    def evaluated(*args: Any) -> None:
        evaluate(*args)
        tick()

    evaluate, loop.record_evaluation = loop.record_evaluation, evaluated
    after(WARM_STEPS, begin, loop, "train_step")
    try:
        train(recipe_for(folder / "images", 10**6), run_dir=run_of(folder), quiet=True)
    except Interrupted:
        return saved_steps(run_of(folder))[-1]
    raise AssertionError("it ended by itself")


def evaluate_times(folder: Path, times: int) -> int:
    """Evaluate a run again and again, opened anew each time."""
    import excite

    results = set()
    for number in range(WARM["evaluate"] + times):
        if number == WARM["evaluate"]:
            print("warm", flush=True)
        results.add(str(excite.validate(run_of(folder)).evaluation.summary()))
        tick()
    assert len(results) == 1, results
    return times


def predict_times(folder: Path, times: int) -> int:
    """Classify one image a call, in all the forms in which images are given; each hundredth with a network loaded
    anew, as ``excite predict`` does."""
    import numpy as np
    from PIL import Image

    import excite

    paths = sorted(str(path) for path in (folder / "images" / "val").rglob("*.jpg"))

    def as_array(path: str) -> Any:
        with Image.open(path) as image:
            return np.asarray(image)

    forms: list[Callable[[str], Any]] = [str, Path, Image.open, as_array, lambda path: Path(path).read_bytes()]
    model = excite.load(run_of(folder))
    for number in range(WARM["predict"] + times):
        if number == WARM["predict"]:
            print("warm", flush=True)
        path = paths[number % len(paths)]
        given = forms[number % len(forms)](path)
        found = model(given) if number % 100 else excite.predict(run_of(folder), given)
        assert len(found) == 1
        assert found[0].top
        tick()
    return times


def do_nothing(folder: Path, times: int) -> int:
    """What leaks are planted into to see that every kind is noticed: there is nothing else that could change."""
    for number in range(WARM["nothing"] + times):
        if number == WARM["nothing"]:
            print("warm", flush=True)
        time.sleep(0.1)
        tick()
    return times


JOBS: dict[str, Callable[[Path, Any], int]] = {
    "nothing": do_nothing,
    "train": train_for,
    "evaluate": evaluate_times,
    "predict": predict_times,
}

_ticks: list[Callable[[], object]] = []


def tick() -> None:
    """After each evaluation or prediction."""
    for each in _ticks:
        each()


def after(count: int, act: Callable[[], object], module: Any, name: str) -> None:
    """Call ``act`` once, before call number ``count`` of a function of a module."""
    genuine, left = getattr(module, name), [count]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            act()
        return genuine(*args, **kwargs)

    setattr(module, name, counted)


# --- planted leaks ----------------------------------------------------------------------------------------------------

_kept: list[Any] = []


def _leak_memory() -> None:
    _kept.append(bytearray(os.urandom(1 << 20)))  # not zeros, which would take no memory


def _leak_descriptor() -> None:
    _kept.append(os.open(os.devnull, os.O_RDONLY))


def _leak_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def _leak_process() -> None:
    import subprocess

    _kept.append(subprocess.Popen(["sleep", "600"]))


def _leak_shared() -> None:
    _kept.append(torch.ones(1 << 18).share_memory_())


def _leak_name() -> None:
    block = shared_memory.SharedMemory(create=True, size=1 << 16)
    block.close()
    os.environ["SOAK_LEFT"] = block.name


def _leak_temporary() -> None:
    import tempfile

    tempfile.mkdtemp(prefix="soak-")


#: What is leaked at every tick, and the measure that has to notice it.
LEAKS: dict[str, tuple[Callable[[], None], str]] = {
    "memory": (_leak_memory, "memory"),
    "descriptor": (_leak_descriptor, "descriptors"),
    "thread": (_leak_thread, "threads"),
    "process": (_leak_process, "processes"),
    "shared": (_leak_shared, "shm_mb"),
    "name": (_leak_name, "shm_files"),
    "temporary": (_leak_temporary, "temporary"),
}


def main() -> None:
    """Entry point."""
    torch.set_num_threads(1)
    kind, folder, amount, *leak = sys.argv[1:]
    for name in leak:
        _ticks.append(LEAKS[name][0])
    done = JOBS[kind](Path(folder), float(amount) if kind == "train" else int(amount))
    print(f"done {done}", flush=True)


if __name__ == "__main__":
    main()
