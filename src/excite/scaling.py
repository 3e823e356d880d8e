"""How a recipe scales: a simple model of the training step time on many devices, compared with measurements.

Notation: N devices in n nodes of g; b images per device and step; bandwidths B and latencies l, within and between
nodes.

    compute      f + b / R: a fixed cost (kernel launches), and the peak rate of one device
    all-reduce   of a bucket of s bytes: in a node 2 (g-1)/g s/B_g + 2 log2(g) l_g, between nodes 2 (n-1)/n s/B_n +
                 2 log2(n) l_n (bandwidth as for rings, latency as for trees)
    overlap      a bucket's all-reduce starts when the backward pass has filled it and the previous one has finished
    waiting      the slowest of N devices takes 1 + sd sqrt(2 ln N) times the mean
    data         b / (rate of a core x cores per device), in parallel to all that

Nothing heavy is imported until something is measured.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from excite.data.catalog import SOURCES
from excite.data.count import Count, count_data, steps_per_epoch
from excite.errors import ExciteError, nearest
from excite.recipe import Recipe
from excite.text import counted
from excite.training.results import read_results

if TYPE_CHECKING:
    from excite.console import FittedTable
    from excite.training.launch import Job
    from excite.training.steptime import StepTimes

#: Bytes. DDP's first bucket is small, so that the first all-reduce starts early.
FIRST_BUCKET = 1 << 20


def _assumed(default: float, unit: str, source: str) -> Any:
    return field(default=default, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """The assumptions of the prediction, each with its unit and source; ``excite scale --assume`` changes them."""

    tflops: float = _assumed(
        19.2, "TFLOP/s", "one Ascend 910, fp16: ModelZoo-PyTorch's 747 img/s of SE-ResNet-50; use yours (excite bench)"
    )
    fixed_ms: float = _assumed(-1.0, "ms", "8 kernel launches of 5 us per parameter tensor; --measure fits it")
    devices_per_node: int = _assumed(8, "", "typical server with accelerators")
    node_gb_s: float = _assumed(200.0, "GB/s", "all-reduce over NVLink/NVSwitch (A100 and up); PCIe 4: about 20")
    network_gb_s: float = _assumed(12.5, "GB/s", "100 Gbit/s network per node")
    node_latency_us: float = _assumed(10.0, "us", "one hop of an all-reduce within a node; nccl-tests shows yours")
    network_latency_us: float = _assumed(25.0, "us", "one hop between nodes; RDMA: about 10, TCP: 50 and more")
    overlap: float = _assumed(
        1.0, "", "share of the backward pass that all-reduces can overlap; 0 if the same cores do both (CPU)"
    )
    backward: float = _assumed(2 / 3, "", "backward pass / compute: it has twice the products of the forward pass")
    jitter: float = _assumed(
        0.01, "", "sd / mean of one device's step time; the quartiles of `excite bench` show yours"
    )
    decode_per_core: float = _assumed(
        400.0, "img/s", "500 x 375 JPEGs to 224 crops: 820 on an EPYC core; a cloud vCPU is half a core"
    )
    cores_per_device: float = _assumed(12.0, "", "96 cores for 8 devices; at most 16 per device are used")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, name = getattr(self, entry.name), entry.name
            may_be_zero = name in ("jitter", "overlap", "node_latency_us", "network_latency_us", "fixed_ms")
            if not math.isfinite(value) or (value <= 0 and not may_be_zero) or (value < 0 and name != "fixed_ms"):
                raise ExciteError(f"--assume {name}={value}: must be above zero")
            if name in ("overlap", "backward") and value > 1:
                raise ExciteError(f"--assume {name}={value}: must be between 0 and 1")


@dataclass(frozen=True)
class Workload:
    """The work in a training step of a recipe.

    Attributes:
        recipe: the recipe.
        gmacs: 1e9 multiply-accumulates of one image's forward pass.
        parameters: number of parameters; their gradients are sent as float32.
        tensors: number of parameter tensors.
        norms: number of batch norms.
        count: number of images and classes; None: unknown.
    """

    recipe: Recipe
    gmacs: float
    parameters: int
    tensors: int
    norms: int
    count: Count | None = None

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded into memory before training."""
        data = self.recipe.data
        if not SOURCES[data.source].files or data.mode != "auto":
            return not SOURCES[data.source].files or data.mode == "memory"
        if self.count is None or self.recipe.augment.crop == "random_resized":
            return False
        from excite.data.sources import MEMORY_LIMIT, pixels_of

        return pixels_of(data, self.count.train, self.count.val or 0) <= MEMORY_LIMIT


