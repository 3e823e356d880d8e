"""The Triton kernels without a GPU: what they compute, by Triton's interpreter, and what they compile to.

Letters: N images, C channels, P positions.
"""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

from excite.ops import gated_norm, norm_excite_residual, triton_kernels
from excite.ops.activations import ACTS, GELU, LINEAR, RELU
from excite.ops.native import GradSums
from excite.ops.triton_kernels import launch
from tests.ops.forked import run_forked, work_without_triton
from tests.ops.test_gated_norm import Fc

CHECKS = Path(__file__).with_name("triton_checks.py")
CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format


def interpreter_works():
    triton = importlib.util.find_spec("triton") and Version(metadata.version("triton"))
    return not triton or triton >= Version("3.7") or Version(np.__version__) < Version("2.4")


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed, or not made for this system"
)
needs_interpreter = pytest.mark.skipif(
    not interpreter_works(), reason="Triton's interpreter before 3.7 fails with NumPy 2.4 and newer (int of an array)"
)
needs_compiler = pytest.mark.skipif(
    bool(os.environ.get("TRITON_INTERPRET")), reason="TRITON_INTERPRET is set: nothing is compiled then"
)
needs_gpu = pytest.mark.skipif(
    not any(getattr(torch, kind).is_available() for kind in launch.DEVICES), reason="there is no GPU for Triton here"
)

# --- what they compute ----------------------------------------------------------------------------------------------


def run_checks(marker, **environment):
    """In a process of its own: Triton decides at its first import whether it interprets."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "TRITON_INTERPRET")}
    command = [sys.executable, "-m", "pytest", str(CHECKS), "-m", marker, "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, env=env | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout, done.stdout


@needs_triton
@needs_interpreter
@pytest.mark.parametrize(
    "marker", [pytest.param("not slow", marks=pytest.mark.heavy), pytest.param("slow", marks=pytest.mark.slow)]
)
def test_what_they_compute_by_the_interpreter(marker):
    run_checks(marker, TRITON_INTERPRET="1")


@needs_triton
@needs_gpu
def test_what_they_compute_on_the_gpu():
    run_checks("slow or not slow")


@needs_triton
@needs_interpreter
@pytest.mark.slow
def test_the_benchmark_checks_them_where_there_is_no_gpu():
    script = Path(__file__).parents[2] / "benchmarks" / "triton_passes.py"
    command = [sys.executable, str(script), "--device", "cpu", "--small"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as plain PyTorch") == 2


# --- where they are not ---------------------------------------------------------------------------------------------


def test_without_triton_everything_works_in_plain_pytorch():
    found = run_forked(work_without_triton, TRITON_INTERPRET=1)
    assert found == (8, False, "Triton is not installed (pip install triton)", False)


def test_they_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("EXCITE_KERNELS", "off")
    assert triton_kernels.why_not() == "EXCITE_KERNELS=off"
    assert not triton_kernels.available()


@needs_compiler
def test_without_a_gpu_they_take_nothing(monkeypatch):
    for kind in launch.DEVICES:
        monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: False)
    monkeypatch.setattr(launch, "_why_not", launch._why_not.__wrapped__)
    assert "no GPU that Triton compiles for" in triton_kernels.why_not()
    assert not triton_kernels.available()
    assert not triton_kernels.takes(torch.randn(2, 3, 4, 4))


@needs_triton
@needs_compiler
def test_the_interpreter_asked_for_too_late_is_said(monkeypatch):
    launch._kernels()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "_why_not", launch._why_not.__wrapped__)
    assert "set it before Python starts" in triton_kernels.why_not()
    assert not triton_kernels.takes(torch.randn(2, 3, 4, 4))


# --- how maps are cut up --------------------------------------------------------------------------------------------

PLAN_SHAPES = list(itertools.product((1, 2, 37, 256), (1, 24, 64, 96, 130, 2048), (1, 15, 49, 196, 1024, 3136)))


@pytest.mark.parametrize("last", [True, False])
def test_plans_cover_every_position_once_in_whole_tiles(last):
    for n, c, p in PLAN_SHAPES:
        plan = launch._plan_shape(n, c, p, last, launch.SUM_TILE, launch.SUM_PROGRAMS)
        assert plan.units * plan.align == (c if last else p)
        assert plan.outer == (p if last else c)
        assert plan.inner & (plan.inner - 1) == 0
        positions = launch.SUM_TILE // plan.inner if last else plan.inner
        assert plan.length % positions == 0
        assert (plan.splits - 1) * plan.length < p <= plan.splits * plan.length
        channels = plan.inner if last else launch.SUM_TILE // plan.inner
        tiles = plan.channel_tiles(launch.SUM_TILE)
        assert (tiles - 1) * channels < c <= tiles * channels


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("shape", "programs"),
    [((256, 256, 3136), 2048), ((256, 512, 784), 2048), ((256, 1024, 196), 2048), ((256, 2048, 49), 2048)],
)
def test_the_stages_of_resnet50_fill_a_gpu_with_little_waste(shape, programs, last):
    n, c, p = shape
    plan = launch._plan_shape(n, c, p, last, launch.SUM_TILE, launch.SUM_PROGRAMS)
    assert n * plan.splits * plan.channel_tiles(launch.SUM_TILE) >= programs
    if last:
        assert plan.align == 8
        assert c % plan.inner == 0  # no lane without a channel
        assert plan.inner >= 64  # 128 bytes of bfloat16 side by side


def test_few_images_are_split_so_that_more_than_their_channels_work():
    for n, c, p in ((1, 2048, 49), (1, 64, 3136), (128, 16, 1024)):
        plan = launch._plan_shape(n, c, p, True, launch.SUM_TILE, launch.SUM_PROGRAMS)
        assert plan.splits > 1


def test_sums_are_split_only_where_that_pays_for_another_launch():
    def splits(*shape):
        return launch._plan_sums(torch.empty(shape, device="meta").contiguous(memory_format=CHANNELS_LAST)).splits

    assert splits(256, 64, 56, 56) > 1
    assert splits(1, 64, 56, 56) > 1
    for small in ((128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8), (256, 2048, 7, 7)):
        assert splits(*small) == 1


# --- how they are launched ------------------------------------------------------------------------------------------


class Launched(TorchDispatchMode):
    """Names of PyTorch's operations, but for those that neither read nor write: each is a launch on a GPU, at least."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        name = func._schema.name.removeprefix("aten::")
        if not view and not name.startswith(("empty", "new_empty")):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch):
    """Names of the Triton kernels, which are not run."""
    names = []

    def record(y, kernel, grid, *args, **meta):
        names.append(getattr(kernel, "fn", kernel).__name__ if hasattr(kernel, "configs") else kernel.__name__)

    monkeypatch.setattr(launch, "_launch", record)
    monkeypatch.setattr(gated_norm, "_choose", lambda y, norm, fused: triton_kernels)
    return names


