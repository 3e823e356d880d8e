"""One measurement of a MindCV model in a separate process, with the protocol of `excite.bench.worker`.

It exists for users who migrate from MindCV and ask how fast the same network is here, which only measurements in turns
on one machine can answer.

The file is run by its path, with the interpreter that has MindSpore. That needs numpy < 2 and therefore its own
environment: nothing of excite or PyTorch may be imported here. On a CPU, ONEDNN_MAX_CPU_ISA=AVX2 must be set before
oneDNN is loaded: that of MindSpore 2.10 falls back to reference kernels on newer instruction sets, which are about 30
times slower. The runner sets it.
"""

import importlib
import json
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.bench.settings import SettingValues
    from excite.bench.timing import StepTimes
    from excite.bench.worker import Failure


def measure(setting: "SettingValues") -> "StepTimes | Failure":
    """Time the steps of a setting in graph mode."""
    try:
        ms, mindcv = importlib.import_module("mindspore"), importlib.import_module("mindcv")
    except ImportError as error:
        how = "pip install mindspore mindcv 'numpy<2' in a separate environment, and set its Python as"
        return {"error": f"{error.name} is not installed for {sys.executable}: {how} EXCITE_MINDSPORE_PYTHON"}
    if setting["model"] not in mindcv.list_models():
        return {"error": f"mindcv has no model {setting['model']!r}"}
    if setting["compile"] not in ("off", "default"):
        return {"error": "MindSpore always compiles its graph: use compile=off or default for this row"}
    ms.set_context(mode=ms.GRAPH_MODE)
    target = ms.get_context("device_target")
    precision = "fp32" if setting["precision"] == "auto" else setting["precision"]
    if precision == "bf16" or (precision == "fp16" and target == "CPU"):
        return {"error": f"{precision} is not supported for MindSpore on {target}: use precision=fp32 for this row"}
    if isinstance(setting["image_size"], list | tuple):
        return {"error": "only square images are timed in MindSpore: use one number as image_size for this row"}
    batch, size = setting["batch"] or (16 if target == "CPU" else 128), setting["image_size"] or 224
    warm_up = 3 if setting["warm_up"] is None else setting["warm_up"]
    step = _step(setting["model"], setting["mode"], batch, size, precision)
    first, *rest = (_seconds(step) for _ in range(max(2, warm_up)))
    count = setting["steps"] or min(1000, max(3, round(setting["seconds"] / rest[-1])))
    seconds = [_seconds(step) for _ in range(count)]
    return {
        "seconds": seconds,
        "steps": count,
        # Graph mode compiles in its first step and does not report the time.
        "compile_seconds": max(0.0, first - sorted(seconds)[len(seconds) // 2]),
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "batch": batch,
        "image_size": size,
        "precision": precision,
        "devices": 1,
        "device": f"MindSpore {target}",
        "torch": f"mindspore {ms.__version__}",
        "library_version": mindcv.__version__,
        # The requested settings do not apply here: the layout is NCHW, and the whole step is one graph.
        "channels_last": False,
        "compile": "graph",
        "fused_sgd": False,
    }


def _step(name: str, mode: str, batch: int, size: int, precision: str) -> Any:
    ms, mindcv = importlib.import_module("mindspore"), importlib.import_module("mindcv")
    import numpy as np

    nn = ms.nn
    network = mindcv.create_model(name)
    if precision == "fp16":
        network = ms.amp.auto_mixed_precision(network, "O2")
    images = ms.Tensor(np.random.default_rng(0).standard_normal((batch, 3, size, size)), ms.float32)
    if mode == "infer":
        network.set_train(False)
        return lambda: network(images).asnumpy()
    labels = ms.Tensor(np.zeros(batch), ms.int32)
    optimizer = nn.Momentum(network.trainable_params(), learning_rate=0.01, momentum=0.9, use_nesterov=True)
    loss = nn.WithLossCell(network, nn.CrossEntropyLoss())
    cell = nn.TrainOneStepCell(loss, optimizer, sens=1024.0 if precision == "fp16" else 1.0)
    cell.set_train(True)
    return lambda: cell(images, labels).asnumpy()


def _seconds(step: Any) -> float:
    started = time.perf_counter()
    step()  # ends with a copy to the host, so it is synchronous
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin)["setting"]), allow_nan=False))
