"""The runtimes: how each opens an artefact, on the CPU and in float32.

Notation: N images, K classes.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from excite.export.deployable import INPUT, OUTPUT

#: uint8 or float32 images, in the form of the artefact's input -> float32 logits (N, K).
Run = Callable[[np.ndarray], np.ndarray]


def open_in(runtime: str, path: Path, threads: int) -> Run:
    """Load an artefact in a new session of one of the runtimes that formats list as ``readers``."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: session.run([OUTPUT], {INPUT: images})[0]
    if runtime == "openvino":
        # Without the hint, OpenVINO computes in bfloat16 if the processor supports it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino_core().compile_model(str(path), "CPU", settings)
        return lambda images: np.array(compiled(images)[OUTPUT])
    if runtime == "onnx":
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(str(path))
        return lambda images: evaluator.run([OUTPUT], {INPUT: images})[0]
    return sessions_of(runtime, path, threads)()


@cache
def openvino_core() -> Any:
    """The one ``openvino.Core`` of this process.

    Each Core's CPU plugin sets a signal-handler stack for the thread, and restores the previous one when it is
    destroyed. With two Cores, the later one restores the stack of the other, which no longer exists: the next signal
    then kills the process silently (OpenVINO 2026.4, with Python's faulthandler, when any child process ends).
    """
    import openvino

    return openvino.Core()


def sessions_of(runtime: str, path: Path, threads: int) -> Callable[[], Run]:
    """A function that opens a new session, as ``open_in`` does, at every call."""
    if runtime != "torch":
        return partial(open_in, runtime, path, threads)
    with quiet():
        program = torch.export.load(path)  # takes seconds and runs nothing; each of its modules is a new session

    def session() -> Run:
        module = program.module()

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(images)).numpy()

        return run

    return session


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of the exporters that do not concern the user (torchvision is missing, a name will change)."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root", "nncf")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