@needs_triton
@pytest.mark.parametrize("gated", [True, False])
def test_a_blocks_end_is_six_launches_beside_its_gate(launched, gated):
    y, identity, grad = (torch.randn(8, 16, 4, 4).to(memory_format=CHANNELS_LAST) for _ in range(3))
    norm, gate, squeezed = torch.nn.BatchNorm2d(16), Fc(16) if gated else None, torch.randn(8, 16, requires_grad=True)
    inputs = [y.requires_grad_(), identity.requires_grad_(), *norm.parameters(), *(gate.parameters() if gated else ())]
    alone = [Launched(), Launched()]  # the gate's own, forward and backward
    if gated:
        with alone[0]:
            s = gate(squeezed)
        with alone[1]:
            torch.autograd.grad(s, [squeezed, *gate.parameters()], torch.randn(8, 16))
        alone[1].names["randn"] = 0
    with Launched() as forward:
        out = norm_excite_residual(y, norm, gate, identity, act="relu", fused="on")
    assert launched == ["moments", "finish_statistics", "apply"]
    assert forward.names - alone[0].names == Counter({"add_": 1})  # num_batches_tracked
    launched.clear()
    with Launched() as backward:
        torch.autograd.grad(out, inputs, grad)
    assert launched == ["grad_sums", "finish_grad_sums", "grad_input"]
    assert not backward.names - alone[1].names


@needs_triton
def test_auto_takes_them_when_it_is_told_to(monkeypatch):
    y, norm = torch.randn(2, 8, 4, 4), torch.nn.BatchNorm2d(8)
    monkeypatch.setattr(triton_kernels, "takes", lambda *maps: True)
    assert gated_norm._choose(y, norm, "auto") is None
    assert gated_norm._choose(y, norm, "on") is triton_kernels
    monkeypatch.setattr(gated_norm, "AUTO_TAKES_TRITON", True)
    assert gated_norm._choose(y, norm, "auto") is triton_kernels


@pytest.fixture
def kernel(monkeypatch):
    """Stands for one of Triton's: counts its compilations, and keeps what the compiled one is called with."""

    class Compiled:
        def __init__(self, calls):
            self.calls = calls

        def __getitem__(self, grid):
            return lambda *args: self.calls.append((grid, args))

    class Kernel:
        arg_names = ("x", "extra", "count", "WIDE", "TILE")

        def __init__(self):
            self.compilations, self.calls = 0, []

        def __getitem__(self, grid):
            def run(*args, **meta):
                self.compilations += 1
                return Compiled(self.calls)

            return run

    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(launch, "_REUSES", True)
    return Kernel()


