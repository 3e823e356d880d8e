"""The runtimes: how each opens a file, on the CPU and in float32.

Letters: N images, K classes.
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

#: uint8 or float32 images, as the artefact takes them -> float32 logits (N, K).
Run = Callable[[np.ndarray], np.ndarray]


def open_in(runtime: str, path: Path, threads: int) -> Run:
    """Load an artefact in one of the packages that formats name as ``readers``, in a session of its own."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: session.run([OUTPUT], {INPUT: images})[0]
    if runtime == "openvino":
        # Without the hint OpenVINO computes in bfloat16 wherever the processor can.
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

    Each Core's CPU plugin gives the thread a stack for signal handlers, and when it goes puts back the one that it
    found. Of two, the one made last puts back the other's, which is gone: the next signal ends the process without a
    word (OpenVINO 2026.4, where Python's faulthandler is on and any child process ends).
    """
    import openvino

    return openvino.Core()


def sessions_of(runtime: str, path: Path, threads: int) -> Callable[[], Run]:
    """A function that gives a new session of ``open_in`` at every call."""
    if runtime != "torch":
        return partial(open_in, runtime, path, threads)
    with quiet():
        program = torch.export.load(path)  # takes seconds and runs nothing; each module of it starts anew

    def session() -> Run:
        module = program.module()

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(images)).numpy()

        return run

    return session


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters warn of what is none of the user's concern (torchvision is missing, a name will change)."""
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