def workload(recipe: Recipe) -> Workload:
    """The workload of a recipe, without allocating weights. Raises ExciteError if there is no such network."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from excite.models import create_model, describe

    count = count_data(recipe.data, recipe.augment)
    arguments = {
        "num_classes": count.classes,
        "in_chans": recipe.data.in_chans,
        "image_size": recipe.data.image_size,
        **recipe.model.options,
    }
    with torch.device("meta"):
        model = create_model(recipe.model.name, **arguments)
    norms = sum(isinstance(m, _BatchNorm) for m in model.modules())
    size = describe(recipe.model.name, **arguments)
    return Workload(recipe, size["gmacs"], size["params"], len(list(model.parameters())), norms, count)


@dataclass(frozen=True)
class Prediction:
    """One row of the plan; times are in milliseconds per step.

    Attributes:
        devices: N.
        nodes: n.
        batch_size: images per step, over all devices.
        local_batch: images per step and device.
        compute: forward and backward passes.
        exposed: all-reduce time that does not overlap with compute.
        sync_bn: all-reduces of synchronised batch norms.
        waiting: waiting for the slowest device.
        data: reading and decoding the images, in parallel to the rest.
        step: the whole step.
        images_per_second: over all devices.
        efficiency: images per second / (N x those of one device alone), 0 to 1.
        limit: what limits the efficiency most.
    """

    devices: int
    nodes: int
    batch_size: int
    local_batch: float
    compute: float
    exposed: float
    sync_bn: float
    waiting: float
    data: float
    step: float
    images_per_second: float
    efficiency: float
    limit: str


class PredictionValues(TypedDict):
    """A :class:`Prediction` as JSON."""

    devices: int
    nodes: int
    batch_size: int
    local_batch: float
    compute: float
    exposed: float
    sync_bn: float
    waiting: float
    data: float
    step: float
    images_per_second: float
    efficiency: float
    limit: str


class ScalingRow(PredictionValues):
    """A prediction, with the speed of a run on as many devices with the same batch per device, if there is one.

    Attributes:
        hours: duration of the whole training.
        cost: cost of all devices for that time, in the currency of the price.
        measured: images per second.
        measured_efficiency: see :func:`measured_efficiency`.
        source: the run.
    """

    hours: float
    cost: float | None
    measured: float | None
    measured_efficiency: float | None
    source: str | None


class AssumptionRow(TypedDict):
    """An assumption; ``source`` says where its value comes from."""

    name: str
    value: float
    unit: str
    source: str


class ScalingPlan(TypedDict):
    """The output of ``excite scale``; ``gmacs``: 1e9 multiply-accumulates per image; ``images``: per epoch."""

    name: str
    model: str
    gmacs: float
    parameters: int
    images: int
    epochs: int
    rows: list[ScalingRow]
    assumptions: list[AssumptionRow]
    notes: list[str]


def compute_ms(work: Workload, assumed: Assumptions, local_batch: float) -> float:
    """Milliseconds of one device for its part of a step, over all accumulation parts."""
    # Forward 1, backward 2, and a multiply-accumulate is two operations.
    return work.recipe.train.grad_accumulation * fixed_ms(work, assumed) + local_batch * ms_per_image(work, assumed)


def ms_per_image(work: Workload, assumed: Assumptions) -> float:
    """Milliseconds for one more image on one device."""
    return 1000 * 6e9 * work.gmacs / (assumed.tflops * 1e12)


def fixed_ms(work: Workload, assumed: Assumptions) -> float:
    """Milliseconds of a step that do not depend on the batch size."""
    return assumed.fixed_ms if assumed.fixed_ms >= 0 else 0.04 * work.tensors


def all_reduce_ms(assumed: Assumptions, devices: int, size: float) -> float:
    """Milliseconds to all-reduce ``size`` bytes over the devices: within each node, then between nodes."""
    inside = min(devices, int(assumed.devices_per_node))
    nodes = math.ceil(devices / inside)
    ms = 0.0
    for count, rate, latency in (
        (inside, assumed.node_gb_s, assumed.node_latency_us),
        (nodes, assumed.network_gb_s, assumed.network_latency_us),
    ):
        if count > 1:
            ms += 2 * (count - 1) / count * size / (rate * 1e6) + 2 * math.log2(count) * latency / 1000
    return ms


def exposed_ms(work: Workload, assumed: Assumptions, devices: int, compute: float) -> float:
    """Milliseconds that gradient all-reduces add to ``compute``: buckets queue as the backward pass fills them."""
    if devices == 1:
        return 0.0
    left = 4.0 * work.parameters
    sizes: list[float] = []
    while left > 0:
        sizes.append(min(left, work.recipe.train.bucket_mb * (1 << 20) if sizes else FIRST_BUCKET))
        left -= sizes[-1]
    backward = assumed.backward * compute / work.recipe.train.grad_accumulation  # of the last accumulation part
    done, through = 0.0, 0.0
    for size in sizes:
        done += size / (4.0 * work.parameters)
        filled = compute - assumed.overlap * backward * (1 - done)
        through = max(through, filled) + all_reduce_ms(assumed, devices, size)
    return max(0.0, through - compute)


def predict(work: Workload, assumed: Assumptions, devices: int, batch_per_device: int | None = None) -> Prediction:
    """Predict the training step on ``devices`` devices.

    Args:
        work: the workload.
        assumed: the assumptions.
        devices: N.
        batch_per_device: b, so that the batch of a step grows with N; None keeps the recipe's batch.

    Raises:
        ExciteError: the batch cannot be divided evenly among the devices.
    """
    batch = batch_per_device * devices if batch_per_device else work.recipe.train.batch_size
    parts = work.recipe.train.grad_accumulation
    if batch % (devices * parts):
        raise ExciteError(
            f"a batch of {batch} cannot be divided among {devices} devices in {counted(parts, 'part')}: give "
            "--batch-per-device (and scale the learning rate with the batch), or other numbers of devices"
        )
    local = batch / devices
    compute = compute_ms(work, assumed, local)
    exposed = exposed_ms(work, assumed, devices, compute)
    # Two small all-reduces per norm, forward and backward, for which the next layer waits.
    sync = 2 * work.norms * all_reduce_ms(assumed, devices, 8192) if work.recipe.train.sync_bn and devices > 1 else 0.0
    waiting = assumed.jitter * math.sqrt(2 * math.log(devices)) * compute
    data = 0.0 if work.in_memory else 1000 * local / (assumed.decode_per_core * min(16, assumed.cores_per_device))
    busy = compute + exposed + sync + waiting
    step = max(busy, data)
    base = batch_per_device or batch  # the batch of one device alone
    ideal = base / max(compute_ms(work, assumed, base), data * base / local)  # images per millisecond of one device
    # Time beyond that at one device's rate, by cause.
    causes = {
        "small batch": compute - local * compute_ms(work, assumed, base) / base,
        "all-reduce": exposed,
        "sync_bn": sync,
        "waiting": waiting,
        "data loading": step - busy,
    }
    limit = max(causes, key=lambda name: causes[name]) if max(causes.values()) > 0.01 * step else "compute"
    return Prediction(
        devices,
        math.ceil(devices / assumed.devices_per_node),
        batch,
        local,
        compute,
        exposed,
        sync,
        waiting,
        data,
        step,
        1000 * batch / step,
        batch / step / (devices * ideal),
        limit,
    )


# --- measurements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """A measured setting: devices, images per step, median milliseconds per step, and where it ran."""

    devices: int
    batch_size: int
    ms: float
    source: str
    device: str = ""
    #: Interquartile range of the step time / its median.
    spread: float = 0.0

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch_size / self.ms


def read_measurement(run: str) -> Measurement:
    """The speed in the ``results.json`` of a run folder, or in that file. Raises ExciteError if there is none."""
    path = Path(run) / "results.json" if Path(run).is_dir() else Path(run)
    try:
        results = read_results(path)
        devices, batch, ms = results["devices"], results["batch_size"], results["ms_per_step"]
    except (ExciteError, KeyError):
        raise ExciteError(f"--measured {run}: this is neither a finished run folder nor a results.json") from None
    if devices is None or batch is None:
        raise ExciteError(f"--measured {run}: its results.json lacks the number of devices or the batch size")
    if ms is None:
        raise ExciteError(f"--measured {run}: the run was too short to time a step; train for more than one step")
    return Measurement(
        int(devices), int(batch), float(ms), str(path.parent.name or path), str(results.get("device", ""))
    )


def measure_steps(
    work: Workload,
    assumed: Assumptions,
    worlds: Sequence[int],
    batch_per_device: int,
    steps: int,
    progress: Callable[[str], None] | None = None,
) -> tuple[list[Measurement], Assumptions]:
    """Time real steps on this machine with several numbers of processes, and fit the assumptions to them.

    Args:
        work: the workload.
        assumed: the assumptions; those that cannot be measured here are kept.
        worlds: numbers of processes; 1 is always measured, at two batch sizes, for the fixed cost and the rate.
        batch_per_device: images per process and step, at least 2.
        steps: timed steps per number of processes.
        progress: called with a line about what is being measured.

    Returns:
        The measurements at ``batch_per_device``, one per number of processes, and the fitted assumptions.

    Raises:
        ExciteError: ``batch_per_device`` is below 2, or a process failed.
    """
    from excite.runtime.job import cores
    from excite.training.launch import run_on_this_machine

    most, half = max(worlds), max(1, batch_per_device // 2)
    if half == batch_per_device:
        raise ExciteError("measuring needs at least 2 images per device; give --batch-per-device 2 or more")
    found: dict[tuple[int, int], StepTimes] = {}
    for world, batch in [(1, half), *((w, batch_per_device) for w in sorted({1, *worlds}))]:
        if progress is not None:
            progress(f"measuring {counted(world, 'device')} with {counted(batch, 'image')} each")
        recipe = _for_timing(work.recipe, world * batch)
        order: Job = {
            "recipe": recipe.to_yaml(),
            "origin": recipe.origin(),
            "time_steps": {"steps": steps, "classes": None if work.count is None else work.count.classes},
        }
        # Each process always gets the cores that it has when all run, so that it is the same device.
        found[world, batch] = run_on_this_machine(order, world, threads=max(1, cores() // most))
    ms = {key: 1000 * statistics.median(result["seconds"]) for key, result in found.items()}
    measured = [
        Measurement(
            w, w * b, ms[w, b], "measured now", f"{result['device']}, {result['precision']}", _spread(result["seconds"])
        )
        for (w, b), result in found.items()
        if b == batch_per_device
    ]
    return measured, _fit(work, assumed, ms[1, half], ms[1, batch_per_device], half, batch_per_device, found)


def _spread(seconds: Sequence[float]) -> float:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / middle


def _for_timing(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with ``batch`` images per step, in one part, without random crops, which count as data loading."""
    values = recipe.model_dump(mode="json")
    values["train"] |= {"batch_size": batch, "devices": 1, "grad_accumulation": 1, "init_from": None}
    for key in ("teacher", "distill_temperature", "distill_weight", "progressive"):  # measured by training
        values["train"].pop(key, None)
    if recipe.augment.crop == "random_resized":
        values["augment"] |= {"crop": "none"}
    origin = recipe.origin() | {"notes": []}
    return Recipe.from_dict(values, "the recipe to time").with_origin(**origin)