def test_a_kernel_is_looked_up_once_for_all_that_it_is_made_for(kernel):
    y = torch.zeros(64)
    meta = {"TILE": 128, "num_warps": 4, "WIDE": True}

    def run(x, extra=None, **other):
        launch._launch(y, kernel, lambda chosen: (chosen["TILE"] // 64, 1, 1), x, extra, 7, **meta | other)

    run(y)
    assert (kernel.compilations, kernel.calls) == (1, [])
    run(y)
    ((grid, arguments),) = kernel.calls
    assert grid == (2, 1, 1)
    assert arguments[0] is y
    assert arguments[1:] == (None, 7, True, 128)  # in the order of the kernel's arguments, without its options
    for count, again in enumerate(
        (
            lambda: run(y, y),  # an argument that was not there
            lambda: run(y.bfloat16()),  # another type
            lambda: run(torch.zeros(65)[1:]),  # not at a multiple of 16 bytes
            lambda: run(y, TILE=256),
            lambda: run(y, num_warps=8),
        ),
        start=2,
    ):
        again()
        assert kernel.compilations == count
        again()
        assert kernel.compilations == count


# --- what they compile to -------------------------------------------------------------------------------------------

WRITTEN = {("apply", "out"), ("grad_sums", "g_out"), ("grad_input", "dy")}


class NoGpu:
    """What Triton asks its driver for when it compiles; a device's number is its compute capability."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


class Compiled:
    """One launch: the kernel compiled for exactly its arguments, by Triton's own front door."""

    def __init__(self, y, kernel, args, meta, config):
        self.name = kernel.__name__
        self.kernel = kernel.warmup(*args, grid=(1,), **meta, **config)
        options = {"num_warps": 4} | meta | config
        self.threads = 32 * options["num_warps"]
        self.tile = options.get("TILE")
        maps = [name for name, x in zip(kernel.arg_names, args, strict=False) if getattr(x, "shape", None) == y.shape]
        self.written = [name for name in maps if (self.name, name) in WRITTEN]
        self.read = [name for name in maps if name not in self.written]

    def accesses(self, kind):
        """How many instructions of how many bytes: ("ld" or "st") -> {16: 2, ...}."""
        found = re.findall(rf"\b{kind}\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)\b", self.kernel.asm["ptx"])
        return Counter(int(lanes or 1) * int(bits) // 8 for lanes, bits in found)

    def resources(self, folder):
        from triton import knobs

        cubin = folder / "kernel.cubin"
        cubin.write_bytes(self.kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", report)}


@pytest.fixture
def compile_launches(monkeypatch, tmp_path):
    """``compile_launches(90)`` -> a list that every launch from then on is added to, compiled instead of run."""
    from triton import knobs
    from triton.runtime import driver

    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    launches = []

    def record(y, kernel, grid, *args, **meta):
        tuned = hasattr(kernel, "configs")
        for config in [c.all_kwargs() for c in kernel.configs] if tuned else [{}]:
            launches.append(Compiled(y, kernel.fn if tuned else kernel, args, meta, config))

    def start(capability):
        monkeypatch.setattr(driver, "_active", NoGpu(capability))
        monkeypatch.setattr(launch, "_launch", record)
        return launches

    return start


def launch_everything(shape, dtype, memory_format, *, every_form):
    """The passes in the forms that blocks ask for."""
    n, c = shape[:2]
    y = torch.empty(shape, dtype=dtype).contiguous(memory_format=memory_format)
    add, grad, out = (torch.empty_like(y) for _ in range(3))
    weight, s = torch.ones(c), torch.ones(n, c)
    known = launch.statistics(y, weight, weight, 1e-5, (torch.ones(c), torch.ones(c)), 0.1)
    launch.apply(y, known, s, add, RELU)
    launch.grad_sums(grad, out, y, known, s, RELU, True)
    sums = GradSums(torch.ones(3, n, c), None)
    launch.grad_input(grad, y, known, s, sums, s, LINEAR, True)
    if every_form:
        launch.moments(y)
        launch.apply(y, known, s, add, RELU, known)
        launch.apply(y, known, None, None, RELU)
        launch.grad_sums(grad, out, y, known, s, RELU, True, add, known)
        launch.grad_sums(grad, None, y, known, None, LINEAR, False)
        launch.grad_sums(grad, None, y, known, s, GELU, True, add, known)
        launch.grad_input(grad, y, known, None, sums, None, LINEAR, True, torch.ones(2, c))
        for act in ACTS.values():
            launch.apply(y, known, s, add, act)
            launch.grad_sums(grad, None, y, known, s, act, False)
            launch.grad_input(grad, y, known, s, sums, s, act, True)


def check_compiled(launches, itemsize, *, last, vectors, folder):
    assert {launched.name for launched in launches} >= {"moments", "apply", "grad_sums", "grad_input"}
    for launched in launches:
        used = launched.resources(folder)
        assert used["STACK"] == used["LOCAL"] == 0, f"{launched.name} spills: {used}"
        assert used["SHARED"] <= 48 * 1024
        ptx = launched.kernel.asm["ptx"]
        assert not re.search(r"\b(atom|red)\.", ptx), f"{launched.name}: atomics come in any order"
        # What the interpreter does not show: there, maxima keep NaN.
        assert not re.search(r"\b(max|min)\.f\d", ptx), f"{launched.name}: loses NaN"
        if launched.written and itemsize == 2:
            assert re.search(r"\bcvt\.rn\.(bf16|f16)", ptx), f"{launched.name} cuts off instead of rounding"
        if not vectors or not launched.read:
            continue
        each = launched.tile * itemsize // (launched.threads * 16)
        loads, stores = launched.accesses("ld"), launched.accesses("st")
        assert loads[16] >= each * len(launched.read), (launched.name, loads)
        assert stores[16] == each * len(launched.written), (launched.name, stores)
        if last and launched.name != "moments":  # whose shift is a load of its own
            assert set(loads) == {16}, (launched.name, loads)


COMPILED = [
    pytest.param(90, torch.bfloat16, CHANNELS_LAST, True, id="sm_90-channels_last"),
    pytest.param(90, torch.bfloat16, CONTIGUOUS, False, id="sm_90-contiguous"),
    *(
        pytest.param(
            capability, dtype, layout, True, id=f"sm_{capability}-{dtype}-{layout}", marks=pytest.mark.variation
        )
        for capability, dtype, layout in [
            (90, torch.float32, CHANNELS_LAST),
            (90, torch.float32, CONTIGUOUS),
            (90, torch.bfloat16, CONTIGUOUS),
            (90, torch.float16, CHANNELS_LAST),
            (80, torch.bfloat16, CHANNELS_LAST),
            (80, torch.float16, CONTIGUOUS),
        ]
    ),
]


@needs_triton
@needs_compiler
@pytest.mark.parametrize(("capability", "dtype", "layout", "every_form"), COMPILED)
@pytest.mark.heavy
def test_they_compile_to_wide_loads_without_spills(compile_launches, capability, dtype, layout, every_form, tmp_path):
    launches = compile_launches(capability)
    launch_everything((8, 64, 16, 16), dtype, layout, every_form=every_form)
    check_compiled(launches, dtype.itemsize, last=layout is CHANNELS_LAST, vectors=True, folder=tmp_path)


AWKWARD = [(2, 2048, 7, 7), (2, 24, 14, 14), (3, 130, 9, 1), (5, 3, 1, 1)]


@needs_triton
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("layout", "dtype"), [(CHANNELS_LAST, torch.bfloat16), (CONTIGUOUS, torch.float32)])
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_awkward_shapes_compile_without_spills(compile_launches, shape, dtype, layout, tmp_path):
    launches = compile_launches(90)
    launch_everything(shape, dtype, layout, every_form=True)
    check_compiled(launches, dtype.itemsize, last=layout is CHANNELS_LAST, vectors=False, folder=tmp_path)


@needs_triton
@needs_compiler
def test_an_images_own_offset_has_64_bits(compile_launches):
    launches = compile_launches(90)
    launch_everything((8, 64, 16, 16), torch.bfloat16, CHANNELS_LAST, every_form=False)
    for launched in launches:
        moved = re.findall(r"tt\.addptr %\w+, %\S+ : !tt\.ptr<bf16>, (i\d+)", launched.kernel.asm["ttir"])
        assert set(moved) <= {"i64"}, launched.name
        assert len(moved) >= len(launched.read + launched.written), launched.name


@needs_triton
@needs_compiler
def test_extents_do_not_make_new_kernels(compile_launches):
    """A network's layers share kernels, whatever their numbers of images and positions."""
    launches = compile_launches(90)
    launch_everything((8, 64, 16, 16), torch.bfloat16, CHANNELS_LAST, every_form=False)
    count = len(launches)
    launch_everything((4, 64, 16, 15), torch.bfloat16, CHANNELS_LAST, every_form=False)
    first, second = ({launched.kernel.hash for launched in part} for part in (launches[:count], launches[count:]))
    assert second <= first
