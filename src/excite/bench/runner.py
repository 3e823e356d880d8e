"""Measure rows in turns: every measurement in a separate process, round after round.

Noise on the machine thus affects all rows equally, and no row inherits another's memory peak, caches or thread pools.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from excite.bench.settings import Setting
from excite.children import SAFE_PATH, python_command
from excite.errors import nearest
from excite.files import to_json
from excite.runtime.job import world_size

#: Environment variable with the Python interpreter that has MindSpore, if it is not that of excite.
MINDSPORE_PYTHON = "EXCITE_MINDSPORE_PYTHON"

if TYPE_CHECKING:
    from excite.bench.profile import Profile
    from excite.bench.timing import StepTimes
    from excite.bench.worker import Failure

Report = Callable[[str], None]


def run_in_turns(
    settings: Sequence[Setting], rounds: int, report: Report, cache: str
) -> "list[list[StepTimes | Failure]]":
    """Measure every setting once per round.

    Under torchrun, all processes of the job measure together, row after row, with data parallelism; otherwise each
    measurement is a new process.

    Args:
        settings: the rows.
        rounds: measurements per row.
        report: called with a line after each measurement.
        cache: folder of the compiler's cache; if it is empty, compile seconds are those of a first run.

    Returns:
        For every setting its answers, one per round; for one that failed, only the answer with "error".
    """
    answers: list[list[StepTimes | Failure]] = [[] for _ in settings]
    for turn in range(rounds):
        for setting, given in zip(settings, answers, strict=True):
            if given and "error" in given[-1]:
                continue
            answer = _in_place(setting) if world_size() > 1 else _in_process(setting, cache)
            if "error" in answer:
                given.clear()
            given.append(answer)
            report(f"round {turn + 1}/{rounds}  {setting.name}: {_gist(answer)}")
    return answers


def run_profile(setting: Setting, trace: Path, cache: str) -> "Profile | Failure":
    """Profile one setting in a separate process."""
    if setting.library == "mindcv":
        return {"error": "--profile only supports PyTorch models"}
    return _in_process(setting, cache, trace)


def _gist(answer: "StepTimes | Failure") -> str:
    if "error" in answer:
        return answer["error"]
    images = answer["batch"] * answer["devices"]
    return f"{images / sorted(answer['seconds'])[len(answer['seconds']) // 2]:,.1f} img/s"


def _in_place(setting: Setting) -> "StepTimes | Failure":
    if setting.library == "mindcv":
        return {"error": "mindcv models can only be measured without torchrun"}
    from excite.bench.worker import answer

    return answer(setting)


@overload
def _in_process(setting: Setting, cache: str) -> "StepTimes | Failure": ...


@overload
def _in_process(setting: Setting, cache: str, trace: Path) -> "Profile | Failure": ...


def _in_process(setting: Setting, cache: str, trace: Path | None = None) -> "StepTimes | Profile | Failure":
    """Measure or profile in a worker process."""
    mistake = _unknown_model(setting)
    if mistake:
        return {"error": mistake}
    environment = {**os.environ, **SAFE_PATH, "TORCHINDUCTOR_CACHE_DIR": cache}
    environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"
    if setting.threads:
        environment["OMP_NUM_THREADS"] = str(setting.threads)
    if setting.library == "mindcv":
        python = os.environ.get(MINDSPORE_PYTHON, sys.executable)
        command = [python, str(Path(__file__).with_name("mindspore_worker.py"))]
        environment.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    else:
        command = python_command("-m", "excite.bench.worker")
    request = {"setting": setting.to_dict(), "profile": None if trace is None else str(trace)}
    try:
        done = subprocess.run(
            command,
            input=to_json(request),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
    except OSError as error:
        return {"error": f"{command[0]} cannot be run: {error.strerror}"}
    if done.returncode == -9:  # SIGKILL: the kernel sends it when memory runs out
        return {
            "error": "its process was killed, most likely because memory ran out; use a smaller batch or image_size"
        }
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return {"error": f"its process failed: {last}"}


def _unknown_model(setting: Setting) -> str | None:
    """An error for an unknown excite model, found without starting a process."""
    from excite.models.catalog import list_models

    names = list_models()
    if setting.library != "excite" or setting.model in names:
        return None
    return f"there is no model {setting.model!r}{nearest(setting.model, names)} (`excite models` lists them)"