def _fit(
    work: Workload,
    assumed: Assumptions,
    half_ms: float,
    full_ms: float,
    half: int,
    full: int,
    found: dict[tuple[int, int], "StepTimes"],
) -> Assumptions:
    per_image = (full_ms - half_ms) / (full - half)
    if per_image <= 0:  # only the fixed cost can be measured
        per_image = full_ms / full
    fixed = max(0.0, full_ms - full * per_image)
    changes: dict[str, Any] = {"fixed_ms": fixed, "tflops": 6e9 * work.gmacs / (per_image / 1000) / 1e12}
    sums = {w: result for (w, _), result in found.items() if "latency_us" in result}
    if sums:
        most = max(sums)
        hops = 2 * math.log2(most)
        ring = 2 * (most - 1) / most
        changes |= {
            "node_latency_us": sums[most]["latency_us"] / hops,
            "node_gb_s": sums[most]["gb_per_second"] * ring,
            "devices_per_node": max(most, assumed.devices_per_node),
        }
        if "threads" in sums[most]["device"]:
            changes["overlap"] = 0.0  # the same cores sum and compute
    return replace(assumed, **changes)


def from_runs(work: Workload, assumed: Assumptions, runs: Sequence[Measurement]) -> Assumptions:
    """Fit the rate of one device to the fastest run on one device, if any. Raises ExciteError if that is impossible."""
    alone = [m for m in runs if m.devices == 1]
    if not alone:
        return assumed
    best = max(alone, key=lambda m: m.images_per_second)
    left = best.ms - work.recipe.train.grad_accumulation * fixed_ms(work, assumed)
    if left <= 0:
        raise ExciteError(
            f"--measured {best.source}: {best.ms:.1f} ms per step is below the fixed cost: lower --assume fixed_ms=..."
        )
    return replace(assumed, tflops=6e9 * work.gmacs * best.batch_size / (left / 1000) / 1e12)


