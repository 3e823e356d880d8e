"""Devices: what is there, what it can do, and that one file knows."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import excite
from excite.errors import ExciteError
from excite.models import create_model
from excite.runtime import device as devices
from excite.runtime.device import DEVICES, choose_precision, make_accelerator, precision_note

SOURCES = Path(excite.__file__).parent


def test_only_one_file_calls_a_device_by_name():
    kinds = "cuda|npu|xpu|mps|cpu|accelerator|backends"
    pattern = re.compile(rf"torch\.({kinds})\.\w|from torch\.({kinds})\b|import torch_npu|getattr\(torch, ")
    found = {
        f"{path.relative_to(SOURCES)}:{number}"
        for path in SOURCES.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    }
    here = {f for f in found if f.startswith("runtime/device.py:")}
    assert len(here) >= 8
    # Operators know nothing of training. They ask what PyTorch asks of any device; none of them names one.
    below = {f for f in found if f.startswith(("ops/triton_kernels/", "models/folding.py:"))}
    assert found == here | below
    named = re.compile(r"torch\.(cuda|npu|xpu|mps)\.\w|import torch_npu")
    for path in {f.split(":")[0] for f in below}:
        assert not named.search((SOURCES / path).read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device is 'gpu'; choose one of auto, cpu, cuda, npu, xpu, mps"),
        ("cuda:1", "device is 'cuda:1', .* write device=cuda and choose the card with CUDA_VISIBLE_DEVICES=1"),
        ("npu:0", "choose the card with ASCEND_RT_VISIBLE_DEVICES=0"),
        ("xpu:3", "choose the card with ZE_AFFINITY_MASK=3"),
        ("mps:0", "it takes a kind of device: write device=mps$"),
    ],
)
def test_a_device_is_named_by_its_kind(device, message):
    with pytest.raises(ExciteError, match=message):
        make_accelerator(device)


@pytest.fixture
def bare(monkeypatch):
    """A machine with nothing but its processor, whatever this one has."""
    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "xpu", None, raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "npu"])
def test_a_device_that_is_missing_says_why(bare, kind):
    why = "torch_npu is not installed" if kind == "npu" else f"built without {kind.upper()}"
    with pytest.raises(
        ExciteError, match=rf"device is '{kind}', but .*{why}.*; this machine offers 'cpu': use device="
    ):
        make_accelerator(kind)


@pytest.mark.parametrize(("kind", "attribute"), [("cuda", "cuda"), ("xpu", "xpu")])
def test_a_build_without_a_visible_card_says_so(bare, monkeypatch, kind, attribute):
    monkeypatch.setattr(torch.version, attribute, "13.0", raising=False)
    with pytest.raises(ExciteError, match=f"no {DEVICES[kind]} can be seen"):
        make_accelerator(kind)


def test_auto_takes_the_accelerator_that_is_there(bare, monkeypatch):
    assert devices.best_device() == "cpu"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert devices.best_device() == "xpu"
    with pytest.raises(ExciteError, match="this machine offers 'xpu': use device=auto or device=xpu"):
        make_accelerator("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.best_device() == "cuda"


def test_a_process_may_change_its_device(bare, monkeypatch):
    """Accelerate alone would refuse, or go on with the first one."""
    assert make_accelerator("cpu").device.type == "cpu"
    from accelerate.state import PartialState

    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))  # stands for an accelerator
    assert make_accelerator("cpu").device.type == "cpu"
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))
    assert make_accelerator("auto").device.type == "cpu"


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(DEVICES))
def test_fp32_is_possible_everywhere_and_nonsense_nowhere(kind):
    place = types.SimpleNamespace(type=kind)  # torch.device("npu") is possible only where torch_npu is
    assert choose_precision("fp32", place) == "fp32"
    with pytest.raises(ExciteError, match="choose auto, fp32, bf16 or fp16"):
        choose_precision("fp8", place)


@pytest.mark.parametrize(("native", "emulated"), [(True, True), (False, True), (False, False)])
def test_cuda(monkeypatch, native, emulated):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or (emulated and including_emulation)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla K80")
    cuda = torch.device("cuda")
    assert choose_precision("auto", cuda) == ("bf16" if native else "fp32")
    assert choose_precision("fp16", cuda) == "fp16"
    if native or emulated:
        assert choose_precision("bf16", cuda) == "bf16"
        assert (precision_note("bf16", cuda) is None) == native
    else:
        with pytest.raises(
            ExciteError, match="precision is 'bf16', but Tesla K80 does not compute in bfloat16; use fp16"
        ):
            choose_precision("bf16", cuda)


@pytest.mark.parametrize("newer", [True, False])
def test_mps(monkeypatch, newer):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: newer)
    mps = torch.device("mps")
    assert choose_precision("auto", mps) == "fp32"
    assert choose_precision("fp16", mps) == "fp16"
    if newer:
        assert choose_precision("bf16", mps) == "bf16"
    else:
        with pytest.raises(ExciteError, match=r"precision is 'bf16', but .* from macOS 14 on; use fp16 or fp32"):
            choose_precision("bf16", mps)


@pytest.mark.parametrize("native", [True, False])
def test_xpu(monkeypatch, native):
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    xpu = torch.device("xpu")
    assert choose_precision("auto", xpu) == ("bf16" if native else "fp32")
    assert choose_precision("bf16", xpu) == "bf16"
    assert choose_precision("fp16", xpu) == "fp16"
    assert (precision_note("bf16", xpu) is None) == native


@pytest.mark.parametrize(
    ("supported", "bf16"), [([torch.float16, torch.bfloat16], True), ([torch.float16], False), ([torch.float16], None)]
)
def test_npu(monkeypatch, supported, bf16):
    npu = types.SimpleNamespace(get_amp_supported_dtype=lambda: supported, get_device_name=lambda: "Ascend910A")
    if bf16 is not None:
        npu.is_bf16_supported = lambda: bf16
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    place = types.SimpleNamespace(type="npu")
    assert choose_precision("auto", place) == ("bf16" if bf16 else "fp32")
    assert choose_precision("fp16", place) == "fp16"
    if bf16:
        assert choose_precision("bf16", place) == "bf16"
    else:
        with pytest.raises(ExciteError, match="precision is 'bf16', but Ascend910A does not compute in bf16; use fp16"):
            choose_precision("bf16", place)


def test_cpu(monkeypatch):
    cpu = torch.device("cpu")
    for fast in (True, False):
        monkeypatch.setattr(devices, "_cpu_has", lambda precision, fast=fast: fast)
        assert choose_precision("auto", cpu) == ("bf16" if fast else "fp32")
        for precision in ("bf16", "fp16"):
            assert choose_precision(precision, cpu) == precision
            assert (precision_note(precision, cpu) is None) == fast
        assert precision_note("fp32", cpu) is None


# --- torch_npu, by a stand-in ---------------------------------------------------------------------------------------

STAND_IN = """
import types
import torch

