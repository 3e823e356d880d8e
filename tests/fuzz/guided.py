"""Whether fuzzing that is guided by coverage finds more than seeded changes: on the readers of Caffe and MindSpore.

    python -m tests.fuzz.guided seeded|atheris SECONDS FOLDER    # atheris: pip install --target DIR atheris, PYTHONPATH

Prints how many inputs were read in the time, how many lines of the readers they reached, and the faults. Both begin
with the same files. ``FOLDER`` is empty; what atheris keeps goes there.
"""

import contextlib
import importlib
import os
import random
import subprocess
import sys
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from excite.errors import ExciteError
from excite.untrusted.raw import Damaged
from tests.fuzz.mutations import mutated

MODULES = ("caffe", "mindspore", "wire")
WHERE = Path("input")
#: Tracing is a hundred times as slow: of the seeded inputs so many are, which can only be to their disadvantage.
MOST_TRACED = 30_000


def whole() -> list[bytes]:
    """A file of each form, small: what is changed."""
    import torch

    from tests.weights import writers
    from tests.weights.test_readers import caffe_layers

    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)}
    made = [writers.caffe(caffe_layers(v1), v1=v1, packed=packed) for v1 in (False, True) for packed in (False, True)]
    return [*made, writers.mindspore(tensors, pieces=3), writers.mindspore(tensors, crc=True)]


def read(content: bytes) -> None:
    """Give an input to both readers. Anything but a result and one sentence is a fault."""
    from excite.weights import caffe, mindspore

    for reader in (caffe, mindspore):
        view = memoryview(content)
        with contextlib.suppress(ExciteError, Damaged):  # `read_weights` makes a sentence of the second
            if reader.looks_like(view):
                reader.read(WHERE, view)


def seeded(seconds: float) -> tuple[int, list[bytes], list[str]]:
    """Changes by ``mutated``: (inputs read, those of a sample to be traced, faults)."""
    rng, seeds, until = random.Random(0), whole(), time.monotonic() + seconds
    number, faults = 0, set[str]()
    while time.monotonic() < until:
        number += 1
        try:
            read(mutated(rng, rng.choice(seeds), others=seeds))
        except Exception as error:
            faults.add(f"{type(error).__name__}: {error}")
    again = random.Random(0)
    first = min(number, MOST_TRACED)
    return number, [mutated(again, again.choice(seeds), others=seeds) for _ in range(first)], sorted(faults)


def atheris_once(folder: Path, seconds: float) -> None:
    """In a process of its own, which libFuzzer ends."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(
        include=[f"excite.weights.{name}" for name in MODULES], enable_loader_override=False
    ):
        for name in MODULES:
            importlib.import_module(f"excite.weights.{name}")
    words = [
        sys.argv[0],
        str(folder),
        f"-max_total_time={seconds:g}",
        "-max_len=4096",
        "-print_final_stats=1",
        "-seed=1",
    ]
    atheris.Setup(words, read)
    atheris.Fuzz()


def by_atheris(seconds: float, folder: Path) -> tuple[int, list[bytes], list[str]]:
    """Changes that libFuzzer keeps where they reach something new."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(whole()):
        (folder / f"whole-{number}").write_bytes(content)
    words = [sys.executable, "-m", "tests.fuzz.guided", "once", str(seconds), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    numbers = [
        line.split()[-1] for line in done.stderr.splitlines() if line.startswith("stat::number_of_executed_units")
    ]
    assert numbers, done.stderr[-3000:]
    faults = [line for line in done.stderr.splitlines() if "Uncaught Python exception" in line]
    return int(numbers[0]), [path.read_bytes() for path in sorted(folder.iterdir())], faults


def reached(inputs: Iterable[bytes]) -> set[tuple[str, int, int]]:
    """The steps from one line of the readers to another that these inputs take."""
    steps = set[tuple[str, int, int]]()

    def trace(frame: types.FrameType, event: str, _: object) -> Any:
        name = Path(frame.f_code.co_filename)
        if name.stem not in MODULES or name.parent.name != "weights":
            return None
        before = [frame.f_lineno]

        def line(frame: types.FrameType, event: str, _: object) -> Any:
            if event == "line":
                steps.add((name.stem, before[0], frame.f_lineno))
                before[0] = frame.f_lineno
            return line

        return line

    for content in inputs:
        sys.settrace(trace)
        with contextlib.suppress(Exception):
            read(content)
        sys.settrace(None)
    return steps


def main() -> None:
    """Entry point."""
    how, seconds, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    if how == "once":
        return atheris_once(folder, seconds)
    number, inputs, faults = seeded(seconds) if how == "seeded" else by_atheris(seconds, folder)
    steps = reached(inputs)
    print(f"{how}: {number} inputs in {seconds:g} s, {len(steps)} steps between lines, {len(faults)} faults")
    print(f"  of the files as they are: {len(reached(whole()))} steps")
    for fault in faults[:20]:
        print(f"  {fault}")
    (folder.parent / f"{folder.name}.steps").write_text("\n".join(map(str, sorted(steps))))


if __name__ == "__main__":
    main()
