"""Jobs of several processes on gloo, for tests: functions that each process runs, and ``run_job`` that starts them.

The processes are forked from a server that has imported everything once; importing torch anew costs seconds each.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import tests.command  # noqa: F401  says what the process that is forked has imported
from excite.data import ArrayImages, EvalLoader, Preprocessing
from excite.data.config import DataConfig
from excite.data.watched import LoaderFailed
from excite.measures import MeasureName
from excite.ops import norm_excite_residual
from excite.ops.sync_norm import convert_sync_batchnorm
from excite.runtime.device import make_accelerator
from excite.training import evaluate, reporting
from excite.training.evaluation import Evaluation
from excite.training.loop import train
from excite.training.setup import Run
from tests.training.small import small

Share = dict[str, Any]


def free_port() -> int:
    """A TCP port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_job(function: Callable[..., Any], world: int, *args: Any, timeout: float = 200.0) -> list[Any]:
    """Run ``function(*args)`` in ``world`` processes that know their rank; what each returned, in order of rank."""
    context = multiprocessing.get_context("forkserver")
    port = free_port()
    pipes, processes = [], []
    for rank in range(world):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(theirs, rank, world, port, function, args))
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        answers = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(timeout), f"rank {rank} is still at it after {timeout} s"
            answers.append(pickle.loads(pipe.recv_bytes()))
        failed = [f"rank {rank}: {value}" for rank, (fine, value) in enumerate(answers) if not fine]
        assert not failed, "\n".join(failed)
        return [value for _, value in answers]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def _process(pipe: Any, rank: int, world: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))  # by value: the pipe's own way shares tensors of a process that ends
    if distributed.is_initialized():
        distributed.destroy_process_group()


# --- evaluation ---------------------------------------------------------------------------------------------------


class Lookup(nn.Module):
    """Logits that depend on the first pixel only."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(256, classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[(x[:, 0, 0, 0] * 255).round().long()]


def make_images(count: int, classes: int) -> ArrayImages:
    """Random images with random labels, always the same."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return ArrayImages(images, torch.randint(0, classes, (count,), generator=generator))