torch.utils.rename_privateuse1_backend("npu")
calls = []
npu = types.ModuleType("torch.npu")
npu.is_available = lambda: True
npu.device_count = lambda: 1
npu.current_device = lambda: 0
npu.set_device = lambda device: None
npu.is_initialized = lambda: True
npu.is_bf16_supported = lambda: True
npu.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
npu.get_device_name = lambda device=None: "Ascend 910B (stand-in)"
npu.max_memory_allocated = lambda device=None: 3_000_000_000
npu.reset_peak_memory_stats = lambda device=None: calls.append("reset")
npu.synchronize = lambda device=None: calls.append("synchronize")
npu.manual_seed_all = lambda seed: None
npu.manual_seed = lambda seed: None
npu._is_in_bad_fork = lambda: False
npu.random = types.SimpleNamespace(set_rng_state_all=None)
torch._register_device_module("npu", npu)
"""

USE = """
import torch
from excite.runtime import device as d

assert d.make_accelerator("npu").device.type == "npu"
place = d.make_accelerator("auto").device
print(place.type, d.choose_precision("auto", place), d.peak_memory_gb(place), d.device_name(place))
d.synchronize(place)
d.reset_peak_memory(place)
import torch_npu
print(*torch_npu.calls)
"""


def test_torch_npu_is_imported_and_used_where_it_is_installed(tmp_path):
    (tmp_path / "torch_npu.py").write_text(STAND_IN)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["npu bf16 3.0 Ascend 910B (stand-in)", "synchronize reset"]


def test_a_torch_npu_that_does_not_load_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libascendcl.so: cannot open\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExciteError, match="device is 'npu', but torch_npu is installed but cannot be imported: libasc"):
        make_accelerator("npu")
    with pytest.warns(UserWarning, match="cannot be imported: libascendcl.so: cannot open; continuing without it"):
        assert make_accelerator("auto").device.type == devices.best_device()


def test_auto_is_fp32_for_depth_wise_convolutions_on_a_cpu(monkeypatch):
    """oneDNN has no bfloat16 kernels for them; a gate's own do not decide it."""
    monkeypatch.setattr(devices, "_has_fast_bf16", lambda kind: True)
    with torch.device("meta"):
        lite, gated = create_model("se_efficientnet_lite0"), create_model("geresnet50_theta")
    assert devices.choose_precision("auto", torch.device("cpu"), lite) == "fp32"
    assert devices.choose_precision("auto", torch.device("cpu"), gated) == "bf16"
    assert devices.choose_precision("auto", torch.device("cuda"), lite) == "bf16"
    assert devices.choose_precision("bf16", torch.device("cpu"), lite) == "bf16"
