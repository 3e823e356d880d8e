"""Before an artefact is put in place, every installed runtime that can read it is tested, in new sessions.

Running one session over many images would miss a wrong first call, and image sizes that the user's images do not have.
OpenVINO 2026.4 gave wrong results in the first call of a graph with a conditional, and, with an absolute value of
integers, for images smaller than the network's input; ONNX Runtime was right.

Notation: N images, H x W pixels, C channels, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from excite.errors import ExciteError, install_line
from excite.export import formats
from excite.export.deployable import InputKind
from excite.export.images import blurred_noise, prepare
from excite.export.sessions import Run, sessions_of
from excite.export.verify import Comparison, compare_logits, reference_logits, to_input
from excite.text import counted
from excite.trained.predictor import Predictor

#: Most multiply-accumulates per image for ONNX's reference evaluator, which is written in NumPy and slow.
REFERENCE_MACS = 2e8
#: Runtimes round an int8 network differently. The tolerated difference is the larger of INT8_TIMES the difference
#: between the artefact's own runtime and PyTorch, and INT8_SHARE of the largest logit.
INT8_TIMES, INT8_SHARE = 2.0, 0.1


@dataclass(frozen=True)
class Case:
    """Images of one size, with the logits of the PyTorch model.

    Attributes:
        images: in the form of the artefact's input.
        logits: float32 (N, K).
        size: number and size of the images in words.
    """

    images: np.ndarray
    logits: np.ndarray
    size: str


@dataclass(frozen=True)
class Call:
    """A call of a session: the case, the number of the call in its session (from 0), and the logits."""

    case: int
    number: int
    logits: np.ndarray


@dataclass
class Asked:
    """The results of all runtimes for an artefact.

    Attributes:
        calls: runtime, with its version -> its calls; the artefact's own runtime comes first.
        left_out: runtime -> why it was not tested.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def make_cases(predictor: Predictor, kind: InputKind) -> list[Case]:
    """Test cases of the network's image size and, for ``uint8``, a larger and a narrow one; 1 to 3 images each."""
    p = predictor.preprocessing
    tall, wide = p.size
    shapes = [(1, tall, wide), (3, tall, wide)]
    if kind == "uint8":
        shapes += [(1, tall + tall // 2 + 1, 2 * wide + 3), (2, 2 * tall + 1, wide // 2 + 1)]
    cases: list[Case] = []
    for count, height, width in shapes:
        rng = np.random.default_rng(len(cases))
        images = np.stack([blurred_noise(rng, height, width, p.in_chans) for _ in range(count)])
        prepared = np.stack([prepare(image, p) for image in images])
        text = f"{counted(count, 'image')} of {height} x {width} pixels"
        taken = images if kind == "uint8" else prepared
        cases.append(Case(to_input(taken, kind), reference_logits(predictor, prepared), text))
    return cases


def ask(format: str, path: Path, cases: Sequence[Case], threads: int, macs: float) -> Asked:
    """Run all cases in all installed runtimes: each case twice in a new session, then all in the last session.

    Args:
        format: format of the artefact.
        path: its file.
        cases: the cases to run.
        threads: threads per runtime.
        macs: multiply-accumulates of the network per image; ONNX's reference evaluator is left out if there are too
            many, and runs each case only once.

    Raises:
        ExciteError: the artefact's own runtime cannot open it, or a runtime that opened it cannot run a case.
    """
    asked = Asked()
    readers = formats.get(format).readers
    for runtime in readers:
        if find_spec(runtime) is None:
            asked.left_out[runtime] = f"not installed ({install_line('export')})"
        elif runtime == "onnx" and macs > REFERENCE_MACS:
            asked.left_out[runtime] = f"its reference evaluator would take minutes for {macs / 1e9:.2g} GMACs"
        else:
            _ask_one(runtime, path, cases, threads, asked, own=runtime == readers[0])
    return asked


def _ask_one(runtime: str, path: Path, cases: Sequence[Case], threads: int, asked: Asked, own: bool) -> None:
    name = f"{'the reference evaluator of ' if runtime == 'onnx' else ''}{runtime} {metadata.version(runtime)}"
    calls: list[Call] = []
    run: Run | None = None
    sessions: Callable[[], Run] | None = None
    for i in range(len(cases)):
        try:
            sessions = sessions or sessions_of(runtime, path, threads)
            run = sessions()
        except Exception as error:  # each runtime has its own errors
            if own:
                raise ExciteError(
                    f"{name} cannot open the artefact: {_last_line(error)}; nothing was written"
                ) from error
            asked.left_out[runtime] = f"it cannot open this file, so do not use this runtime: {_last_line(error)}"
            return
        calls += [_call(name, run, cases, i, number) for number in range(1 if runtime == "onnx" else 2)]
    if run is not None and runtime != "onnx":
        calls += [_call(name, run, cases, i, 2 + i) for i in range(len(cases))]
    asked.calls[name] = calls


def _call(name: str, run: Run, cases: Sequence[Case], case: int, number: int) -> Call:
    try:
        return Call(case, number, run(cases[case].images))
    except Exception as error:
        raise ExciteError(
            f"{name} opens the artefact, but cannot run {cases[case].size}: {_last_line(error)}; nothing was written"
        ) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def judge_fp32(name: str, asked: Asked, cases: Sequence[Case], tolerance: float) -> float:
    """The largest difference from the PyTorch model's logits, relative to its largest logit.

    Raises:
        ExciteError: a call of any runtime differs by more than ``tolerance``.
    """
    worst = 0.0
    for runtime, calls in asked.calls.items():
        for call in calls:
            found = compare_logits(cases[call.case].logits, call.logits)
            if not found.relative <= tolerance:  # not `>`: NaN must fail
                raise ExciteError(_disagrees(name, runtime, "the PyTorch model", call, cases, found, f"{tolerance:g}"))
            worst = max(worst, found.relative)
    return worst


def judge_int8(name: str, asked: Asked, cases: Sequence[Case], tolerance: float) -> float:
    """The largest difference between the logits of runtimes, relative to the PyTorch model's largest logit.

    Raises:
        ExciteError: calls with the same images differ by more than ``tolerance`` within a runtime, or a runtime differs
            from the artefact's own by more than int8 rounding can explain.
    """
    worst, own = 0.0, _first_calls(next(iter(asked.calls.values())))
    for runtime, calls in asked.calls.items():
        first = _first_calls(calls)
        for call in calls:
            case = cases[call.case]
            scale = max(1.0, float(np.abs(case.logits).max()))
            itself = compare_logits(first[call.case], call.logits)
            if not itself.largest <= tolerance * scale:
                raise ExciteError(
                    _disagrees(name, runtime, "its own first call", call, cases, itself, f"{tolerance:g}")
                )
            found = compare_logits(own[call.case], call.logits)
            allowed = max(INT8_TIMES * compare_logits(case.logits, own[call.case]).largest / scale, INT8_SHARE)
            if not found.largest <= allowed * scale:
                other = next(iter(asked.calls))
                raise ExciteError(_disagrees(name, runtime, other, call, cases, found, f"{allowed:.2g}"))
            worst = max(worst, found.largest / scale)
    return worst


def _first_calls(calls: Sequence[Call]) -> dict[int, np.ndarray]:
    return {call.case: call.logits for call in calls if call.number == 0}


def _disagrees(
    name: str, runtime: str, other: str, call: Call, cases: Sequence[Case], found: Comparison, allowed: str
) -> str:
    which = "the first call of a new session" if call.number == 0 else f"call {call.number + 1} of a session"
    return (
        f"{name} in {runtime} disagrees with {other}: in {which}, with {cases[call.case].size}, logits differ by up to "
        f"{found.largest:.3g} ({allowed} of the largest is tolerated); nothing was written"
    )


def sentences(name: str, asked: Asked, cases: Sequence[Case], worst: float) -> list[str]:
    """Sentences about the runtimes that agree, and those that were not run, and why."""
    lines = [
        f"{name} agrees in {', '.join(asked.calls)}, from the first call of a new session: "
        f"{', '.join(case.size for case in cases)} (within {worst:.2g} of the largest logit)"
    ]
    lines += [f"{name} was not run in {runtime}: {why}" for runtime, why in asked.left_out.items()]
    return lines


class Verdict(TypedDict):
    """The result of all runtimes for an artefact.

    Attributes:
        what: name of the artefact.
        asked: runtimes that were tested.
        not_asked: other runtimes, with the reason.
        cases: numbers and sizes of the test images.
        relative_difference: the largest difference of logits / the largest logit.
    """

    what: str
    asked: list[str]
    not_asked: dict[str, str]
    cases: list[str]
    relative_difference: float


def to_dict(name: str, asked: Asked, cases: Sequence[Case], worst: float) -> Verdict:
    """The result as JSON values, for ``excite export --json``."""
    return {
        "what": name,
        "asked": list(asked.calls),
        "not_asked": dict(asked.left_out),
        "cases": [case.size for case in cases],
        "relative_difference": worst,
    }


def macs_of(predictor: Predictor) -> float:
    """Multiply-accumulates of the network for one image."""
    p = predictor.preprocessing
    with FlopCounterMode(display=False) as counter:
        predictor.logits(torch.zeros(1, *p.shape, dtype=torch.uint8))
    return counter.get_total_flops() / 2
