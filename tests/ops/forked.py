"""A function in a process of its own, forked from one that has imported PyTorch: a tenth of a second, not five."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import nn

import tests.command  # says what the process that is forked has imported
from excite.ops import native, norm_excite_residual, triton_kernels
from excite.runtime import compiled


def run_forked(function, *arguments, **environment):
    """``function(*arguments)`` with this process's environment and some more; anything that can be pickled."""
    everything = dict(os.environ) | {name: str(value) for name, value in environment.items()}
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        return pool.submit(_call, everything, function, arguments).result(tests.command.SECONDS)


def _call(environment, function, arguments):
    os.environ.clear()
    os.environ.update(environment)
    return function(*arguments)


# --- what is run there, kept apart from tests, whose modules ask for kernels as they are imported ---------------------


def use_cpu_kernels():
    """What a norm gives, whether kernels did it, whether they were built for it, and why not."""
    # Unoptimised they are there in a second; all other tests run those that are optimised.
    compiled.FLAGS = tuple("-O0" if flag == "-O3" else flag for flag in compiled.FLAGS)
    out = norm_excite_residual(
        torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last), nn.BatchNorm2d(8), act="relu"
    )
    return f"{out.shape[1]} {native.available()} {native.build_seconds() is not None} {native.why_not()}"


def work_without_triton():
    """Channels of what a norm gives; whether the kernels take a map, why not, and whether they were imported."""
    sys.modules["triton"] = None
    y = torch.randn(2, 8, 4, 4)
    out = norm_excite_residual(y, nn.BatchNorm2d(8), act="relu", fused="on")
    imported = "excite.ops.triton_kernels.kernels" in sys.modules
    return out.shape[1], triton_kernels.takes(y), triton_kernels.why_not(), imported


def compile_first():
    """Whether kernels were there before, and which of our operators a norm has in the one graph it is compiled to."""
    targets = set()

    def backend(graph, inputs):
        targets.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    before = native.build_seconds() is not None or native._kernels._library is not None
    norm = nn.BatchNorm2d(8)
    y = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    torch.compile(lambda y: norm_excite_residual(y, norm, act="relu"), fullgraph=True, backend=backend)(y)
    return before, sorted(target for target in targets if target.startswith("excite."))