def evaluate_counts(counts: list[int], classes: int, batch_size: int, metric: MeasureName = "top1") -> list[Any]:
    """Evaluations of sets of different sizes, and which images this process had of each."""
    accelerator = make_accelerator("cpu")
    found = []
    for count in counts:
        loader = EvalLoader(
            make_images(count, classes),
            batch_size=batch_size,
            device="cpu",
            data_config=DataConfig(source="digits", image_size=4, in_chans=1),
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        preprocessing = Preprocessing(4, 1.0, "bilinear", (0.0,), (1.0,), 1)
        result = evaluate(Lookup(classes), loader, preprocessing, classes, torch.device("cpu"), metric=metric)
        seen = [int(i) for _, _, indices in loader for i in indices]
        found.append((result, seen))
    return found


# --- batch norm over processes ------------------------------------------------------------------------------------

#: How many of the batch's images each process has: not equally many.
SHARES = [3, 5]


def norm_case(kind: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small net with batch norms, a batch, and the gradient of its output."""
    generator = torch.Generator().manual_seed(4)
    dtype = torch.float64 if kind != "float32" else torch.float32
    net = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(5, momentum=0.3, eps=1e-3)))
    if kind == "cumulative":
        net[0].momentum = None
    if kind == "plain":
        net[0] = nn.BatchNorm2d(5, affine=False, track_running_stats=False)
    net.to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    # A mean far from zero: a variance from the sums of x and x^2 would be lost in float32.
    x = 100 + torch.randn(sum(SHARES), 5, 4, 3, generator=generator, dtype=dtype)
    return net, x, torch.randn(x.shape, generator=generator, dtype=dtype)


def run_norm(net: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Share:
    """Two training steps' forward and backward passes, then one in eval mode."""
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(2):
        out = net.train()(x)
        out.backward(grad)
    return {
        "out": out.detach(),
        "grad": x.grad,
        "parameters": [p.grad for p in net.parameters()],
        "buffers": dict(net.named_buffers()),
        "keys": list(net.state_dict()),
        "eval": net.eval()(x).detach(),
    }


def sync_norm_share(kinds: list[str]) -> list[Share]:
    """What one process makes of its share of each case's batch."""
    rank = make_accelerator("cpu").process_index
    results = []
    for kind in kinds:
        net, x, grad = norm_case(kind)
        share = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
        results.append(run_norm(convert_sync_batchnorm(net, native=False), x[share], grad[share]))
    return results


class GatedEnd(nn.Module):
    """A block's end with a projection: what ``norm_excite_residual`` takes, as a module."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.projected = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.gate = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())

    def forward(self, y: torch.Tensor, identity: torch.Tensor, fused: str) -> torch.Tensor:
        parts = {"identity": identity, "identity_norm": self.projected, "act": "relu"}
        return norm_excite_residual(y, self.norm, self.gate, **parts, fused=fused)


def gated_case(dtype: torch.dtype) -> tuple[GatedEnd, list[torch.Tensor]]:
    """The module and, for a whole batch, branch, shortcut and gradient."""
    torch.manual_seed(3)
    end = GatedEnd(5).to(dtype)
    for parameter in end.parameters():
        nn.init.normal_(parameter)
    maps = [torch.randn(sum(SHARES), 5, 4, 3, dtype=dtype) + shift for shift in (3, -2, 0)]
    return end, [m.contiguous(memory_format=torch.channels_last) for m in maps]


def run_gated(end: GatedEnd, maps: list[torch.Tensor], fused: str) -> Share:
    y, identity, grad = (m.detach().requires_grad_() for m in maps)
    out = end(y, identity, fused)
    out.backward(grad)
    assert y.grad is not None
    assert identity.grad is not None
    return {
        "maps": [out.detach(), y.grad, identity.grad],
        "parameters": [p.grad for p in end.parameters()],
        "buffers": list(end.buffers()),
        "form": type(out.grad_fn).__name__,
    }


def gated_share(dtypes: list[torch.dtype]) -> list[Share]:
    """The two-pass form with synchronised norms on this process's share of each case's batch."""
    rank = make_accelerator("cpu").process_index
    share = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
    results = []
    for dtype in dtypes:
        end, maps = gated_case(dtype)
        results.append(run_gated(convert_sync_batchnorm(end, native=False), [m[share] for m in maps], "on"))
    return results


# --- training -----------------------------------------------------------------------------------------------------


def train_until_an_evaluation_fails(out: Path, rank: int, *overrides: str) -> str:
    """Train the small recipe; the evaluation of step 12 fails in process ``rank``. Returns this process's error."""
    real = reporting.evaluate_run

    def evaluate_run(run: Run, *words: Any) -> Evaluation:
        if run.step == 12 and run.accelerator.process_index == rank:
            raise LoaderFailed("a worker is gone")
        return real(run, *words)

    reporting.evaluate_run = evaluate_run
    try:
        train(small(*overrides), out=out, quiet=True)
    except (LoaderFailed, RuntimeError) as error:
        return str(error)
    raise AssertionError("no evaluation failed")


def evaluating_to(top1: dict[int, float]) -> Callable[..., Evaluation]:
    """``evaluate_run`` with a table's top-1, by epoch, and always the same loss."""
    real = reporting.evaluate_run

    def evaluate_run(run: Run, *words: Any) -> Evaluation:
        return replace(real(run, *words), top1=top1[run.step // run.steps_per_epoch], loss=1.0)

    return evaluate_run


def train_small_evaluating_to(out: Path, top1: dict[int, float], *overrides: str) -> dict[str, Any]:
    """:func:`train_small` with evaluations of :func:`evaluating_to`."""
    reporting.evaluate_run = evaluating_to(top1)
    return train_small(out, *overrides)


def resume_small(run: Path) -> dict[str, Any]:
    """Resume a run of :func:`train_small`."""
    return {**train(resume=run, quiet=True)}


def train_small(out: Path, *overrides: str) -> dict[str, Any]:
    """Train the small recipe; results on the first process only."""
    return train(small(*overrides), out=out, quiet=True)


def train_both(out: Path, first: list[str], second: list[str]) -> list[dict[str, Any]]:
    """Two trainings, one after the other in the same processes."""
    return [train_small(out, *first), train_small(out, *second)]
