"""The timing core: one model, one step, seconds. Letters: N images, S pixels per side."""

import math
from typing import NotRequired, TypedDict, final

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.nn import functional as F

from excite.bench.contenders import make_contender
from excite.bench.settings import Setting
from excite.errors import ExciteError
from excite.runtime.device import (
    DTYPES,
    choose_precision,
    device_name,
    keep_freed_memory,
    make_accelerator,
    peak_memory_gb,
    prepared,
    reset_peak_memory,
)
from excite.runtime.timing import Step, inference_step, time_steps
from excite.runtime.workers import spread_workers
from excite.size import by_text
from excite.training.batch_parts import first_with_one_value
from excite.training.compilation import compile_errors, compile_model, compile_timer

#: On an accelerator, steps are timed in blocks of this many seconds, so that the final synchronisation is negligible.
BLOCK_SECONDS = 0.05


@final
class StepTimes(TypedDict):
    """One measurement: its samples, and the conditions.

    Attributes:
        seconds: seconds per step, one value per sample, from the slowest process.
        steps: number of timed steps; a sample may comprise several.
        memory_gb: peak memory of the process, 1e9 bytes.
        batch: images per step and device.
        image_size: pixels per side, or "HxW".
        torch: version of the framework.
        channels_last, compile, fused_sgd: only present if they differ from the request.
    """

    seconds: list[float]
    steps: int
    compile_seconds: float | None
    memory_gb: float
    batch: int
    image_size: int | str
    precision: str
    devices: int
    device: str
    torch: str
    library_version: str
    channels_last: NotRequired[bool]
    compile: NotRequired[str]
    fused_sgd: NotRequired[bool]


def training_step(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, precision: str, *, fused: bool = True
) -> Step:
    """A function that runs one training step on (N, C, S, S) images and (N,) labels: forward, loss, backward, SGD.

    ``precision`` is "fp32", or "bf16" or "fp16" autocast, the latter with dynamic loss scaling, including its check of
    all gradients.
    """
    kind = images.device.type
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=fused or None)
    scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16")
    net.train()

    def step() -> None:
        with torch.autocast(kind, DTYPES[precision], enabled=precision != "fp32"):
            logits = net(images)
        scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def training_step_seconds(
    model: nn.Module,
    *,
    batch_size: int,
    image_size: int,
    precision: str = "fp32",
    channels_last: bool = False,
    fused: bool = False,
    num_classes: int = 1000,
    device: str = "cpu",
    warm_up: int = 2,
    steps: int = 6,
) -> list[float]:
    """Seconds of each of ``steps`` training steps (forward, loss, backward, SGD) on random images, after a warm-up.

    Args:
        model: (N, 3, S, S) float32 -> (N, num_classes).
        batch_size: N.
        image_size: S.
        precision: "fp32", or "bf16" or "fp16" autocast.
        channels_last: memory layout of the model and the images.
        fused: PyTorch's fused SGD kernel instead of its default.
        num_classes: number of classes.
        device: the device.
        warm_up: untimed steps at the start.
        steps: timed steps.
    """
    place = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model.to(place).to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, image_size, image_size).to(place).contiguous(memory_format=layout)
    labels = torch.randint(num_classes, (batch_size,)).to(place)
    step = training_step(model, images, labels, precision, fused=fused)
    return time_steps(step, place, warm_up + steps)[warm_up:]


def _refuse_one_value(model: nn.Module, image: tuple[int, int, int]) -> None:
    norm = first_with_one_value(model, image)
    if norm is not None:
        raise ExciteError(
            f"with one image, the batch norm {norm} has only one value per channel and no variance: give batch=2 or "
            "more, a larger image_size, or --infer"
        )


class Workbench:
    """A setting ready for timing: model and batch on the device, and the step to time.

    Raises:
        ExciteError: there is no such model, device or precision, a library is missing, or the compiler failed.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        if setting.threads:
            torch.set_num_threads(setting.threads)
        if setting.library == "excite":
            spread_workers()  # as in excite train
        contender = make_contender(setting)  # before Accelerate: another library may add a device
        ddp = DistributedDataParallelKwargs(  # as in excite train
            broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=setting.compile == "off"
        )
        self.accelerator: Accelerator = make_accelerator(setting.device, ddp)
        self.device = self.accelerator.device
        if setting.library == "excite" and self.device.type == "cpu":
            keep_freed_memory()  # as in excite train; the others run as their users start them
        self.precision = choose_precision(setting.precision, self.device, contender.model)
        on_cpu = self.device.type == "cpu"
        self.batch = setting.batch or (16 if on_cpu else 128)
        self.image_size, self.library_version = contender.image_size, contender.version
        self.warm_up = setting.warm_up if setting.warm_up is not None else 3 if on_cpu else 10
        reset_peak_memory(self.device)
        torch.manual_seed(0)
        if self.batch == 1 and setting.mode == "train":
            _refuse_one_value(contender.model, (contender.in_chans, *self.image_size))
        layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        model = contender.model.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
        self.model: nn.Module = model
        shape = (self.batch, contender.in_chans, *self.image_size)
        images = torch.randn(shape).to(self.device).contiguous(memory_format=layout)
        if setting.mode == "train":
            labels = torch.randint(contender.num_classes, (self.batch,)).to(self.device)
            net = compile_model(prepared(self.accelerator, model), setting.compile, self.device)
            self.step = training_step(net, images, labels, self.precision, fused=setting.fused_sgd)
        else:
            net = compile_model(model, setting.compile, self.device)
            self.step = inference_step(net, images, self.precision)

    def warm(self) -> float:
        """Run the warm-up; return the seconds of its last step."""
        with compile_errors(self.setting.compile):
            return time_steps(self.step, self.device, max(2, self.warm_up))[-1]

    def measure(self) -> StepTimes:
        """Warm up, then time the steps."""
        compiled = compile_timer.seconds
        last = self.warm()
        count, per_sample = self._plan(last)
        seconds = time_steps(self.step, self.device, count, per_sample)
        compiled = compile_timer.seconds - compiled
        return {
            "seconds": self._slowest(seconds),
            "steps": count,
            "compile_seconds": compiled if self.setting.compile != "off" else None,
            "memory_gb": peak_memory_gb(self.device),
            "batch": self.batch,
            "image_size": self.image_size[0] if len({*self.image_size}) == 1 else by_text(self.image_size),
            "precision": self.precision,
            "devices": self.accelerator.num_processes,
            "device": device_name(self.device),
            "torch": torch.__version__,
            "library_version": self.library_version,
        }

    def _plan(self, last: float) -> tuple[int, int]:
        """(timed steps, steps per sample), the same on every process."""
        if self.accelerator.num_processes > 1:
            slowest = self.accelerator.gather(torch.tensor([last], device=self.device, dtype=torch.float32))
            last = float(slowest.max())
        per_sample = 1 if self.device.type == "cpu" else max(1, math.ceil(BLOCK_SECONDS / last))
        if self.setting.steps is not None:
            return self.setting.steps, min(per_sample, self.setting.steps)
        samples = min(1000, max(3, round(self.setting.seconds / (last * per_sample))))
        return samples * per_sample, per_sample

    def _slowest(self, seconds: list[float]) -> list[float]:
        """The maximum over all processes: a step ends when the last process has finished it."""
        if self.accelerator.num_processes == 1:
            return seconds
        mine = torch.tensor(seconds, device=self.device, dtype=torch.float32)
        return self.accelerator.gather(mine.unsqueeze(0)).amax(0).tolist()