def measured_efficiency(measured: Measurement, runs: Sequence[Measurement]) -> float | None:
    """Images per second and device, relative to the run with the fewest devices.

    None if this is that run and it has several devices.
    """
    base = min(runs, key=lambda m: (m.devices, -m.images_per_second))
    if measured is base and base.devices > 1:
        return None
    return measured.images_per_second / measured.devices / (base.images_per_second / base.devices)


# --- the plan -----------------------------------------------------------------------------------------------------


def parse_counts(text: str, option: str) -> list[int]:
    """``"1,8,64"`` -> [1, 8, 64]. Raises ExciteError for other text; ``option`` names its option."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ExciteError(f"{option} is {text!r}, but must be a list of numbers above zero, such as 1,8,64")
    return counts


def _assumption_name(word: str) -> str:
    return word.partition("=")[0].strip().replace("-", "_")


def parse_assumptions(words: Sequence[str]) -> Assumptions:
    """``["tflops=60"]`` -> the default assumptions with these changes. Raises ExciteError for an unknown one."""
    known = {entry.name: entry for entry in fields(Assumptions)}
    changes: dict[str, Any] = {}
    for word in words:
        name, text = _assumption_name(word), word.partition("=")[2]
        if name not in known:
            raise ExciteError(f"--assume {word}: unknown{nearest(name, known)} (allowed: {', '.join(known)})")
        try:
            changes[name] = int(text) if name == "devices_per_node" else float(text)
        except ValueError:
            raise ExciteError(f"--assume {word}: give a number, such as {name}={known[name].default}") from None
    return replace(Assumptions(), **changes)


def plan(
    recipe: Recipe,
    *,
    devices: str = "1,8,64,1024",
    batch_per_device: int | None = None,
    measured: Sequence[str] = (),
    measure_on: str | None = None,
    steps: int = 10,
    images: int | None = None,
    price: float | None = None,
    assume: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> ScalingPlan:
    """Compute everything that ``excite scale`` shows.

    Args:
        recipe: the recipe to be trained.
        devices: numbers of devices, such as "1,8,64".
        batch_per_device: see :func:`predict`; with ``measure_on`` also the images per process.
        measured: finished runs (folders or ``results.json`` files) to compare with the predictions.
        measure_on: numbers of processes in which to time steps on this machine, such as "1,2".
        steps: timed steps per number of processes.
        images: training images; None counts them if the data are on this machine, or else takes the source's published
            number.
        price: price of one device for one hour.
        assume: ``name=value`` changes to the assumptions.
        progress: called with a line about what is being measured.

    Raises:
        ExciteError: an argument cannot be parsed, a run cannot be read, or nothing can be predicted or measured.
    """
    counts, work, assumed = parse_counts(devices, "--devices"), workload(recipe), parse_assumptions(assume)
    runs = [read_measurement(run) for run in measured]
    notes: list[str] = list(recipe.notes)
    origin: dict[str, str] = {}
    if runs:
        fitted = from_runs(work, assumed, runs)
        origin |= dict.fromkeys(_changed(assumed, fitted), "fitted to the run on one device")
        assumed = fitted
    if measure_on is not None:
        worlds = parse_counts(measure_on, "--measure")
        batch_per_device = batch_per_device or max(2, min(32, recipe.train.batch_size // max(worlds)))
        now, fitted = measure_steps(work, assumed, worlds, batch_per_device, steps, progress)
        origin |= dict.fromkeys(_changed(assumed, fitted), f"measured now: {now[0].device}")
        assumed, runs = fitted, [*runs, *now]
        if max(m.spread for m in now) > 0.1:
            notes.append(
                f"The quartiles of the measured step times are {max(m.spread for m in now):.0%} of the median apart: "
                "something else is running on this machine, so these numbers are unreliable."
            )
        notes.append(
            "Steps were measured on random images: the time to read and crop files is predicted, not measured."
        )
    assert work.count is not None
    if images is None and work.count.note is not None:
        notes.append(work.count.note)
    count = images or work.count.train
    rows, impossible = _rows(recipe, work, assumed, counts, batch_per_device, runs, count, price)
    notes += impossible
    if short := [row["batch_size"] for row in rows if row["batch_size"] > count]:
        notes.append(
            f"An epoch has only {count:,} images, fewer than a batch of {min(short):,}: it is one smaller step."
        )
    if not rows:
        raise ExciteError("; ".join(notes))
    if batch_per_device and any(row["batch_size"] != recipe.train.batch_size for row in rows):
        notes.append(
            f"The batch size differs from the recipe's {recipe.train.batch_size}, which its learning rate is for "
            "(train.scale_lr_to scales it)."
        )
    origin = dict.fromkeys((_assumption_name(word) for word in assume), "given") | origin
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "gmacs": work.gmacs,
        "parameters": work.parameters,
        "images": count,
        "epochs": recipe.train.epochs,
        "rows": rows,
        "assumptions": _listed(work, assumed, origin),
        "notes": notes,
    }


def _rows(
    recipe: Recipe,
    work: Workload,
    assumed: Assumptions,
    counts: Sequence[int],
    batch_per_device: int | None,
    runs: Sequence[Measurement],
    images: int,
    price: float | None,
) -> tuple[list[ScalingRow], list[str]]:
    """A prediction for each number of devices and each run, and a note for each that is impossible."""
    rows: list[ScalingRow] = []
    notes: list[str] = []
    ran = {(m.devices, m.batch_size // m.devices) for m in runs}
    local_batches = {n: batch_per_device or recipe.train.batch_size // n for n in counts}
    wanted: list[tuple[int, int | None, Measurement | None]] = [
        (n, batch_per_device, None) for n in counts if (n, local_batches[n]) not in ran
    ]
    wanted += [(m.devices, max(1, m.batch_size // m.devices), m) for m in runs]
    for number, local, run in sorted(wanted, key=lambda entry: entry[0]):
        try:
            found = predict(work, assumed, number, local)
        except ExciteError as error:
            notes.append(f"{number} devices: {error}")
            continue
        # Whole batches only, as in training: images left over at the end of an epoch take no time.
        hours = recipe.train.epochs * steps_per_epoch(images, found.batch_size) * found.step / 3.6e6
        row: ScalingRow = {
            **cast(PredictionValues, asdict(found)),
            "hours": hours,
            "cost": None if price is None else hours * number * price,
            "measured": None if run is None else run.images_per_second,
            "measured_efficiency": None if run is None else measured_efficiency(run, runs),
            "source": None if run is None else run.source,
        }
        rows.append(row)
    return rows, notes


def _listed(work: Workload, assumed: Assumptions, origin: dict[str, str]) -> list[AssumptionRow]:
    """All assumptions with their values."""
    values = {e.name: getattr(assumed, e.name) for e in fields(assumed)} | {"fixed_ms": fixed_ms(work, assumed)}
    return [
        {
            "name": e.name,
            "value": values[e.name],
            "unit": e.metadata["unit"],
            "source": origin.get(e.name, e.metadata["source"]),
        }
        for e in fields(assumed)
    ]


def _changed(before: Assumptions, after: Assumptions) -> list[str]:
    return [e.name for e in fields(before) if getattr(before, e.name) != getattr(after, e.name)]


_EFFICIENCY = "efficiency %: img/s / (devices x img/s of one device)"


def plan_tables(result: ScalingPlan) -> "list[FittedTable]":
    """The predictions and their assumptions, as tables."""
    from excite.console import make_table

    shown = [
        {
            **row,
            "efficiency": 100 * row["efficiency"],
            "measured_efficiency": None if row["measured_efficiency"] is None else 100 * row["measured_efficiency"],
        }
        for row in result["rows"]
    ]
    columns = [("devices", "devices", "d"), ("nodes", "nodes", "d"), ("batch_size", "batch", ",d")]
    columns += [
        ("local_batch", "batch/device", ",g"),
        ("compute", "compute ms", ",.1f"),
        ("exposed", "+ all-reduce", ",.1f"),
    ]
    columns += [("sync_bn", "+ sync BN", ",.1f")] if any(row["sync_bn"] for row in shown) else []
    columns += [("waiting", "+ waiting", ",.1f"), ("data", "data ms", ",.1f"), ("step", "step ms", ",.1f")]
    columns += [("images_per_second", "img/s", ",.0f"), ("efficiency", _EFFICIENCY, ".1f"), ("limit", "limit", "")]
    columns += [("hours", "hours", ",.2f")]
    columns += [("cost", "cost", ",.2f")] if any(row["cost"] is not None for row in shown) else []
    if any(row["measured"] for row in shown):
        columns += [
            ("measured", "measured img/s", ",.1f"),
            ("measured_efficiency", "measured img/s per device / that of the smallest run, %", ".1f"),
        ]
        columns += [("source", "run", "")]
    title = (
        f"{result['name']}: {result['model']}, {result['gmacs']:.2f} GMACs, {result['parameters'] / 1e6:.2f} M "
        f"parameters; {counted(result['epochs'], 'epoch')} of {counted(result['images'], 'image')}"
    )
    assumptions = [
        ("name", "assumption", ""),
        ("value", "value", ",.4g"),
        ("unit", "unit", ""),
        ("source", "source", ""),
    ]
    return [
        make_table(shown, columns, title),
        make_table(
            result["assumptions"], assumptions, "assumptions (change with --assume NAME=VALUE)", prose=["source"]
        ),
    ]
